"""The part of a model in front of a layer, for classifiers that go on from there in their own way."""

import copy
from itertools import chain

import torch
from torch import Tensor, nn

from stillhouse.models.features import FeatureReader
from stillhouse.models.layers import Shape
from stillhouse.models.modes import evaluating


class Trunk(nn.Module):
    """Computes the output of one layer of `model` with the very weights of `model`; what is behind the layer is left out.

    Args:
        model: shares its parameters and buffers with the trunk, so training one trains the other; its modules and their
            mode are its own.
        layer: a module name as in `model.named_modules()`.
        input_shape: (channels, height, width).

    Raises:
        UnknownLayer: the model has no such layer.
    """

    def __init__(self, model: nn.Module, layer: str, input_shape: Shape) -> None:
        super().__init__()
        shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
        self.model = copy.deepcopy(model, shared)
        self.layer = layer
        _leave_out_unused(self, self.model, input_shape)

    def forward(self, images: Tensor) -> Tensor:
        with FeatureReader(self.model, [self.layer], until=self.layer) as reader:
            return reader(images)[1][self.layer]


def _leave_out_unused(trunk: Trunk, model: nn.Module, input_shape: Shape) -> None:
    """Replaces modules that did not run and whose parameters the output does not depend on."""
    ran: set[nn.Module] = set()
    handles = [module.register_forward_pre_hook(lambda module, _inputs: ran.add(module)) for module in model.modules()]
    some = next(model.parameters(), torch.empty(0))
    try:
        with evaluating(model), torch.enable_grad():
            output = trunk(torch.zeros(1, *input_shape, device=some.device, dtype=some.dtype))
    finally:
        for handle in handles:
            handle.remove()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(output.sum(), trained, allow_unused=True) if output.requires_grad else [None] * len(trained)
    unused = {id(parameter) for parameter, gradient in zip(trained, gradients, strict=True) if gradient is None}
    for name, module in list(model.named_modules()):
        parameters = list(module.parameters())
        if (
            name
            and parameters
            and all(id(parameter) in unused for parameter in parameters)
            and ran.isdisjoint(module.modules())
        ):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, nn.Identity())
