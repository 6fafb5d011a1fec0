"""Faster R-CNN (1506.01497) with a feature pyramid (1612.03144), all of whose outputs have a fixed shape.

Two stages: a *proposal stage* (RPN) scores and moves A anchors of an image and chooses P proposals among them; a *box head*
classifies each proposal and moves it. Both read the maps of the *neck*, the pyramid. Images are neither resized nor batched to
other sizes inside: the data set's size is the size.

Every tensor is [B, ...]: proposals and detections that an image lacks are rows without a box. Therefore what a teacher computes
can be stored like any other knowledge, and a batch needs no lists. Shapes: B images, K channels of the neck, C classes.

Layers whose outputs methods read: the maps of the neck (`stage_layers`), `rpn.output` and, of a model in evaluation mode,
`roi_heads.output`.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.models import boxes as of_boxes
from stillhouse.models.layers import Shape

DETECTIONS = 100
"""Of an image at most, as in the evaluation of COCO."""
PROPOSAL_OUTPUT = "rpn.output"
"""The layer that returns, for each anchor, its objectness and its four deltas: [B, A, 5]."""
BOX_OUTPUT = "roi_heads.output"
"""The layer that returns, for each proposal, its box, its class logits and its deltas: [B, P, 4 + (C + 1) + 4 (C + 1)]."""

_PROPOSAL_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
_BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
_PER_PROPOSAL = 2
"""Anchors of a level that may become proposals, for each proposal that is wanted."""
_POOLED = 7


class Output(nn.Module):
    """Returns its input: a place whose output has a name."""

    def forward(self, values: Tensor) -> Tensor:
        return values


class ProposalStage(nn.Module):
    """Scores and moves anchors, and chooses proposals.

    Args:
        head: takes the list of maps, returns a list of objectness [B, a, H, W] and one of deltas [B, 4a, H, W].
        anchors: float32 [A, 4], level by level, row by row, column by column.
        per_level: how many anchors each level has.
        count: P.
    """

    anchors: Tensor

    def __init__(self, head: nn.Module, anchors: Tensor, per_level: Sequence[int], count: int, image: tuple[int, int]) -> None:
        super().__init__()
        self.head = head
        self.output = Output()
        self.register_buffer("anchors", anchors, persistent=False)
        self._per_level = tuple(per_level)
        self._count = count
        self._image = image

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The `PROPOSAL_OUTPUT` [B, A, 5], proposals [B, P, 4] and which of them are meant, bool [B, P]."""
        objectness, deltas = self.head(list(maps))
        scores = torch.cat([_by_anchor(level, 1) for level in objectness], 1)
        moves = torch.cat([_by_anchor(level, 4) for level in deltas], 1)
        output: Tensor = self.output(torch.cat((scores, moves), 2))
        with torch.no_grad():
            proposals, meant = self._choose(output.detach())
        return output, proposals, meant

    def _choose(self, output: Tensor) -> tuple[Tensor, Tensor]:
        chosen, levels, start = [], [], 0
        for level, size in enumerate(self._per_level):
            places = (
                torch.topk(output[:, start : start + size, 0], min(_PER_PROPOSAL * self._count, size), dim=1).indices + start
            )
            chosen.append(places)
            levels.append(torch.full_like(places, level))
            start += size
        places, groups = torch.cat(chosen, 1), torch.cat(levels, 1)
        kept = of_boxes.rows(output, places)
        moved = of_boxes.decode(kept[..., 1:], self.anchors[places], _PROPOSAL_WEIGHTS)
        moved = of_boxes.clipped(moved, *self._image)
        scores = kept[..., 0].sigmoid() * of_boxes.is_large(moved)
        places, meant = of_boxes.best(moved, scores, groups, threshold=0.7, count=self._count)
        return of_boxes.rows(moved, places) * meant.unsqueeze(-1), meant


