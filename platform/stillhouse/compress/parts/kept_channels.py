"""Which channels of a network's layers remained, followed from the layers that lost some to all that return their outputs."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.models.layers import Add, GlobalAveragePool
from stillhouse.models.modes import evaluating

Channels = tuple[int, ...]
"""The place of each remaining channel among those of the layer as it was, ascending."""


def followed_channels(model: nn.Module, lost: Mapping[str, Sequence[int]], images: Tensor) -> dict[str, Channels]:
    """By layer, the channels of its output that remained, of the layers whose output is that of one that lost channels.

    A layer has the channels of the tensor that it returns as it is, or of its inputs if it is a function of PyTorch that keeps
    channels apart, such as ReLU and pooling; a block with weights has those of its last layer if it returns as many. Layers of
    which this does not tell anything are left out, such as those that concatenate maps.

    Args:
        lost: of the layers with weights that lost channels, those that remained.
        images: [B, channels, H, W], one batch that the model can run; only shapes matter.
    """
    found: dict[str, Channels] = {}
    runs: dict[str, int] = {}
    of_tensor: dict[int, Channels] = {}
    alive: list[Tensor] = []  # A freed tensor's id may be another one's.
    with_weights: list[tuple[str, Channels | None]] = []

    def note(name: str, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        runs[name] = runs.get(name, 0) + 1
        if not isinstance(output, Tensor) or output.ndim not in (2, 4):
            return
        channels = channels_of(name, layer, inputs, output)
        if channels is not None and len(channels) == output.shape[1]:
            found[name] = of_tensor[id(output)] = channels
            alive.append(output)

    def channels_of(name: str, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Channels | None:
        if name in lost or layer._parameters:
            with_weights.append((name, tuple(lost[name]) if name in lost else None))
            return with_weights[-1][1]
        if id(output) in of_tensor:
            return of_tensor[id(output)]
        if next(layer.parameters(), None) is not None:
            inside = [channels for other, channels in with_weights if other.startswith(f"{name}.")]
            return inside[-1] if inside else None
        if not _keeps_channels_apart(layer):
            return None
        return next((of_tensor[id(each)] for each in inputs if id(each) in of_tensor), None)

    handles = [
        layer.register_forward_hook(lambda layer, inputs, output, name=name: note(name, layer, inputs, output))
        for name, layer in model.named_modules()
        if name
    ]
    try:
        with evaluating(model), torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return {name: channels for name, channels in found.items() if runs[name] == 1}


def _keeps_channels_apart(layer: nn.Module) -> bool:
    """Whether channel k of the output of a layer without weights depends on channel k of its inputs alone."""
    by_torch = type(layer).__module__.startswith("torch.nn.modules.") and not isinstance(layer, nn.ChannelShuffle)
    return by_torch or isinstance(layer, Add | GlobalAveragePool)
