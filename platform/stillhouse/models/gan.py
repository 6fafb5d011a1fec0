"""DCGAN: generators that turn noise into images, and the critic that tells real images from theirs (arXiv 1511.06434).

`dcgan` is a generator; `Critic` is its opponent in training. Both take images whose sides are even, in any number of channels:
a side is halved while it is even and larger than 7, so that 28x28 images grow from 7x7 maps and 32x32 images from 4x4.

Any network that reads noise and returns images is a `Generator`; a user's function returns one to take part in sweeps.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from stillhouse.models.layers import Shape, scaled

NOISE = 100
"""Numbers of the noise that a generator reads, as in the DCGAN paper."""

_SMALLEST = 7
_KERNEL = 4
_SLOPE = 0.2


class Generator(nn.Module):
    """Base class of generators: reads [B, noise + classes] and returns images [B, channels, H, W] in [-1, 1].

    Args:
        num_classes: of the data set.
        conditional: whether the class follows the noise, one number for each class.
        noise: how many numbers of noise it reads.
    """

    def __init__(self, *, num_classes: int, conditional: bool = False, noise: int = NOISE) -> None:
        super().__init__()
        self.num_outputs = num_classes
        self.num_inputs = noise + (num_classes if conditional else 0)

    def example_input(self, count: int) -> Tensor:
        weight = next(iter(self.parameters()), torch.empty(0))
        return torch.zeros(count, self.num_inputs, device=weight.device, dtype=weight.dtype)


class DCGAN(Generator):
    """A linear layer to the smallest map, then transposed convolutions that double it, each with BatchNorm and ReLU; tanh.

    Args:
        input_shape: of the images, (channels, height, width).
        channels: of the last map before the image; each earlier map has twice as many.

    Raises:
        ValueError: a side of the images is odd.
    """

    def __init__(self, *, num_classes: int, input_shape: Shape, channels: int, conditional: bool) -> None:
        super().__init__(num_classes=num_classes, conditional=conditional)
        sizes = _map_sizes(input_shape)
        widths = [channels * 2 ** (len(sizes) - 2 - place) for place in range(len(sizes) - 1)]
        height, width = sizes[0]
        self.first = nn.Sequential(
            nn.Linear(self.num_inputs, widths[0] * height * width, bias=False),
            nn.Unflatten(1, (widths[0], height, width)),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
        )
        self.growing = nn.ModuleList(
            nn.Sequential(_doubling(before, after, bias=False), nn.BatchNorm2d(after), nn.ReLU())
            for before, after in pairwise(widths)
        )
        self.last = nn.Sequential(_doubling(widths[-1], input_shape[0], bias=True), nn.Tanh())
        self.stage_layers = ("first", *(f"growing.{place}" for place in range(len(widths) - 1)))
        initialise(self)

    def forward(self, noise: Tensor) -> Tensor:
        maps = self.first(noise)
        for grow in self.growing:
            maps = grow(maps)
        images: Tensor = self.last(maps)
        return images


class Critic(nn.Module):
    """One number for each image [B, channels, H, W] in [-1, 1]: large where it looks real.

    Strided convolutions with leaky ReLU, and BatchNorm after all but the first; a linear layer.

    Args:
        channels: of the first map; each later map has twice as many.
        num_classes: of a conditional critic, which reads a weight for each class too; 0 otherwise.

    Raises:
        ValueError: a side of the images is odd.
    """

    def __init__(self, *, input_shape: Shape, channels: int, num_classes: int = 0) -> None:
        super().__init__()
        sizes = _map_sizes(input_shape)
        widths = [channels * 2**place for place in range(len(sizes) - 1)]
        layers: list[nn.Module] = []
        before = input_shape[0] + num_classes
        for place, after in enumerate(widths):
            layers.append(nn.Conv2d(before, after, _KERNEL, stride=2, padding=1, bias=place == 0))
            layers += [nn.BatchNorm2d(after)] if place else []
            layers.append(nn.LeakyReLU(_SLOPE))
            before = after
        height, width = sizes[0]
        self.maps = nn.Sequential(*layers)
        self.last = nn.Linear(before * height * width, 1)
        initialise(self)

    def forward(self, images: Tensor, classes: Tensor | None = None) -> Tensor:
        """[B] for images and, if the critic is conditional, weights of the classes [B, num_classes]."""
        if classes is not None:
            planes = classes[:, :, None, None].expand(-1, -1, *images.shape[2:])
            images = torch.cat([images, planes], 1)
        verdicts: Tensor = self.last(self.maps(images).flatten(1))
        return verdicts.squeeze(1)


def dcgan(*, num_classes: int, input_shape: Shape, width: float = 1.0, conditional: bool = False) -> DCGAN:
    """Maps of 128 and 64 channels times `width` for 28x28 images, of 256, 128 and 64 for 32x32; 759,681 parameters on 1x28x28.

    Args:
        conditional: whether it reads the class of each image too; for the task `conditional_generation`.
    """
    return DCGAN(num_classes=num_classes, input_shape=input_shape, channels=scaled(_CHANNELS, width), conditional=conditional)


def critic(*, input_shape: Shape, width: float = 1.0, num_classes: int = 0) -> Critic:
    """Maps of 64 channels times `width` and more."""
    return Critic(input_shape=input_shape, channels=scaled(_CHANNELS, width), num_classes=num_classes)


def initialise(model: nn.Module) -> None:
    """Normal weights of deviation 0.02 around 0, of BatchNorm around 1; biases 0: section 4 of the DCGAN paper."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(module.weight, 0.0, _DEVIATION)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, _DEVIATION)
            nn.init.zeros_(module.bias)


_CHANNELS = 64
_DEVIATION = 0.02


def _doubling(before: int, after: int, *, bias: bool) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(before, after, _KERNEL, stride=2, padding=1, bias=bias)


def _map_sizes(input_shape: Shape) -> list[tuple[int, int]]:
    """(height, width) of the maps of a generator, from the smallest to the image's own."""
    _, height, width = input_shape
    sizes = [(height, width)]
    while min(height, width) > _SMALLEST and height % 2 == 0 and width % 2 == 0:
        height, width = height // 2, width // 2
        sizes.insert(0, (height, width))
    if len(sizes) == 1:
        raise ValueError(
            f"images of {input_shape[1]}x{input_shape[2]} cannot be made by doubling smaller maps; "
            "their sides must be even and at least 8: set dataset.size"
        )
    return sizes


MODELS = {"dcgan": dcgan}
