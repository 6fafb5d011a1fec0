"""MobileNetV2 (Sandler et al., arXiv 1801.04381) for small images.

Like RepDistiller's model, with its parameter counts, MACs and names of the weights: the stem has stride 2, the second
stage stride 1, and activations are ReLU, not ReLU6. `width` is 1.0 in the paper and 0.5 for the
student of the distillation literature. The last 1x1 convolution has 1280 channels at every width up to 1, as in the paper.
"""

from torch import Tensor, nn

from stillhouse.models.layers import Add, GlobalAveragePool, Shape, initialise_convolutions, scaled

# Expansion, channels, blocks and first stride of each stage: the paper's table 2, with the strides of the CIFAR variant.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 linear projection; a shortcut if the shape does not change."""

    def __init__(self, num_inputs: int, num_outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        middle = num_inputs * expansion
        self.conv = nn.Sequential(
            nn.Conv2d(num_inputs, middle, 1, bias=False),
            nn.BatchNorm2d(middle),
            nn.ReLU(),
            nn.Conv2d(middle, middle, 3, stride=stride, padding=1, groups=middle, bias=False),
            nn.BatchNorm2d(middle),
            nn.ReLU(),
            nn.Conv2d(middle, num_outputs, 1, bias=False),
            nn.BatchNorm2d(num_outputs),
        )
        self.add = Add() if stride == 1 and num_inputs == num_outputs else None

    def forward(self, maps: Tensor) -> Tensor:
        branch: Tensor = self.conv(maps)
        output: Tensor = branch if self.add is None else self.add(branch, maps)
        return output


class MobileNetV2(nn.Module):
    """The last map of each resolution is a stage; blocks end linearly, so stages have no map before a ReLU."""

    stage_layers = ("blocks.1", "blocks.2", "blocks.4", "blocks.6")
    preactivation_layers = stage_layers
    pooled_layer = "pool"

    def __init__(self, *, num_classes: int, input_shape: Shape, width: float) -> None:
        super().__init__()
        channels = scaled(32, width)
        self.conv1 = _convolution(input_shape[0], channels, kernel_size=3, stride=2)
        stages = []
        for expansion, unscaled, num_blocks, stride in _STAGES:
            num_outputs = scaled(unscaled, width)
            first = InvertedResidual(channels, num_outputs, stride, expansion)
            rest = (InvertedResidual(num_outputs, num_outputs, 1, expansion) for _ in range(num_blocks - 1))
            stages.append(nn.Sequential(first, *rest))
            channels = num_outputs
        self.blocks = nn.Sequential(*stages)
        last = scaled(1280, max(width, 1.0))
        self.conv2 = _convolution(channels, last, kernel_size=1, stride=1)
        self.pool = GlobalAveragePool()
        self.classifier = nn.Sequential(nn.Linear(last, num_classes))
        initialise_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv2(self.blocks(self.conv1(images)))
        logits: Tensor = self.classifier(self.pool(maps))
        return logits


def _convolution(num_inputs: int, num_outputs: int, *, kernel_size: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(num_inputs, num_outputs, kernel_size, stride=stride, padding=kernel_size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(num_outputs), nn.ReLU())


def mobilenet_v2(*, num_classes: int, input_shape: Shape, width: float = 1.0) -> MobileNetV2:
    return MobileNetV2(num_classes=num_classes, input_shape=input_shape, width=width)


MODELS = {"mobilenet_v2": mobilenet_v2}
