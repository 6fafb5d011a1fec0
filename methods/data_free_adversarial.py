"""Data-Free Adversarial Distillation (Fang, Song, Shen, Wang, Chen, Song 2019, arXiv 1912.11006).

    D(G; S) = E_z mean_c |T(G(z))_c - S(G(z))_c|,   z ~ N(0, 1)         (model discrepancy, on logits)
    student:    min_S D, for `student_steps` batches;   generator:   max_G D, for one         (algorithm 1)

A generator makes images on which student and teacher disagree most, and the student learns to agree on them. No image and no
label of the data set is used. The generator is a linear layer with BatchNorm, twice a nearest-neighbour upsampling and a 3x3
convolution with BatchNorm and leaky ReLU, a last convolution, tanh, and a BatchNorm without weights. So its images have mean 0
and variance 1 in each channel, like normalised images.

Deviations: any image size (the generator's maps have half and a quarter of it, rounded up). An epoch has as many generator
steps as supervised training has batches; in the paper it has 50.

Verified against the numbers of the authors' code (reference case dfad-official), values computed by hand and the update rule.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.distill.method import Card, Helper, Method, Setup, Stage, Step, Update, hyperparameter
from stillhouse.spec.priors import Choice, LogUniform


def discrepancy(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """The mean of |t - s| over batch and classes of logits [B, C]; 0 for equal logits; its gradient is bounded."""
    return F.l1_loss(student_logits, teacher_logits)


def generator_loss(disagreement: Tensor, form: str) -> Tensor:
    """The generator's loss: -D (`linear`), or -log(1 + D) (`log`), whose gradient is small where D is large."""
    return -disagreement if form == "linear" else -torch.log1p(disagreement)


class Generator(nn.Module):
    """Images [B, channels, H, W] of mean 0 and variance 1 from noise [B, `noise_size`].

    Args:
        num_channels: channels of the maps before the last convolution; earlier maps have twice as many.
    """

    def __init__(self, noise_size: int, num_channels: int, image_shape: tuple[int, int, int]) -> None:
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
class DataFreeAdversarial(Method):
    """The student learns to agree with the teacher on images that a generator makes to maximise their disagreement."""

    card: ClassVar[Card] = Card(
        title="Data-Free Adversarial Distillation",
        arxiv="1912.11006",
        family="A",
        equations="the model discrepancy and algorithm 1",
        deviations="any image size; an epoch is as long as a supervised one",
        suggested="batches of 256 to 512 and many epochs: the paper has 2000 generator steps on MNIST, 25000 on CIFAR-10",
        interactions="student_steps + 1 passes of teacher and student per batch; views and labels have no effect; the "
        "student's BatchNorm statistics come from generated images",
    )
    calls_teacher: ClassVar[bool] = True

    student_steps: int = hyperparameter(5, minimum=1, help="student updates, each on a new batch, per generator update")
    generator_form: str = hyperparameter(
        "linear",
        choices=("linear", "log"),
        prior=Choice(("linear", "log")),
        help="the generator minimises -D (linear) or -log(1 + D) (log)",
    )
    generator_learning_rate: float = hyperparameter(
        1e-3, above=0, prior=LogUniform(1e-4, 1e-2), help="learning rate of the generator's optimiser, Adam"
    )
    noise_size: int = hyperparameter(100, minimum=1, help="length of z; 100 on MNIST and 256 on CIFAR in the paper")
    generator_channels: int = hyperparameter(64, minimum=1, help="channels of the generator's last maps")

    def stages(self, setup: Setup) -> Sequence[Stage]:
        return (Stage(epochs=setup.epochs, data_free=True),)

    def modules(self, setup: Setup) -> Mapping[str, Helper]:
        generator = Generator(self.noise_size, self.generator_channels, setup.student.input_shape)
        recipe = {
            "optimizer": "adam",
            "learning_rate": self.generator_learning_rate,
            "weight_decay": 0.0,
        }
        return {"generator": Helper(module=generator, training=recipe)}

    def step(self, step: Step, update: Update) -> dict[str, Tensor]:
        generator = step.modules["generator"]
        size = len(step.indices)
        losses = []
        for _ in range(self.student_steps):
            with torch.no_grad():
                made = step.run_network(generator, step.normal(size, self.noise_size))
                teacher_logits = step.call_teacher(made)
            losses.append(discrepancy(step.run_network(step.student, made), teacher_logits))
            update.minimise(losses[-1], "student")
        made = step.run_network(generator, step.normal(size, self.noise_size))
        disagreement = discrepancy(step.run_network(step.student, made), step.call_teacher(made))
        update.minimise(generator_loss(disagreement, self.generator_form), "generator")
        return {"discrepancy": torch.stack([loss.detach() for loss in losses]).mean()}
