"""Masks that keep weights at zero, and the stored form of sparse weights."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

MASK = "pruning_mask"
Layer = nn.Conv2d | nn.Linear


def num_kept(count: int, ratio: float) -> int:
    """How many of `count` weights stay."""
    return count - int(count * ratio)


def best(scores: Tensor, count: int) -> Tensor:
    """True for the `count` largest scores of each row of [R, N]."""
    mask = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    return mask.scatter_(1, scores.topk(count, dim=1).indices, value=True)


def register_masks(model: nn.Module, masks: Mapping[str, Tensor | None]) -> None:
    """Gives layers a mask, which is part of their state; None is a mask that keeps everything."""
    for name, mask in masks.items():
        layer = model.get_submodule(name)
        weight = layer.get_parameter("weight")
        layer.register_buffer(MASK, torch.ones_like(weight, dtype=torch.bool) if mask is None else mask)


def masked_layers(model: nn.Module) -> Iterator[tuple[Layer, Tensor]]:
    """The layers that have a mask, each with it."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and MASK in module._buffers:
            yield module, module.get_buffer(MASK)


def is_smaller(count: int, kept: int, itemsize: int) -> bool:
    """Whether a bit for each weight and the kept values take fewer bytes than all values."""
    return -(-count // 8) + kept * itemsize < count * itemsize


def encode(weight: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """A bit for each weight, uint8 [ceil(n / 8)] with the first weight in the lowest bit, and the `kept` values in order.

    The values are all that are not zero, and zeros up to `kept`, so that the length does not depend on them.
    """
    flat = weight.detach().flatten()
    if flat.is_meta:
        return torch.empty(-(-len(flat) // 8), dtype=torch.uint8, device="meta"), flat[:kept]
    order = torch.sort(flat != 0, descending=True, stable=True).indices[:kept]
    mask = torch.zeros(-(-len(flat) // 8) * 8, dtype=torch.uint8)
    mask[order.cpu()] = 1
    powers = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)
    return (mask.reshape(-1, 8) * powers).sum(1, dtype=torch.uint8), flat[order.sort().values]


def decode(bits: Tensor, values: Tensor, shape: torch.Size) -> Tensor:
    """The weight from what `encode` returned."""
    powers = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)
    mask = (bits[:, None] & powers).flatten()[: shape.numel()] != 0
    weight = torch.zeros(shape.numel(), dtype=values.dtype)
    weight[mask] = values
    return weight.reshape(shape)
