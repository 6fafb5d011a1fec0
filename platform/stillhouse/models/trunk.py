"""The part of a model up to a layer, for methods that continue from there with their own classifier."""

import copy
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.models.example_input import example_input
from stillhouse.models.features import FeatureReader
from stillhouse.models.layers import Shape
from stillhouse.models.modes import evaluating


class Trunk(nn.Module):
    """Computes the output of one layer of `model` with the weights of `model`; later modules are left out.

    Args:
        model: shares its parameters and buffers with the trunk, so training one trains the other; modules and modes are not
            shared.
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
        _leave_out_unused(self.model, layer, input_shape)

    def forward(self, images: Tensor) -> Tensor:
        # The pass is not ended at the layer: torch.export cannot trace a forward pass that an exception ends.
        with FeatureReader(self.model, [self.layer]) as reader:
            return reader(images)[1][self.layer]


class LeftOut(nn.Module):
    """Replaces a module whose output is not needed; returns zeros of its shape."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, inputs: Tensor, *_others: Any) -> Tensor:
        return inputs.new_zeros(inputs.shape[0], *self.shape)


def _leave_out_unused(model: nn.Module, layer: str, input_shape: Shape) -> None:
    """Replaces modules with weights that run only after `layer`, if the output of `layer` depends on none of these weights."""
    ran_before: set[nn.Module] = set()
    shapes: dict[nn.Module, tuple[int, ...]] = {}
    target = dict(model.named_modules()).get(layer)

    def begin(module: nn.Module, _inputs: Any) -> None:
        if target not in shapes:
            ran_before.add(module)

    def end(module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            shapes[module] = tuple(output.shape[1:])

    with FeatureReader(model, [layer]) as reader, evaluating(model), torch.enable_grad():
        handles = [module.register_forward_pre_hook(begin) for module in model.modules()]
        handles += [module.register_forward_hook(end) for module in model.modules()]
        try:
            output = reader(example_input(model, 2, input_shape))[1][layer]
        finally:
            for handle in handles:
                handle.remove()
    unused = _unused(model, output)
    left_out: list[str] = []
    for name, module in list(model.named_modules()):
        if not name or name.startswith(tuple(f"{outer}." for outer in left_out)):
            continue
        parameters = list(module.parameters())
        needed = not ran_before.isdisjoint(module.modules()) or any(id(parameter) not in unused for parameter in parameters)
        if parameters and module in shapes and not needed:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, LeftOut(shapes[module]))
            left_out.append(name)


def _unused(model: nn.Module, output: Tensor) -> set[int]:
    """The ids of the parameters that `output` does not depend on."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not output.requires_grad:
        return {id(parameter) for parameter in trained}
    gradients = torch.autograd.grad(output.sum(), trained, allow_unused=True)
    return {id(parameter) for parameter, gradient in zip(trained, gradients, strict=True) if gradient is None}
