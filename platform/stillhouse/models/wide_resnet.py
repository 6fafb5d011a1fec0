"""Wide residual networks (Zagoruyko and Komodakis, arXiv 1605.07146): `wrn_<depth>_<widening factor>`.

Pre-activation blocks: batch normalisation and ReLU come before each convolution, so a stage's output is a plain sum. "The map
before the ReLU" in the literature is the next batch normalisation of that sum. Parameter counts, MACs and the
names of the weights are those of RepDistiller's models.
"""

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor, nn

from stillhouse.models.layers import Add, GlobalAveragePool, Shape, initialise_convolutions, scaled


class WideBlock(nn.Module):
    """BN-ReLU-conv-BN-ReLU-dropout-conv; a shortcut that changes the channels starts at the activated input."""

    def __init__(self, num_inputs: int, num_outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(num_inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(num_inputs, num_outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(num_outputs)
        self.relu2 = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(num_outputs, num_outputs, 3, padding=1, bias=False)
        # The name that published checkpoints use.
        self.convShortcut: nn.Module | None = None
        if num_inputs != num_outputs or stride != 1:
            self.convShortcut = nn.Conv2d(num_inputs, num_outputs, 1, stride=stride, bias=False)
        self.add = Add()

    def forward(self, maps: Tensor) -> Tensor:
        activated = self.relu1(self.bn1(maps))
        branch = self.conv2(self.dropout(self.relu2(self.bn2(self.conv1(activated)))))
        output: Tensor = self.add(branch, maps if self.convShortcut is None else self.convShortcut(activated))
        return output


class WideResNet(nn.Module):
    """6n+4 layers: a 3x3 stem and three groups of n wide blocks.

    Args:
        channels: of the stem and of the three groups.
    """

    stage_layers = ("block1", "block2", "block3")
    preactivation_layers = ("block2.layer.0.bn1", "block3.layer.0.bn1", "bn1")
    pooled_layer = "pool"

    def __init__(
        self, *, num_classes: int, input_shape: Shape, num_blocks: int, channels: tuple[int, int, int, int], dropout: float
    ) -> None:
        super().__init__()
        stem, first, second, third = channels
        self.conv1 = nn.Conv2d(input_shape[0], stem, 3, padding=1, bias=False)
        self.block1 = _group(stem, first, num_blocks, 1, dropout)
        self.block2 = _group(first, second, num_blocks, 2, dropout)
        self.block3 = _group(second, third, num_blocks, 2, dropout)
        self.bn1 = nn.BatchNorm2d(third)
        self.relu = nn.ReLU()
        self.pool = GlobalAveragePool()
        self.fc = nn.Linear(third, num_classes)
        initialise_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.block3(self.block2(self.block1(self.conv1(images))))
        logits: Tensor = self.fc(self.pool(self.relu(self.bn1(maps))))
        return logits


def _group(num_inputs: int, num_outputs: int, num_blocks: int, stride: int, dropout: float) -> nn.Sequential:
    first = WideBlock(num_inputs, num_outputs, stride, dropout)
    rest = (WideBlock(num_outputs, num_outputs, 1, dropout) for _ in range(num_blocks - 1))
    return nn.Sequential(OrderedDict(layer=nn.Sequential(first, *rest)))


def _builder(depth: int, widening: int) -> Callable[..., nn.Module]:
    def build(*, num_classes: int, input_shape: Shape, width: float = 1.0, dropout: float = 0.0) -> WideResNet:
        return WideResNet(
            num_classes=num_classes,
            input_shape=input_shape,
            num_blocks=(depth - 4) // 6,
            channels=(
                scaled(16, width),
                scaled(16 * widening, width),
                scaled(32 * widening, width),
                scaled(64 * widening, width),
            ),
            dropout=dropout,
        )

    return build


MODELS: dict[str, Callable[..., nn.Module]] = {
    f"wrn_{depth}_{widening}": _builder(depth, widening) for depth, widening in ((16, 1), (16, 2), (40, 1), (40, 2))
}
