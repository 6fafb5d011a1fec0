"""ResNets for small images (He et al., arXiv 1512.03385, section 4.2), in the variant of the distillation literature.

`resnet8` to `resnet110` have channels 16-16-32-64 (stem and three stages), `resnet8x4` and `resnet32x4` 32-64-128-256; a stage
that changes the shape has a 1x1 convolution in its first shortcut (the paper's option B). `shortcut: padding` takes every
second pixel and pads the channels with zeros instead (option A, the paper's networks for CIFAR-10). `resnet50` is the ImageNet
network with a 3x3 stem of stride 1 and no max-pooling. Parameter counts, MACs and the names of the weights are those of
RepDistiller's models, whose checkpoints can be loaded.
"""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.models.layers import Add, GlobalAveragePool, Shape, initialise_convolutions, scaled
from stillhouse.models.options import SHORTCUTS

NewBlock = Callable[[int, int, int], nn.Module]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; `add` is the map before the last ReLU."""

    def __init__(self, num_inputs: int, num_outputs: int, stride: int, *, padded: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_inputs, num_outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(num_outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(num_outputs, num_outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(num_outputs)
        self.downsample = (PaddedShortcut if padded else projection)(num_inputs, num_outputs, stride)
        self.add = Add()
        self.relu2 = nn.ReLU()

    def forward(self, maps: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(maps)))))
        output: Tensor = self.relu2(self.add(branch, self.downsample(maps)))
        return output


class PaddedShortcut(nn.Module):
    """Every `stride`-th pixel, with channels of zeros before and after: [B, K, H, W] to [B, num_outputs, H', W']."""

    def __init__(self, num_inputs: int, num_outputs: int, stride: int) -> None:
        super().__init__()
        added = num_outputs - num_inputs
        self.stride, self.before, self.after = stride, added // 2, added - added // 2

    def forward(self, maps: Tensor) -> Tensor:
        picked = maps[:, :, :: self.stride, :: self.stride]
        return F.pad(picked, (0, 0, 0, 0, self.before, self.after))


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolutions to four times the channels; `add` is the map before the last ReLU."""

    def __init__(self, num_inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        num_outputs = 4 * channels
        self.conv1 = nn.Conv2d(num_inputs, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(channels, num_outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(num_outputs)
        self.shortcut = projection(num_inputs, num_outputs, stride)
        self.add = Add()
        self.relu3 = nn.ReLU()

    def forward(self, maps: Tensor) -> Tensor:
        branch = self.relu1(self.bn1(self.conv1(maps)))
        branch = self.relu2(self.bn2(self.conv2(branch)))
        branch = self.bn3(self.conv3(branch))
        output: Tensor = self.relu3(self.add(branch, self.shortcut(maps)))
        return output


def projection(num_inputs: int, num_outputs: int, stride: int) -> nn.Module:
    """A shortcut: 1x1 convolution and batch normalisation if the shape changes, else nothing."""
    if stride == 1 and num_inputs == num_outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(num_inputs, num_outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(num_outputs))


class CifarResNet(nn.Module):
    """6n+2 layers: a 3x3 stem and three stages of n basic blocks.

    Args:
        channels: of the stem and of the three stages.
        new_block: (input channels, output channels, stride) -> a residual block whose `add` is the map before its last ReLU.
    """

    stage_layers = ("layer1", "layer2", "layer3")
    pooled_layer = "pool"

    def __init__(
        self,
        *,
        num_classes: int,
        input_shape: Shape,
        num_blocks: int,
        channels: tuple[int, int, int, int],
        new_block: NewBlock = BasicBlock,
    ) -> None:
        super().__init__()
        stem, *stages = channels
        self.preactivation_layers = tuple(f"{stage}.{num_blocks - 1}.add" for stage in self.stage_layers)
        self.conv1 = nn.Conv2d(input_shape[0], stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU()
        self.layer1 = _basic_stage(new_block, stem, stages[0], num_blocks, stride=1)
        self.layer2 = _basic_stage(new_block, stages[0], stages[1], num_blocks, stride=2)
        self.layer3 = _basic_stage(new_block, stages[1], stages[2], num_blocks, stride=2)
        self.pool = GlobalAveragePool()
        self.fc = nn.Linear(stages[2], num_classes)
        initialise_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.relu(self.bn1(self.conv1(images)))
        maps = self.layer3(self.layer2(self.layer1(maps)))
        logits: Tensor = self.fc(self.pool(maps))
        return logits


class CifarResNet50(nn.Module):
    """A 3x3 stem and four stages of 3, 4, 6 and 3 bottleneck blocks."""

    stage_layers = ("layer1", "layer2", "layer3", "layer4")
    preactivation_layers = ("layer1.2.add", "layer2.3.add", "layer3.5.add", "layer4.2.add")
    pooled_layer = "pool"

    def __init__(self, *, num_classes: int, input_shape: Shape, width: float) -> None:
        super().__init__()
        n64, n128, n256, n512 = (scaled(channels, width) for channels in (64, 128, 256, 512))
        self.conv1 = nn.Conv2d(input_shape[0], n64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n64)
        self.relu = nn.ReLU()
        self.layer1 = _bottleneck_stage(n64, n64, 3, stride=1)
        self.layer2 = _bottleneck_stage(4 * n64, n128, 4, stride=2)
        self.layer3 = _bottleneck_stage(4 * n128, n256, 6, stride=2)
        self.layer4 = _bottleneck_stage(4 * n256, n512, 3, stride=2)
        self.pool = GlobalAveragePool()
        self.linear = nn.Linear(4 * n512, num_classes)
        initialise_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.relu(self.bn1(self.conv1(images)))
        maps = self.layer4(self.layer3(self.layer2(self.layer1(maps))))
        logits: Tensor = self.linear(self.pool(maps))
        return logits


def _basic_stage(new_block: NewBlock, num_inputs: int, num_outputs: int, num_blocks: int, *, stride: int) -> nn.Sequential:
    first = new_block(num_inputs, num_outputs, stride)
    return nn.Sequential(first, *(new_block(num_outputs, num_outputs, 1) for _ in range(num_blocks - 1)))


def _bottleneck_stage(num_inputs: int, channels: int, num_blocks: int, *, stride: int) -> nn.Sequential:
    first = Bottleneck(num_inputs, channels, stride)
    return nn.Sequential(first, *(Bottleneck(4 * channels, channels, 1) for _ in range(num_blocks - 1)))


def _builder(depth: int, channels: tuple[int, int, int, int]) -> Callable[..., nn.Module]:
    def build(*, num_classes: int, input_shape: Shape, width: float = 1.0, shortcut: str = SHORTCUTS[0]) -> CifarResNet:
        stem, first, second, third = (scaled(number, width) for number in channels)
        return CifarResNet(
            num_classes=num_classes,
            input_shape=input_shape,
            num_blocks=(depth - 2) // 6,
            channels=(stem, first, second, third),
            new_block=partial(BasicBlock, padded=shortcut != SHORTCUTS[0]),
        )

    return build


def resnet50(*, num_classes: int, input_shape: Shape, width: float = 1.0) -> CifarResNet50:
    return CifarResNet50(num_classes=num_classes, input_shape=input_shape, width=width)


MODELS: dict[str, Callable[..., nn.Module]] = {
    **{f"resnet{depth}": _builder(depth, (16, 16, 32, 64)) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": _builder(depth, (32, 64, 128, 256)) for depth in (8, 32)},
    "resnet50": resnet50,
}
