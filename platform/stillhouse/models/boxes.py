"""Boxes in tensors of fixed shape: areas, overlaps, the numbers by which networks move them, and the choice among them.

A box is (x1, y1, x2, y2) in pixels, x to the right and y down, from the image's upper left corner. Shapes: B images, N boxes of
each, C classes. A row that stands for no box has only zeros.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_LARGEST_STRETCH = math.log(1000 / 16)
"""Of a decoded side, as in Detectron: larger exponents would overflow."""
_SMALLEST_SIDE = 1e-3


def areas(boxes: Tensor) -> Tensor:
    """The areas [...] of boxes [..., 4]."""
    return (boxes[..., 2] - boxes[..., 0]).clamp(min=0) * (boxes[..., 3] - boxes[..., 1]).clamp(min=0)


def overlaps(first: Tensor, second: Tensor) -> Tensor:
    """The intersection over union of each box of [..., N, 4] with each of [..., M, 4]: [..., N, M]; 0 for empty boxes."""
    a, b = first.unsqueeze(-2), second.unsqueeze(-3)
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    common = (high - low).clamp(min=0).prod(-1)
    return common / (areas(a) + areas(b) - common).clamp(min=torch.finfo(common.dtype).tiny)


def clipped(boxes: Tensor, height: int, width: int) -> Tensor:
    """Boxes [..., 4] cut at the borders of an image."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack((x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)), -1)


def encode(boxes: Tensor, references: Tensor, weights: Sequence[float]) -> Tensor:
    """The numbers [..., 4] that `decode` turns into `boxes` from `references`; rows without a box give finite numbers.

    (dx, dy, dw, dh) of R-CNN (1311.2524, appendix C): the shift of the centre in sides of the reference, and the logarithm of
    the ratio of the sides, times `weights`.
    """
    width, height, x, y = _centres(references)
    new_width, new_height, new_x, new_y = _centres(boxes)
    wx, wy, ww, wh = weights
    return torch.stack(
        (wx * (new_x - x) / width, wy * (new_y - y) / height, ww * (new_width / width).log(), wh * (new_height / height).log()),
        -1,
    )


def decode(deltas: Tensor, references: Tensor, weights: Sequence[float]) -> Tensor:
    """The boxes [..., 4] that `deltas` [..., 4] make of `references`, as `encode`."""
    width, height, x, y = _centres(references)
    dx, dy, dw, dh = (delta / weight for delta, weight in zip(deltas.unbind(-1), weights, strict=True))
    new_x, new_y = x + dx * width, y + dy * height
    half_width = width * dw.clamp(max=_LARGEST_STRETCH).exp() / 2
    half_height = height * dh.clamp(max=_LARGEST_STRETCH).exp() / 2
    return torch.stack((new_x - half_width, new_y - half_height, new_x + half_width, new_y + half_height), -1)


def _centres(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Widths, heights (at least a small number) and centres."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return (x2 - x1).clamp(min=_SMALLEST_SIDE), (y2 - y1).clamp(min=_SMALLEST_SIDE), (x1 + x2) / 2, (y1 + y2) / 2


def is_large(boxes: Tensor) -> Tensor:
    """Which boxes [..., 4] have sides that a network can learn from: bool [...]."""
    return ((boxes[..., 2:] - boxes[..., :2]) >= _SMALLEST_SIDE).all(-1)


def best(boxes: Tensor, scores: Tensor, groups: Tensor, *, threshold: float, count: int) -> tuple[Tensor, Tensor]:
    """The places of the `count` best boxes of each image after non-maximum suppression within each group.

    Greedy, as `torchvision.ops.batched_nms`, but of fixed shape. Gradients do not flow through it.

    Args:
        boxes: [B, N, 4].
        scores: [B, N], from 0 to 1; a box of score 0 or less is never chosen.
        groups: int64 [B, N]; boxes of different groups do not suppress each other.
        threshold: the largest overlap of two chosen boxes of a group.

    Returns:
        int64 [B, count] and bool [B, count]: places in N by falling score, and which of them are meant.
    """
    images, number = scores.shape
    wanted = min(count, number)
    kept = scores.detach() if scores.is_meta else torch.where(_survivors(boxes, scores, groups, threshold), scores.detach(), 0)
    top, places = torch.topk(kept, wanted, dim=1)
    if wanted < count:
        rest = count - wanted
        top = torch.cat((top, top.new_zeros(images, rest)), 1)
        places = torch.cat((places, places.new_zeros(images, rest)), 1)
    return places, top > 0


def _survivors(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Which boxes remain: bool [B, N]."""
    from torchvision.ops import nms

    with torch.no_grad():
        images, number = scores.shape
        # Boxes of different groups are moved apart, so that they do not overlap.
        span = boxes.max() + 1
        apart = boxes + (groups.to(boxes.dtype) * span).unsqueeze(-1)
        kept = torch.zeros(images * number, dtype=torch.bool, device=boxes.device)
        if torch.compiler.is_exporting():
            # All images at once, since their number is not known while a program is traced.
            rows = torch.arange(images, device=boxes.device).view(-1, 1, 1)
            apart = apart + rows * (span * (groups.max() + 1))
            return kept.index_fill(0, nms(apart.reshape(-1, 4), scores.reshape(-1), threshold), True).view(images, number)
        for row in range(images):
            kept.index_fill_(0, nms(apart[row], scores[row], threshold) + row * number, True)
        return kept.view(images, number)


def rows(values: Tensor, places: Tensor) -> Tensor:
    """The rows `places` [B, K] of values [B, N, ...]: [B, K, ...]."""
    shape = (*places.shape, *([1] * (values.ndim - 2)))
    return values.gather(1, places.view(shape).expand(*places.shape, *values.shape[2:]))
