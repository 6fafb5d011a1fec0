"""Finds the layers of a network that an operator may replace, and replaces them."""

from collections import Counter
from collections.abc import Iterable, Mapping

from torch import nn


def plain_layers(model: nn.Module, *kinds: type[nn.Module]) -> dict[str, nn.Module]:
    """The layers of exactly these kinds, by name, in the network's order.

    Subclasses are left out: code may read their weights without calling them, as attention does with its output layer. So are
    layers that share a weight with another layer, whose tie a replacement would break. Of several names of a
    layer, the first is listed.
    """
    owners = Counter(id(weight) for module in model.modules() for weight in module.parameters(recurse=False))
    return {
        name: module
        for name, module in model.named_modules()
        if name and type(module) in kinds and all(owners[id(weight)] == 1 for weight in module.parameters(recurse=False))
    }


def replace_layers(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Puts each new module in the place of the old one, under all names that the old one has; modes are those of the old."""
    for parent in list(model.modules()):
        # Not named_children(), which lists a layer with two names once.
        for name, child in list(parent._modules.items()):
            if child is not None and child in replacements:
                setattr(parent, name, replacements[child].train(child.training))


def convolution_like(layer: nn.Conv2d, num_inputs: int, num_outputs: int, *, groups: int = 1, bias: bool = False) -> nn.Conv2d:
    """A convolution with the kernel, stride, padding and dilation of `layer`, and other channels, on the same device."""
    return nn.Conv2d(
        num_inputs,
        num_outputs,
        layer.kernel_size,  # type: ignore[arg-type]
        stride=layer.stride,  # type: ignore[arg-type]
        padding=layer.padding,  # type: ignore[arg-type]
        dilation=layer.dilation,  # type: ignore[arg-type]
        groups=groups,
        bias=bias,
        padding_mode=layer.padding_mode,
        device=layer.weight.device,
        dtype=layer.weight.dtype,
    )


def listed(layers: Iterable[str], *, at_most: int = 4) -> str:
    """`conv1, fc and 3 more`, for sentences."""
    names = list(layers)
    shown, more = names[:at_most], len(names) - at_most
    if more > 0:
        return f"{', '.join(shown)} and {more} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
