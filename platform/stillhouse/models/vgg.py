"""VGG with batch normalisation for small images (Simonyan and Zisserman, arXiv 1409.1556).

Five blocks of 3x3 convolutions, a global average and one linear layer instead of three. Images below 64x64 skip the pooling
before the last block, like RepDistiller's models, whose parameter counts, MACs and names of the weights these have.
`block<i>` ends with a batch normalisation (the map before the ReLU), `relu<i>` is the stage's map.
"""

from collections.abc import Callable

from torch import Tensor, nn

from stillhouse.models.layers import GlobalAveragePool, Shape, initialise_convolutions, scaled

NewConvolution = Callable[[int, int], nn.Module]

# Convolutions per block; vgg8 comes from RepDistiller, the others are the paper's A, B, D and E.
BLOCKS = {
    "vgg8": (1, 1, 1, 1, 1),
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}


class VGG(nn.Module):
    """Args:
    num_convolutions: per block.
    channels: per block.
    new_convolution: (input channels, output channels) -> a module in place of every convolution but the first, with its batch
        normalisation and ReLU. Blocks then end after their ReLU, and no layer has the map before it.
    """

    pooled_layer = "pool4"

    def __init__(
        self,
        *,
        num_classes: int,
        input_shape: Shape,
        num_convolutions: tuple[int, ...],
        channels: tuple[int, ...],
        new_convolution: NewConvolution | None = None,
    ) -> None:
        super().__init__()
        pools_last = min(input_shape[1:]) >= 64
        self.stage_layers = tuple(f"relu{index}" for index in range(5) if pools_last or index != 3)
        self.preactivation_layers = (
            tuple(f"block{index}" for index in range(5) if pools_last or index != 3) if new_convolution is None else ()
        )
        inputs = (input_shape[0], *channels)
        self.block0, self.block1, self.block2, self.block3, self.block4 = (
            _block(inputs[index], channels[index], num_convolutions[index])
            if new_convolution is None
            else _block_of(new_convolution, inputs[index], channels[index], num_convolutions[index], first=index == 0)
            for index in range(5)
        )
        self.relu0, self.relu1, self.relu2, self.relu3, self.relu4 = (
            nn.ReLU() if new_convolution is None else nn.Identity() for _ in range(5)
        )
        # ceil_mode matters only for odd sides: a 1x1 map stays 1x1.
        self.pool0, self.pool1, self.pool2 = (nn.MaxPool2d(2, ceil_mode=True) for _ in range(3))
        self.pool3 = nn.MaxPool2d(2, ceil_mode=True) if pools_last else nn.Identity()
        self.pool4 = GlobalAveragePool()
        self.classifier = nn.Linear(channels[4], num_classes)
        initialise_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.pool0(self.relu0(self.block0(images)))
        maps = self.pool1(self.relu1(self.block1(maps)))
        maps = self.pool2(self.relu2(self.block2(maps)))
        maps = self.pool3(self.relu3(self.block3(maps)))
        logits: Tensor = self.classifier(self.pool4(self.relu4(self.block4(maps))))
        return logits


def _block(num_inputs: int, num_outputs: int, num_convolutions: int) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU, ... without the last ReLU."""
    layers: list[nn.Module] = []
    for _ in range(num_convolutions):
        layers += [nn.Conv2d(num_inputs, num_outputs, 3, padding=1), nn.BatchNorm2d(num_outputs), nn.ReLU()]
        num_inputs = num_outputs
    return nn.Sequential(*layers[:-1])


def _block_of(
    new_convolution: NewConvolution, num_inputs: int, num_outputs: int, num_convolutions: int, *, first: bool
) -> nn.Sequential:
    """As `_block` of other modules, with the last ReLU; the network's first convolution is an ordinary one."""
    layers: list[nn.Module] = []
    for number in range(num_convolutions):
        if first and number == 0:
            layers += [*_block(num_inputs, num_outputs, 1), nn.ReLU()]
        else:
            layers.append(new_convolution(num_inputs, num_outputs))
        num_inputs = num_outputs
    return nn.Sequential(*layers)


def _builder(num_convolutions: tuple[int, ...]) -> Callable[..., nn.Module]:
    def build(*, num_classes: int, input_shape: Shape, width: float = 1.0) -> VGG:
        channels = tuple(scaled(number, width) for number in (64, 128, 256, 512, 512))
        return VGG(num_classes=num_classes, input_shape=input_shape, num_convolutions=num_convolutions, channels=channels)

    return build


MODELS: dict[str, Callable[..., nn.Module]] = {name: _builder(blocks) for name, blocks in BLOCKS.items()}
