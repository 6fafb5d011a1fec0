"""ShuffleNetV2 (Ma et al., arXiv 1807.11164) for small images.

Like RepDistiller's model, with its parameter count, MACs and names of the weights: a 1x1 stem of 24 channels with stride 1
and no max-pooling, then the paper's stages of 4, 8 and 4 units and its last 1x1 convolution. Published widths are 0.5, 1, 1.5
and 2 (the paper's table 5); channels of other widths are interpolated, towards zero below 0.5.
"""

import numpy as np
import torch
from torch import Tensor, nn

from stillhouse.models.layers import GlobalAveragePool, Shape, initialise_convolutions
from stillhouse.models.shufflenet_v1 import shuffle_channels

_STEM = 24
_PUBLISHED_WIDTHS = (0.0, 0.5, 1.0, 1.5, 2.0)
_PUBLISHED_CHANNELS = (0, 48, 116, 176, 244)


class SplitUnit(nn.Module):
    """One half of the channels is unchanged, the other passes 1x1, 3x3 depthwise and 1x1; then both are shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu3 = nn.ReLU()

    def forward(self, maps: Tensor) -> Tensor:
        unchanged, branch = maps.chunk(2, dim=1)
        branch = self.relu1(self.bn1(self.conv1(branch)))
        branch = self.relu3(self.bn3(self.conv3(self.bn2(self.conv2(branch)))))
        return shuffle_channels(torch.cat([unchanged, branch], dim=1), 2)


class DownUnit(nn.Module):
    """Two branches of stride 2, concatenated and shuffled."""

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        half = num_outputs // 2
        self.conv1 = nn.Conv2d(num_inputs, num_inputs, 3, stride=2, padding=1, groups=num_inputs, bias=False)
        self.bn1 = nn.BatchNorm2d(num_inputs)
        self.conv2 = nn.Conv2d(num_inputs, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(num_inputs, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu3 = nn.ReLU()
        self.conv4 = nn.Conv2d(half, half, 3, stride=2, padding=1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)
        self.relu5 = nn.ReLU()

    def forward(self, maps: Tensor) -> Tensor:
        left = self.relu2(self.bn2(self.conv2(self.bn1(self.conv1(maps)))))
        right = self.relu3(self.bn3(self.conv3(maps)))
        right = self.relu5(self.bn5(self.conv5(self.bn4(self.conv4(right)))))
        return shuffle_channels(torch.cat([left, right], dim=1), 2)


class ShuffleNetV2(nn.Module):
    """The two halves of a stage's map come from different units, so no layer returns the stage before its ReLU.

    Args:
        channels: of the first stage; the next two have twice and four times as many.
        last: channels of the 1x1 convolution before the pooling.
    """

    stage_layers = ("layer1", "layer2", "layer3")
    preactivation_layers: tuple[str, ...] = ()
    pooled_layer = "pool"

    def __init__(self, *, num_classes: int, input_shape: Shape, channels: int, last: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(input_shape[0], _STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.relu1 = nn.ReLU()
        self.layer1 = _stage(_STEM, channels, 4)
        self.layer2 = _stage(channels, 2 * channels, 8)
        self.layer3 = _stage(2 * channels, 4 * channels, 4)
        self.conv2 = nn.Conv2d(4 * channels, last, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(last)
        self.relu2 = nn.ReLU()
        self.pool = GlobalAveragePool()
        self.linear = nn.Linear(last, num_classes)
        initialise_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.relu1(self.bn1(self.conv1(images)))
        maps = self.layer3(self.layer2(self.layer1(maps)))
        logits: Tensor = self.linear(self.pool(self.relu2(self.bn2(self.conv2(maps)))))
        return logits


def _stage(num_inputs: int, num_outputs: int, num_units: int) -> nn.Sequential:
    return nn.Sequential(DownUnit(num_inputs, num_outputs), *(SplitUnit(num_outputs) for _ in range(num_units - 1)))


def shufflenet_v2(*, num_classes: int, input_shape: Shape, width: float = 1.0) -> ShuffleNetV2:
    if width <= _PUBLISHED_WIDTHS[-1]:
        channels = float(np.interp(width, _PUBLISHED_WIDTHS, _PUBLISHED_CHANNELS))
    else:
        channels = _PUBLISHED_CHANNELS[-1] * width / _PUBLISHED_WIDTHS[-1]
    return ShuffleNetV2(
        num_classes=num_classes,
        input_shape=input_shape,
        channels=max(2, 2 * round(channels / 2)),
        last=2048 if width >= 2 else 1024,
    )


MODELS = {"shufflenet_v2": shufflenet_v2}
