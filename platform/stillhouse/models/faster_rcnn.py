"""`fasterrcnn`: a detector over any shipped trunk that has stages, or over one of torchvision's, of any width.

The trunk sees the image in blocks: s x s pixels become the channels of one place, so that its first stage has the stride that
`stride` names. Its stages, one map per resolution, are joined by a feature pyramid of `neck_channels` channels, to which a
coarser map is added. Anchors of a map with stride t have sides of about 4 t, in three shapes.

`torchvision:fasterrcnn_resnet50_fpn` and its like are torchvision's own detectors with their own names of weights, made into
the same form.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.errors import UsageError
from stillhouse.models.architecture import Architecture, describe
from stillhouse.models.detector import BoxStage, FasterRCNN, ProposalStage, make_anchors
from stillhouse.models.features import FeatureReader
from stillhouse.models.layers import Shape, initialise_convolutions
from stillhouse.models.trunk import Trunk

_RATIOS = (0.5, 1.0, 2.0)
_SIDES_OF_STRIDE = 4
_POOLED_CELLS = 49
_ENOUGH_STAGES = 3


class Blocks(nn.Module):
    """Images [B, channels, H, W] as [B, channels s², H / s, W / s]: blocks of s x s pixels; zeros complete the last ones."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, images: Tensor) -> Tensor:
        down, right = (-length % self.side for length in images.shape[2:])
        return F.pixel_unshuffle(F.pad(images, (0, right, 0, down)), self.side)


class Pyramid(nn.Module):
    """The maps of a trunk's stages, joined from the coarsest to the finest, and a coarser one.

    Args:
        trunk: a model that computes the stages.
        stages: its layers, finest first.
        channels: of each stage.
        neck_channels: of every map that is returned.
    """

    def __init__(
        self, blocks: Blocks, trunk: nn.Module, stages: tuple[str, ...], channels: list[int], neck_channels: int
    ) -> None:
        from torchvision.ops import FeaturePyramidNetwork
        from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

        super().__init__()
        self.blocks = blocks
        self.body = trunk
        self.fpn = FeaturePyramidNetwork(channels, neck_channels, LastLevelMaxPool(), norm_layer=nn.BatchNorm2d)
        initialise_convolutions(self.fpn)
        self._stages = stages

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        with FeatureReader(self.body, self._stages) as reader:
            features = reader(self.blocks(images))[1]
        maps: dict[str, Tensor] = self.fpn({stage: features[stage] for stage in self._stages})
        return maps


