"""The plain convolutional network of many tutorials: two 3x3 convolutions, each pooled, and a hidden layer.

64 and 128 maps, 2x2 max-pooling after each, a hidden layer of 1,024. Convolutions pad, so images of 28x28 give maps of 7x7.
Larger last maps than 8x8 are averaged down, so that large images do not multiply the parameters.
"""

from torch import Tensor, nn

from stillhouse.models.layers import Shape, hidden_layers, initialise_convolutions, scaled

_LARGEST_MAP = 8


class CNN(nn.Module):
    """Two convolutions, a hidden layer that is followed by dropout, and a classifier.

    Args:
        channels: of the two convolutions.
        hidden: size of the hidden layer.
    """

    stage_layers = ("relu1", "relu2")
    preactivation_layers = ("conv1", "conv2")
    pooled_layer = "hidden.relu1"

    def __init__(self, *, num_classes: int, input_shape: Shape, channels: tuple[int, int], hidden: int, dropout: float) -> None:
        super().__init__()
        height, width = (side // 4 for side in input_shape[1:])
        if min(height, width) < 1:
            raise ValueError(f"images of {input_shape[1]}x{input_shape[2]} are too small for two 2x2 poolings")
        shrink = max(1, min(height, width) // _LARGEST_MAP)
        self.conv1 = nn.Conv2d(input_shape[0], channels[0], kernel_size=3, padding=1)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(channels[0], channels[1], kernel_size=3, padding=1)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.shrink = nn.AvgPool2d(shrink) if shrink > 1 else nn.Identity()
        self.flatten = nn.Flatten()
        self.hidden = hidden_layers(channels[1] * (height // shrink) * (width // shrink), (hidden,), dropout)
        self.classifier = nn.Linear(hidden, num_classes)
        initialise_convolutions(self, mode="fan_in")

    def forward(self, images: Tensor) -> Tensor:
        maps = self.pool1(self.relu1(self.conv1(images)))
        maps = self.pool2(self.relu2(self.conv2(maps)))
        logits: Tensor = self.classifier(self.hidden(self.flatten(self.shrink(maps))))
        return logits


def cnn(*, num_classes: int, input_shape: Shape, width: float = 1.0, dropout: float = 0.0) -> CNN:
    """64 and 128 maps and a hidden layer of 1,024, each times `width`; 6,508,298 parameters for 10 classes on 1x28x28."""
    return CNN(
        num_classes=num_classes,
        input_shape=input_shape,
        channels=(scaled(64, width), scaled(128, width)),
        hidden=scaled(1024, width),
        dropout=dropout,
    )


MODELS = {"cnn": cnn}