class BoxStage(nn.Module):
    """Classifies and moves boxes by what the maps hold inside them.

    Args:
        head: [n, K, 7, 7] to [n, D].
        predictor: [n, D] to class logits [n, C + 1], background first, and deltas [n, 4 (C + 1)].
        scales: of each map that is read, its size divided by the image's.
        finest_side: boxes whose sides are up to twice as long are read from the first map, others further down.
        sampling: points along each side of a pooled cell that are read.
    """

    scales: Tensor

    def __init__(
        self, head: nn.Module, predictor: nn.Module, scales: Sequence[float], finest_side: float, sampling: int
    ) -> None:
        super().__init__()
        self.box_head = head
        self.box_predictor = predictor
        self.output = Output()
        self.register_buffer("scales", torch.tensor(scales), persistent=False)
        self._finest_side = finest_side
        self._sampling = sampling

    def forward(self, maps: Sequence[Tensor], boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits [B, N, C + 1] and deltas [B, N, C + 1, 4] of boxes [B, N, 4]."""
        images, count = boxes.shape[:2]
        logits, deltas = self.box_predictor(self.box_head(self.pooled(maps, boxes).flatten(0, 1)))
        return logits.view(images, count, -1), deltas.view(images, count, -1, 4)

    def pooled(self, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """What the maps hold inside boxes [B, N, 4]: [B, N, K, 7, 7]; each box is read from one map, by its size.

        All maps lie in one batch, so that one call reads all boxes, and no index depends on a value.
        """
        from torchvision.ops import roi_align

        images, count = boxes.shape[:2]
        used = maps[: len(self.scales)]
        if boxes.is_meta:
            return used[0].new_empty(images, count, used[0].shape[1], _POOLED, _POOLED)
        level = (of_boxes.areas(boxes).clamp(min=1).sqrt() / self._finest_side).log2().floor().clamp(0, len(used) - 1)
        owner = level * images + torch.arange(images, device=boxes.device).view(-1, 1)
        regions = torch.cat((owner.unsqueeze(2), boxes * self.scales[level.long()].unsqueeze(2)), 2).flatten(0, 1)
        stacked = torch.cat([_spread(features, used[0].shape[2], used[0].shape[3]) for features in used])
        found: Tensor = roi_align(stacked, regions.to(stacked.dtype), (_POOLED, _POOLED), sampling_ratio=self._sampling)
        return found.view(images, count, *found.shape[1:])


class FasterRCNN(nn.Module):
    """A detector of fixed shape.

    In training mode it returns {`map.0`, `map.1`, ...: the neck's maps [B, K, H, W], `anchors`: [B, A, 5] as `rpn.output`,
    `proposals`: [B, P, 4], `meant`: bool [B, P]}; the box head's outputs for other boxes are `look_at(maps, boxes)`.

    In evaluation mode it returns detections, the best first: {`boxes`: [B, 100, 4], `scores`: [B, 100] from 0 to 1, `labels`:
    int64 [B, 100]}; rows without a box have the score 0 and the label -1. With `judged`, boxes [B, N, 4], it also returns what
    its box head returns for them: {`judged`: [B, N, 4 + (C + 1) + 4 (C + 1)]}, as `BOX_OUTPUT`.

    Args:
        backbone: images [B, channels, H, W] to {name: map [B, K, H, W]}, finest first.
        rpn: over all maps.
        roi_heads: over as many of the first maps as it has scales.
        num_classes: C.
        stage_layers: names of the modules that return the neck's maps.
    """

    SCORE_THRESHOLD: ClassVar[float] = 0.01
    OVERLAP_THRESHOLD: ClassVar[float] = 0.5
    pooled_layer: ClassVar[None] = None

    def __init__(
        self,
        backbone: nn.Module,
        rpn: ProposalStage,
        roi_heads: BoxStage,
        *,
        num_classes: int,
        input_shape: Shape,
        stage_layers: Sequence[str],
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.rpn = rpn
        self.roi_heads = roi_heads
        self.num_outputs = num_classes
        self.image_size = input_shape[1:]
        self.stage_layers = tuple(stage_layers)

    @property
    def anchors(self) -> Tensor:
        """[A, 4]."""
        return self.rpn.anchors

    def forward(self, images: Tensor, judged: Tensor | None = None) -> dict[str, Tensor]:
        maps = list(self.backbone(images).values())
        anchors, proposals, meant = self.rpn(maps)
        if self.training:
            named = {f"map.{number}": features for number, features in enumerate(maps)}
            return named | {"anchors": anchors, "proposals": proposals, "meant": meant}
        packed = self.roi_heads.output(self._judgement(maps, proposals))
        found = self._detections(meant, *unpacked(packed))
        return found if judged is None else found | {"judged": self._judgement(maps, judged)}

    def _judgement(self, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
        logits, deltas = self.look_at(maps, boxes)
        return torch.cat((boxes, logits, deltas.flatten(2)), 2)

    def exported_form(self) -> nn.Module:
        """The detector as its users run it; see `models/exported_form.py`."""
        return PackedDetector(self)

    def look_at(self, maps: Sequence[Tensor], boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits [B, N, C + 1], background first, and deltas [B, N, C + 1, 4] of boxes [B, N, 4] on the neck's maps."""
        logits, deltas = self.roi_heads(maps, boxes)
        return logits, deltas

    def _detections(self, meant: Tensor, proposals: Tensor, logits: Tensor, deltas: Tensor) -> dict[str, Tensor]:
        images, count, classes = logits.shape[0], logits.shape[1], logits.shape[2] - 1
        moved = moved_boxes(deltas, proposals.unsqueeze(2))[:, :, 1:]
        moved = of_boxes.clipped(moved, *self.image_size).reshape(images, count * classes, 4)
        scores = logits.softmax(-1)[..., 1:] * meant.unsqueeze(-1)
        labels = torch.arange(classes, device=logits.device).expand(images, count, classes).reshape(images, -1)
        scores = scores.reshape(images, -1)
        scores = scores * (scores > self.SCORE_THRESHOLD) * of_boxes.is_large(moved)
        places, found = of_boxes.best(moved, scores, labels, threshold=self.OVERLAP_THRESHOLD, count=DETECTIONS)
        return {
            "boxes": of_boxes.rows(moved, places) * found.unsqueeze(-1),
            "scores": scores.gather(1, places) * found,
            "labels": torch.where(found, labels.gather(1, places), -1),
        }


class PackedDetector(nn.Module):
    """A detector in evaluation mode that returns its detections as one tensor, [B, 100, 6] as `packed`."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> Tensor:
        return packed(self.detector(images))


def packed(outputs: Mapping[str, Tensor]) -> Tensor:
    """Detections as one tensor [B, K, 6]: (x1, y1, x2, y2, score, label)."""
    boxes = outputs["boxes"]
    return torch.cat((boxes, *(outputs[name].to(boxes.dtype).unsqueeze(2) for name in ("scores", "labels"))), 2)


def unpacked(packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes [B, P, 4], class logits [B, P, C + 1] and deltas [B, P, C + 1, 4] from a `BOX_OUTPUT`."""
    classes = (packed.shape[2] - 4) // 5
    boxes, logits, deltas = packed.split((4, classes, 4 * classes), 2)
    return boxes, logits, deltas.unflatten(2, (classes, 4))


def moved_boxes(deltas: Tensor, boxes: Tensor) -> Tensor:
    """The boxes [..., 4] that the box head's deltas [..., 4] make of `boxes`."""
    return of_boxes.decode(deltas, boxes, _BOX_WEIGHTS)


def box_moves(targets: Tensor, boxes: Tensor) -> Tensor:
    """The deltas [..., 4] with which the box head moves `boxes` onto `targets`."""
    return of_boxes.encode(targets, boxes, _BOX_WEIGHTS)


def anchor_moves(targets: Tensor, anchors: Tensor) -> Tensor:
    """The deltas [..., 4] with which the proposal stage moves anchors onto `targets`."""
    return of_boxes.encode(targets, anchors, _PROPOSAL_WEIGHTS)


def maps_of(outputs: Mapping[str, Tensor]) -> list[Tensor]:
    """The neck's maps among what a detector returns in training mode, finest first."""
    return [value for name, value in outputs.items() if name.startswith("map.")]


def make_anchors(
    sizes: Sequence[Sequence[float]],
    ratios: Sequence[float],
    strides: Sequence[int],
    grids: Sequence[tuple[int, int]],
) -> tuple[Tensor, list[int]]:
    """Anchors [A, 4] around the upper left corner of each cell of each map, and how many each map has.

    Args:
        sizes: for each map, the square roots of the areas, in pixels.
        ratios: heights divided by widths.
        strides: for each map, the pixels between two of its places.
        grids: for each map, its rows and columns.
    """
    levels = []
    for level, stride, (height, width) in zip(sizes, strides, grids, strict=True):
        ratio = torch.tensor(ratios, dtype=torch.float32).sqrt()
        size = torch.tensor(level, dtype=torch.float32)
        half_w, half_h = (1 / ratio[:, None] * size).view(-1) / 2, (ratio[:, None] * size).view(-1) / 2
        cells = torch.stack((-half_w, -half_h, half_w, half_h), 1).round()
        rows, columns = torch.arange(height) * stride, torch.arange(width) * stride
        y, x = torch.meshgrid(rows.float(), columns.float(), indexing="ij")
        corners = torch.stack((x, y, x, y), -1).view(-1, 1, 4)
        levels.append((corners + cells).view(-1, 4))
    return torch.cat(levels), [len(level) for level in levels]


def _by_anchor(values: Tensor, numbers: int) -> Tensor:
    """[B, a * numbers, H, W] as [B, H * W * a, numbers]."""
    images, _, height, width = values.shape
    return values.view(images, -1, numbers, height, width).permute(0, 3, 4, 1, 2).reshape(images, -1, numbers)


def _spread(features: Tensor, height: int, width: int) -> Tensor:
    """Maps [B, K, H, W] in the corner of larger ones. Their last row and column are repeated once: interpolation reads them."""
    if features.shape[2:] == (height, width):
        return features
    repeated = torch.cat((features, features[:, :, -1:]), 2)
    repeated = torch.cat((repeated, repeated[..., -1:]), 3)[:, :, :height, :width]
    return F.pad(repeated, (0, width - repeated.shape[3], 0, height - repeated.shape[2]))