def fasterrcnn(
    *,
    num_classes: int,
    input_shape: Shape,
    backbone: str = "resnet8",
    width: float | None = None,
    neck_channels: int = 64,
    hidden_units: int = 128,
    stride: int = 4,
    proposals: int = 100,
) -> FasterRCNN:
    """A detector with new weights.

    Args:
        num_classes: of the data set, without the background.
        backbone: the trunk, by its name as a classifier.
        width: the trunk's own option; by default the trunk's default.
        neck_channels: channels of the feature pyramid.
        hidden_units: of the two layers of the box head.
        stride: pixels between two places of the finest map; a power of two.
        proposals: boxes of an image that the box head looks at.

    Raises:
        UsageError: the trunk has too few stages, or the images are too small for it.
    """
    options = {} if width is None else {"width": width}
    side, trunk, known, stages = _fitting_trunk(backbone, options, input_shape, stride)
    shapes = [known.shape(stage) for stage in stages]
    body = Trunk(trunk, stages[-1], known.input_shape).model
    pyramid = Pyramid(Blocks(side), body, stages, [shape[0] for shape in shapes], neck_channels)
    grids = [(shape[1], shape[2]) for shape in shapes]
    grids.append((-(-grids[-1][0] // 2), -(-grids[-1][1] // 2)))
    strides = [stride_of(side * known.input_shape[1], rows) for rows, _ in grids]
    _check_size(backbone, input_shape, strides[-2])
    anchors, per_level = make_anchors([[float(_SIDES_OF_STRIDE * each)] for each in strides], _RATIOS, strides, grids)
    proposal_head, box_head, predictor = _new_heads(neck_channels, len(_RATIOS), hidden_units, num_classes)
    return FasterRCNN(
        pyramid,
        ProposalStage(proposal_head, anchors, per_level, proposals, (input_shape[1], input_shape[2])),
        # The coarsest map serves the proposal stage only. A cell of a box is about as large as a place of the map that it is
        # read from, so that one point of it is enough.
        BoxStage(box_head, predictor, [1 / each for each in strides[:-1]], float(_SIDES_OF_STRIDE * strides[0]), sampling=1),
        num_classes=num_classes,
        input_shape=input_shape,
        stage_layers=[f"backbone.fpn.layer_blocks.{number}" for number in range(len(stages))],
    )


def _new_heads(channels: int, anchors: int, hidden: int, num_classes: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.models.detection.rpn import RPNHead

    return (
        RPNHead(channels, anchors),
        TwoMLPHead(channels * _POOLED_CELLS, hidden),
        FastRCNNPredictor(hidden, num_classes + 1),
    )


def _fitting_trunk(
    backbone: str, options: Mapping[str, Any], input_shape: Shape, stride: int
) -> tuple[int, nn.Module, Architecture, tuple[str, ...]]:
    """The side of the blocks with which the finest map has the wanted stride, the trunk, its layers, and the stages to use.

    Of a trunk for large images, which has three stages from that stride on, finer stages are left out, and a place is a
    pixel. The trunk is built without storage to learn its own strides, and then once for good.
    """
    from stillhouse.models.registry import build_model, sketch_model

    if backbone in MODELS:
        raise UsageError(f"backbone must be a classifier, {backbone} is a detector; name one such as resnet8")
    first = sketch_model(backbone, num_classes=2, input_shape=input_shape, **options)
    own = describe(first, name=backbone, input_shape=input_shape)
    strides = [stride_of(input_shape[1], own.shape(stage)[1]) for stage in _stages(backbone, own)]
    coarse = sum(each >= stride for each in strides)
    side, left_out = (1, len(strides) - coarse) if coarse >= _ENOUGH_STAGES else (max(1, stride // strides[0]), 0)
    given = (input_shape[0] * side * side, *(-(-length // side) for length in input_shape[1:]))
    trunk = build_model(backbone, num_classes=2, input_shape=given, **options)
    known = describe(trunk, name=backbone, input_shape=given)
    return side, trunk, known, _stages(backbone, known)[left_out:]


def _stages(backbone: str, known: Architecture) -> tuple[str, ...]:
    """The last layer of each resolution, finest first.

    Raises:
        UsageError: there is only one resolution.
    """
    by_rows: dict[tuple[int, ...], str] = {}
    for stage in known.stages:
        shape = known.shape(stage)
        if len(shape) == 3:
            by_rows[shape[1:]] = stage
    if len(by_rows) < 2:
        raise UsageError(
            f"backbone '{backbone}' has {len(by_rows)} stages of their own resolution on images of "
            f"{known.input_shape[1]}x{known.input_shape[2]}, a feature pyramid needs two; "
            "name another backbone, or use larger images"
        )
    return tuple(by_rows.values())


def stride_of(length: int, rows: int) -> int:
    """The power of two that is nearest to length / rows."""
    return int(2 ** round(math.log2(length / rows)))


def _check_size(backbone: str, input_shape: Shape, largest: int) -> None:
    if min(input_shape[1:]) < largest:
        raise UsageError(
            f"images of {input_shape[1]}x{input_shape[2]} are smaller than the largest stride of {backbone}, {largest}; "
            "raise dataset.size, or name another backbone"
        )


MODELS = {"fasterrcnn": fasterrcnn}
