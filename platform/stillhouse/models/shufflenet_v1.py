"""ShuffleNet (Zhang et al., arXiv 1707.01083) with 3 groups, for small images.

Like RepDistiller's model, with its parameter count, MACs and names of the weights: a 1x1 stem of 24 channels with stride 1
and no max-pooling; stages of 240, 480 and 960 channels with 4, 8 and 4 units. `width` scales the stages in steps of 12
channels, the smallest number for three groups and a bottleneck of a quarter; the stem does not change.
"""

import torch
from torch import Tensor, nn

from stillhouse.models.layers import Add, GlobalAveragePool, Shape, initialise_convolutions, scaled

_STEM = 24
_GROUPS = 3
_STEP = 4 * _GROUPS


def shuffle_channels(maps: Tensor, groups: int) -> Tensor:
    """[B, K, H, W] with channel (group g, position i) moved to (position i, group g)."""
    batch, channels, height, width = maps.shape
    grouped = maps.reshape(batch, groups, channels // groups, height, width)
    return grouped.transpose(1, 2).reshape(batch, channels, height, width)


class ShuffleUnit(nn.Module):
    """Grouped 1x1, shuffle, 3x3 depthwise, grouped 1x1; added to the input, or concatenated if the stride is 2.

    Args:
        num_outputs: channels of the unit's output, including a concatenated input.
    """

    def __init__(self, num_inputs: int, num_outputs: int, stride: int) -> None:
        super().__init__()
        branch = num_outputs - num_inputs if stride == 2 else num_outputs
        middle = branch // 4
        # No groups on the stem's few channels (section 3.2 of the paper).
        self.groups = 1 if num_inputs == _STEM else _GROUPS
        self.conv1 = nn.Conv2d(num_inputs, middle, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(middle, middle, 3, stride=stride, padding=1, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(middle, branch, 1, groups=_GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(branch)
        self.shortcut = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else nn.Identity()
        self.add = None if stride == 2 else Add()
        self.relu3 = nn.ReLU()

    def forward(self, maps: Tensor) -> Tensor:
        branch = shuffle_channels(self.relu1(self.bn1(self.conv1(maps))), self.groups)
        branch = self.relu2(self.bn2(self.conv2(branch)))
        branch = self.bn3(self.conv3(branch))
        shortcut = self.shortcut(maps)
        joined = torch.cat([branch, shortcut], dim=1) if self.add is None else self.add(branch, shortcut)
        output: Tensor = self.relu3(joined)
        return output


class ShuffleNetV1(nn.Module):
    """Args:
    channels: of the first stage; the next two have twice and four times as many.
    """

    stage_layers = ("layer1", "layer2", "layer3")
    preactivation_layers = ("layer1.3.add", "layer2.7.add", "layer3.3.add")
    pooled_layer = "pool"

    def __init__(self, *, num_classes: int, input_shape: Shape, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(input_shape[0], _STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.relu1 = nn.ReLU()
        self.layer1 = _stage(_STEM, channels, 4)
        self.layer2 = _stage(channels, 2 * channels, 8)
        self.layer3 = _stage(2 * channels, 4 * channels, 4)
        self.pool = GlobalAveragePool()
        self.linear = nn.Linear(4 * channels, num_classes)
        initialise_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.relu1(self.bn1(self.conv1(images)))
        maps = self.layer3(self.layer2(self.layer1(maps)))
        logits: Tensor = self.linear(self.pool(maps))
        return logits


def _stage(num_inputs: int, num_outputs: int, num_units: int) -> nn.Sequential:
    first = ShuffleUnit(num_inputs, num_outputs, 2)
    return nn.Sequential(first, *(ShuffleUnit(num_outputs, num_outputs, 1) for _ in range(num_units - 1)))


def shufflenet_v1(*, num_classes: int, input_shape: Shape, width: float = 1.0) -> ShuffleNetV1:
    # The first unit concatenates the stem, so the first stage must be wider than it.
    channels = max(_STEM + _STEP, scaled(240, width, multiple=_STEP))
    return ShuffleNetV1(num_classes=num_classes, input_shape=input_shape, channels=channels)


MODELS = {"shufflenet_v1": shufflenet_v1}
