"""Torchvision's Faster R-CNNs by name, with its own names of weights, in the form of `models/detector.py`.

Differences from torchvision: images are not resized inside, BatchNorm is trained (there are no frozen statistics, which without
published weights would be random), and there are as many proposals as `proposals`, in training too.
"""

import importlib
from typing import Any

import torch
from torch import nn

from stillhouse.errors import UsageError
from stillhouse.models.detector import BoxStage, FasterRCNN, ProposalStage, make_anchors
from stillhouse.models.faster_rcnn import stride_of
from stillhouse.models.layers import Shape

NAMES = (
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
)
_FINEST_SIDE = 56.0
"""Boxes of up to twice this side are read from the first map: equation 1 of 1612.03144, with its 224 pixels at stride 16."""


def build_torchvision_detector(name: str, *, num_classes: int, input_shape: Shape, proposals: int = 300) -> FasterRCNN:
    """Torchvision's detector `name` with random weights.

    Args:
        name: one of `NAMES`.
        num_classes: of the data set, without the background.
        input_shape: (3, height, width).
        proposals: boxes of an image that the box head looks at.
    """
    if input_shape[0] != 3:
        raise UsageError(f"{name} reads images of three channels, these have {input_shape[0]}; use fasterrcnn")
    library: Any = importlib.import_module("torchvision.models.detection")
    built: Any = getattr(library, name)(weights=None, weights_backbone=None, num_classes=num_classes + 1)
    for module in built.modules():
        if getattr(module, "inplace", False):
            module.inplace = False
    maps = _maps(built.backbone, input_shape)
    grids = [(features.shape[2], features.shape[3]) for features in maps.values()]
    strides = [stride_of(input_shape[1], rows) for rows, _ in grids]
    if min(input_shape[1:]) < strides[-1]:
        raise UsageError(
            f"images of {input_shape[1]}x{input_shape[2]} are smaller than the largest stride of {name}, {strides[-1]}; "
            "raise dataset.size, or use fasterrcnn"
        )
    generator = built.rpn.anchor_generator
    anchors, per_level = make_anchors(generator.sizes, generator.aspect_ratios[0], strides, grids)
    heads = built.roi_heads
    scales = [1 / stride for name, stride in zip(maps, strides, strict=True) if name in heads.box_roi_pool.featmap_names]
    image = (input_shape[1], input_shape[2])
    return FasterRCNN(
        built.backbone,
        ProposalStage(built.rpn.head, anchors, per_level, proposals, image),
        BoxStage(heads.box_head, heads.box_predictor, scales, _FINEST_SIDE, heads.box_roi_pool.sampling_ratio),
        num_classes=num_classes,
        input_shape=input_shape,
        stage_layers=[f"backbone.fpn.layer_blocks.{number}" for number in range(len(built.backbone.fpn.layer_blocks))],
    )


def _maps(backbone: nn.Module, input_shape: Shape) -> dict[str, torch.Tensor]:
    """The maps of one image of zeros; the mode and the statistics of the backbone do not change."""
    weight = next(backbone.parameters())
    was_training = backbone.training
    backbone.eval()
    with torch.no_grad():
        maps: dict[str, torch.Tensor] = backbone(torch.zeros(1, *input_shape, device=weight.device))
    backbone.train(was_training)
    return maps
