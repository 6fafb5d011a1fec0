"""Maps [B, K, H, W] of networks whose own layers return tokens or maps with the channels last.

Methods read the outputs of layers. Such a network gets further layers without weights, each called with the output of one of
its own layers after every forward pass of that layer; the network's own outputs do not change.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.models.layers import Shape
from stillhouse.models.modes import evaluating

_MODULES = "stage_maps"
_OF_ONE_RESOLUTION = 3
"""Stages of a network whose maps all have one resolution, as of the shipped `vit`."""


class TokenMap(nn.Module):
    """Tokens as a map, row by row: [B, first + H * W, K] to [B, K, H, W]; the first tokens are left out."""

    def __init__(self, first: int, height: int, width: int) -> None:
        super().__init__()
        self.first, self.height, self.width = first, height, width

    def forward(self, tokens: Tensor) -> Tensor:
        maps: Tensor = tokens[:, self.first :].mT.unflatten(2, (self.height, self.width))
        return maps


class ChannelsFirst(nn.Module):
    """[B, H, W, K] to [B, K, H, W]."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.permute(0, 3, 1, 2)


class _Passing:
    """A forward hook that calls another module with the output of a layer."""

    def __init__(self, target: nn.Module) -> None:
        self.target = target

    def __call__(self, _module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
        self.target(output)


@dataclass(frozen=True)
class Stage:
    """A layer that ends a stage.

    Attributes:
        layer: its name.
        channels: of its output.
        reduction: by how much the map is smaller than the image.
    """

    layer: str
    channels: int
    reduction: int


def add_stage_maps(model: nn.Module, stages: Sequence[Stage], shapes: Mapping[str, tuple[int, ...]], side: Shape) -> None:
    """Names the stages of a model in its attribute `stage_layers`, with further layers where its own return no maps.

    Of stages with the same resolution the last one counts; of a network with a single resolution, some that divide its depth.
    The attribute is not set if no stage has a map.

    Args:
        stages: shallow to deep.
        shapes: of the layers' outputs without the batch dimension, as `output_shapes` returns them.
        side: (channels, height, width) of the images inside the model.
    """
    found: dict[str, tuple[tuple[int, ...], nn.Module | None]] = {}
    for stage in stages:
        shape = shapes.get(stage.layer, ())
        if len(shape) == 3 and shape[0] == stage.channels:
            found[stage.layer] = (shape[1:], None)
        elif len(shape) == 3 and shape[2] == stage.channels:
            found[stage.layer] = (shape[:2], ChannelsFirst())
        elif len(shape) == 2 and shape[1] == stage.channels:
            height, width = (-(-length // stage.reduction) for length in side[1:])
            if (first := shape[0] - height * width) >= 0:
                found[stage.layer] = ((height, width), TokenMap(first, height, width))
    if chosen := _one_for_each_resolution({layer: size for layer, (size, _) in found.items()}):
        model.stage_layers = tuple(_named(model, layer, found[layer][1]) for layer in chosen)  # type: ignore[assignment]


def output_shapes(model: nn.Module, input_shape: Shape) -> dict[str, tuple[int, ...]]:
    """The shape without the batch dimension of every layer's output that is one tensor, in the order in which layers end."""
    shapes: dict[str, tuple[int, ...]] = {}

    def recorder(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                shapes[name] = tuple(output.shape[1:])

        return record

    handles = [module.register_forward_hook(recorder(name)) for name, module in model.named_modules() if name]
    some = next(model.parameters(), torch.empty(0))
    try:
        with evaluating(model), torch.no_grad():
            model(torch.zeros(1, *input_shape, device=some.device, dtype=some.dtype))
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def _one_for_each_resolution(sizes: Mapping[str, tuple[int, ...]]) -> list[str]:
    if len(sizes) > _OF_ONE_RESOLUTION and len(set(sizes.values())) == 1:
        layers = list(sizes)
        places = (-(-len(layers) * number // _OF_ONE_RESOLUTION) - 1 for number in range(1, _OF_ONE_RESOLUTION + 1))
        return [layers[place] for place in places]
    return list({size: layer for layer, size in sizes.items()}.values())


def _named(model: nn.Module, layer: str, maps: nn.Module | None) -> str:
    """The name of the layer that returns the map, which is added to the model if it is another one."""
    if maps is None:
        return layer
    if not hasattr(model, _MODULES):
        model.add_module(_MODULES, nn.ModuleDict())
    added = model.get_submodule(_MODULES)
    assert isinstance(added, nn.ModuleDict)
    name = layer.replace(".", "_")
    added[name] = maps
    model.get_submodule(layer).register_forward_hook(_Passing(maps))
    return f"{_MODULES}.{name}"
