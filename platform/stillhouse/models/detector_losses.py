"""What a Faster R-CNN is trained on: which box each anchor and each proposal belongs to, and the losses on all of them.

Targets are [B, M, 5]: (x1, y1, x2, y2, class), the class -1 in rows without a box. B images, A anchors, N proposals, C classes.

Faster R-CNN draws `samples` anchors of an image (256, at most half of them on objects) and as many proposals (512, at most a
quarter of them on objects), since all would be too many. Here all are computed at once, so that each is weighted by the
probability that it would be drawn: the losses are the expectation of those of torchvision over its draws, equal to them where
everything is drawn, and a function of the sample alone.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stillhouse.models.boxes import overlaps, rows
from stillhouse.models.detector import anchor_moves, box_moves

_SMOOTH = 1 / 9
"""The error below which the loss of a delta is quadratic, as in torchvision."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How many boxes of an image Faster R-CNN draws, and which share of them at most may be on objects."""

    samples: int
    on_objects: float


@dataclass(frozen=True)
class Assignment:
    """To which true box each of N boxes of an image belongs.

    Attributes:
        classes: int64 [B, N]: 0 for the background, 1 + class for an object, -1 where neither is learned.
        boxes: the true boxes [B, N, 4]; without meaning where the class is not an object's.
        weights: [B, N]: the share of each in the loss of its image; they add up to 1 unless nothing is learned.
    """

    classes: Tensor
    boxes: Tensor
    weights: Tensor


ANCHORS = Drawing(samples=256, on_objects=0.5)
PROPOSALS = Drawing(samples=512, on_objects=0.25)


def assign_anchors(anchors: Tensor, targets: Tensor, drawing: Drawing = ANCHORS) -> Assignment:
    """Anchors [A, 4] are on an object from an overlap of 0.7 on, or if they are its best; below 0.3 they are background."""
    shared = _shared(anchors.expand(len(targets), -1, -1), targets)
    value, place = shared.max(1)
    highest = shared.amax(2, keepdim=True)
    is_best = ((shared == highest) & (highest > 0)).any(1)
    on_object = (value >= 0.7) | is_best
    classes = torch.where(on_object, 1, torch.where(value < 0.3, 0, -1))
    return _weighted(classes, rows(targets, place)[..., :4], drawing)


def assign_proposals(boxes: Tensor, meant: Tensor, targets: Tensor, drawing: Drawing = PROPOSALS) -> Assignment:
    """Boxes [B, N, 4] of which `meant` [B, N] are real are on an object from an overlap of 0.5 on, else background."""
    value, place = _shared(boxes, targets).max(1)
    owner = rows(targets, place)
    classes = torch.where(meant, torch.where(value >= 0.5, owner[..., 4].long() + 1, 0), -1)
    return _weighted(classes, owner[..., :4], drawing)


def with_true_boxes(proposals: Tensor, meant: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Proposals [B, P, 4] and the true boxes as further ones, [B, P + M, 4], and which of them are real."""
    return torch.cat((proposals, targets[..., :4]), 1), torch.cat((meant, targets[..., 4] >= 0), 1)


def proposal_losses(output: Tensor, anchors: Tensor, assigned: Assignment) -> tuple[Tensor, Tensor]:
    """The losses of the proposal stage of each image, [B] each: binary cross-entropy of the score, and of the deltas.

    Args:
        output: [B, A, 5], as a detector's `rpn.output`.
    """
    scores = F.binary_cross_entropy_with_logits(output[..., 0], (assigned.classes > 0).to(output.dtype), reduction="none")
    wanted = anchor_moves(assigned.boxes, anchors)
    return (scores * assigned.weights).sum(1), _move_loss(output[..., 1:], wanted, assigned)


def box_losses(logits: Tensor, deltas: Tensor, boxes: Tensor, assigned: Assignment) -> tuple[Tensor, Tensor]:
    """The losses of the box head of each image, [B] each: cross-entropy of the class, and of the deltas of the true class.

    Args:
        logits: [B, N, C + 1], background first.
        deltas: [B, N, C + 1, 4].
        boxes: [B, N, 4].
    """
    classes = F.cross_entropy(logits.transpose(1, 2), assigned.classes.clamp(min=0), reduction="none")
    chosen = of_class(deltas, assigned.classes)
    return (classes * assigned.weights).sum(1), _move_loss(chosen, box_moves(assigned.boxes, boxes), assigned)


def of_class(deltas: Tensor, classes: Tensor) -> Tensor:
    """The deltas [B, N, 4] of the given classes [B, N] among [B, N, C + 1, 4]; the background's for classes below 0."""
    places = classes.clamp(min=0)[..., None, None].expand(*classes.shape, 1, 4)
    return deltas.gather(2, places).squeeze(2)


def smooth_l1(found: Tensor, wanted: Tensor) -> Tensor:
    """The loss of each row of deltas [..., 4], summed over its numbers."""
    return F.smooth_l1_loss(found, wanted, beta=_SMOOTH, reduction="none").sum(-1)


def _move_loss(found: Tensor, wanted: Tensor, assigned: Assignment) -> Tensor:
    on_object = assigned.classes > 0
    # Rows without an object have no meaningful target, and a product with 0 would keep an infinite one.
    loss = smooth_l1(found, torch.where(on_object.unsqueeze(-1), wanted, found.detach()))
    return (loss * assigned.weights * on_object).sum(1)


def _shared(boxes: Tensor, targets: Tensor) -> Tensor:
    """The overlap of each true box with each box, [B, M, N]; -1 in rows without a true box."""
    shared = overlaps(targets[..., :4], boxes)
    return torch.where((targets[..., 4] >= 0).unsqueeze(2), shared, -1.0)


def _weighted(classes: Tensor, boxes: Tensor, drawing: Drawing) -> Assignment:
    on_object, background = classes > 0, classes == 0
    found, rest = (mask.sum(1, keepdim=True) for mask in (on_object, background))
    objects = found.clamp(max=int(drawing.samples * drawing.on_objects))
    others = rest.minimum(drawing.samples - objects)
    total = (objects + others).clamp(min=1)
    share = [drawn / (whole.clamp(min=1) * total) for drawn, whole in ((objects, found), (others, rest))]
    return Assignment(classes, boxes, on_object * share[0] + background * share[1])
