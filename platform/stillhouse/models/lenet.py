"""LeNets: two 5x5 convolutions with 2x2 max-pooling, then fully connected layers.

`lenet` is LeNet-5 (LeCun et al., "Gradient-based learning applied to document recognition", 1998) in its present form:
ReLU and max-pooling instead of scaled tanh and trainable subsampling, and full connections between the two convolutions. The
first convolution pads 28x28 images to 32x32.

`noisy_lenet` and `modified_lenet` are the LeNets of the noisy-teachers paper (arXiv 1610.09650): the teacher for MNIST and
the student for SVHN and CIFAR-10. The paper only names them; the layers are an assumption, those in common use for these names:
20-50-500 (the LeNet that ships with Caffe: 431,080 parameters on MNIST) and 64-128-1024 with padding.

If images are too small for a 5x5 convolution without padding, both convolutions pad. Maps that are larger than the published
ones are averaged down before the fully connected layers, so that 96x96 images do not multiply the parameters.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from stillhouse.models.layers import Shape, hidden_layers, initialise_convolutions, scaled


class LeNet(nn.Module):
    """Two convolutions, `len(hidden)` hidden layers, each followed by dropout, and a classifier.

    Args:
        channels: of the two convolutions.
        hidden: sizes of the fully connected hidden layers.
        paddings: of the two convolutions.
        largest_map: the largest side of a last map that is not averaged down.
    """

    stage_layers = ("relu1", "relu2")
    preactivation_layers = ("conv1", "conv2")

    def __init__(
        self,
        *,
        num_classes: int,
        input_shape: Shape,
        channels: tuple[int, int],
        hidden: Sequence[int],
        paddings: tuple[int, int],
        largest_map: int,
        dropout: float,
    ) -> None:
        super().__init__()
        sides = [_side(side, paddings) for side in input_shape[1:]]
        if min(sides) < 1:
            raise ValueError(f"images of {input_shape[1]}x{input_shape[2]} are too small for two 2x2 poolings")
        shrink = max(1, min(sides) // largest_map)
        num_features = channels[1] * (sides[0] // shrink) * (sides[1] // shrink)
        self.conv1 = nn.Conv2d(input_shape[0], channels[0], kernel_size=5, padding=paddings[0])
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(channels[0], channels[1], kernel_size=5, padding=paddings[1])
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.shrink = nn.AvgPool2d(shrink) if shrink > 1 else nn.Identity()
        self.flatten = nn.Flatten()
        self.hidden = hidden_layers(num_features, hidden, dropout)
        self.classifier = nn.Linear(hidden[-1], num_classes)
        self.pooled_layer = f"hidden.relu{len(hidden)}"
        initialise_convolutions(self, mode="fan_in")

    def forward(self, images: Tensor) -> Tensor:
        maps = self.pool1(self.relu1(self.conv1(images)))
        maps = self.pool2(self.relu2(self.conv2(maps)))
        logits: Tensor = self.classifier(self.hidden(self.flatten(self.shrink(maps))))
        return logits


def _side(side: int, paddings: tuple[int, int]) -> int:
    """The side of the map after two 5x5 convolutions and two 2x2 poolings."""
    for padding in paddings:
        side = (side + 2 * padding - 4) // 2
    return side


def lenet(*, num_classes: int, input_shape: Shape, width: float = 1.0, dropout: float = 0.0) -> LeNet:
    """LeNet-5 with ReLU: 6-16-120-84; 61,706 parameters for 10 classes on 1x28x28 and on 1x32x32."""
    side = min(input_shape[1:])
    return LeNet(
        num_classes=num_classes,
        input_shape=input_shape,
        channels=(scaled(6, width), scaled(16, width)),
        hidden=(scaled(120, width), scaled(84, width)),
        paddings=(0, 0) if side >= 32 else (2, 0) if side >= 28 else (2, 2),
        largest_map=5,
        dropout=dropout,
    )


def noisy_lenet(*, num_classes: int, input_shape: Shape, width: float = 1.0, dropout: float = 0.0) -> LeNet:
    """The MNIST teacher of the noisy-teachers paper: 20-50-500."""
    return LeNet(
        num_classes=num_classes,
        input_shape=input_shape,
        channels=(scaled(20, width), scaled(50, width)),
        hidden=(scaled(500, width),),
        paddings=(0, 0) if min(input_shape[1:]) >= 28 else (2, 2),
        largest_map=5,
        dropout=dropout,
    )


def modified_lenet(*, num_classes: int, input_shape: Shape, width: float = 1.0, dropout: float = 0.0) -> LeNet:
    """The SVHN and CIFAR-10 student of the noisy-teachers paper: 64-128-1024 with padding."""
    return LeNet(
        num_classes=num_classes,
        input_shape=input_shape,
        channels=(scaled(64, width), scaled(128, width)),
        hidden=(scaled(1024, width),),
        paddings=(2, 2),
        largest_map=8,
        dropout=dropout,
    )


MODELS = {"lenet": lenet, "noisy_lenet": noisy_lenet, "modified_lenet": modified_lenet}
