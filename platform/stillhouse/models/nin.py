"""Network in Network (Lin, Chen and Yan, arXiv 1312.4400), the SVHN and CIFAR-10 teacher of arXiv 1610.09650.

Three mlpconv blocks: 5x5@192-1x1@160-1x1@96, max-pooling, 5x5@192-1x1@192-1x1@192, average pooling, 3x3@192-1x1@192-1x1@C,
global average pooling; dropout 0.5 after the two poolings. 966,986 parameters for 10 classes on 3x32x32, as published.

Two deviations. There is no ReLU on the logits, since a distillation loss needs their sign. And the last 1x1 convolution comes
after the global average instead of before it: the same function with the same parameters, computed at one position instead of
64, and with an embedding before the classifier.
"""

from collections import OrderedDict

from torch import Tensor, nn

from stillhouse.models.layers import GlobalAveragePool, Shape, initialise_convolutions, scaled


class NetworkInNetwork(nn.Module):
    """Three mlpconv blocks and a linear classifier on the pooled last map."""

    stage_layers = ("stage1", "stage2", "stage3")
    preactivation_layers = ("stage1.conv3", "stage2.conv3", "stage3.conv2")
    pooled_layer = "pool3"

    def __init__(self, *, num_classes: int, input_shape: Shape, width: float, dropout: float) -> None:
        super().__init__()
        n96, n160, n192 = (scaled(channels, width) for channels in (96, 160, 192))
        self.stage1 = _mlpconv(input_shape[0], 5, (n192, n160, n96))
        self.pool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.dropout1 = nn.Dropout(dropout)
        self.stage2 = _mlpconv(n96, 5, (n192, n192, n192))
        self.pool2 = nn.AvgPool2d(3, stride=2, ceil_mode=True)
        self.dropout2 = nn.Dropout(dropout)
        self.stage3 = _mlpconv(n192, 3, (n192, n192))
        self.pool3 = GlobalAveragePool()
        self.classifier = nn.Linear(n192, num_classes)
        initialise_convolutions(self, mode="fan_in")

    def forward(self, images: Tensor) -> Tensor:
        maps = self.dropout1(self.pool1(self.stage1(images)))
        maps = self.dropout2(self.pool2(self.stage2(maps)))
        logits: Tensor = self.classifier(self.pool3(self.stage3(maps)))
        return logits


def _mlpconv(num_inputs: int, kernel_size: int, channels: tuple[int, ...]) -> nn.Sequential:
    """One spatial convolution and 1x1 convolutions, each followed by a ReLU."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, num_outputs in enumerate(channels, start=1):
        layers[f"conv{number}"] = nn.Conv2d(num_inputs, num_outputs, kernel_size, padding=kernel_size // 2)
        layers[f"relu{number}"] = nn.ReLU()
        num_inputs, kernel_size = num_outputs, 1
    return nn.Sequential(layers)


def nin(*, num_classes: int, input_shape: Shape, width: float = 1.0, dropout: float = 0.5) -> NetworkInNetwork:
    return NetworkInNetwork(num_classes=num_classes, input_shape=input_shape, width=width, dropout=dropout)


MODELS = {"nin": nin}
