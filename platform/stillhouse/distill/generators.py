"""Base class and generator of methods that train a student without data, on images that a generator makes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.distill.method import Helper, Method, Setup, Stage, Step, hyperparameter
from stillhouse.spec.priors import LogUniform

GENERATOR: Final = "generator"


class Generator(nn.Module):
    """Images [B, channels, H, W] of mean 0 and variance 1 from noise [B, `noise_size`].

    A linear layer with BatchNorm, twice a nearest-neighbour upsampling and a 3x3 convolution with BatchNorm and leaky ReLU, a
    last convolution, tanh, and a BatchNorm without weights, which makes the images like normalised ones. The maps have a
    quarter, a half and all of the image's size, rounded up. The layers are those of the data-free papers' generator
    (arXiv 1904.01186, 1912.11006).

    Args:
        num_channels: channels of the maps before the last convolution; earlier maps have twice as many.
    """

    def __init__(self, noise_size: int, num_channels: int, image_shape: tuple[int, ...]) -> None:
        super().__init__()
        channels, height, width = image_shape
        self._sizes = [(math.ceil(height / part), math.ceil(width / part)) for part in (4, 2, 1)]
        first_height, first_width = self._sizes[0]
        wide = 2 * num_channels
        self.first = nn.Sequential(
            nn.Linear(noise_size, wide * first_height * first_width),
            nn.Unflatten(1, (wide, first_height, first_width)),
            nn.BatchNorm2d(wide),
        )
        self.coarse = nn.Sequential(nn.Conv2d(wide, wide, 3, padding=1), nn.BatchNorm2d(wide), nn.LeakyReLU(0.2))
        self.fine = nn.Sequential(
            nn.Conv2d(wide, num_channels, 3, padding=1),
            nn.BatchNorm2d(num_channels),
            nn.LeakyReLU(0.2),
            nn.Conv2d(num_channels, channels, 3, padding=1),
            nn.Tanh(),
            nn.BatchNorm2d(channels, affine=False),
        )

    def forward(self, noise: Tensor) -> Tensor:
        maps = self.coarse(F.interpolate(self.first(noise), size=self._sizes[1]))
        images: Tensor = self.fine(F.interpolate(maps, size=self._sizes[2]))
        return images


@dataclass(frozen=True, kw_only=True)
class DataFreeMethod(Method):
    """Base class of methods whose student sees only generated images. Does nothing by itself.

    The length of the training is a number of generator steps, whatever the size of the data set. They are divided equally
    among the trial's epochs, at whose ends the student is evaluated.
    """

    calls_teacher: ClassVar[bool] = True
    brief: ClassVar[Mapping[str, Any]] = {"generator_steps": 16, "generated_batch": 32, "generator_channels": 8}

    generator_steps: int = hyperparameter(
        2000, minimum=1, help="updates of the generator in the whole training, rounded up to a multiple of the epochs"
    )
    generated_batch: int = hyperparameter(128, minimum=2, help="generated images per update; 256 to 1024 in the papers")
    generator_learning_rate: float = hyperparameter(
        1e-3, above=0, prior=LogUniform(1e-4, 1e-2), help="learning rate of the generator's optimiser, Adam"
    )
    noise_size: int = hyperparameter(100, minimum=1, help="length of z; 100 on MNIST and 256 or 1000 on CIFAR in the papers")
    generator_channels: int = hyperparameter(
        16, minimum=1, help="channels of the generator's last maps; 64 in the papers, which costs about 14 times as much"
    )

    @property
    def passes_per_step(self) -> int:
        """How many generated batches pass through the student in a step."""
        return 1

    def stages(self, setup: Setup) -> Sequence[Stage]:
        steps = math.ceil(self.generator_steps / setup.epochs)
        samples = self.passes_per_step * self.generated_batch
        return (Stage(epochs=setup.epochs, data_free=True, steps_per_epoch=steps, samples_per_step=samples),)

    def modules(self, setup: Setup) -> Mapping[str, Helper]:
        generator = Generator(self.noise_size, self.generator_channels, setup.student.input_shape)
        recipe = {"optimizer": "adam", "learning_rate": self.generator_learning_rate, "weight_decay": 0.0}
        return {GENERATOR: Helper(module=generator, training=recipe)}

    def generate(self, step: Step) -> Tensor:
        """A new batch of images, [generated_batch, channels, H, W], through which gradients flow to the generator."""
        return step.run_network(step.modules[GENERATOR], step.normal(self.generated_batch, self.noise_size))
