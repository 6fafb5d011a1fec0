"""Data-Free Adversarial Distillation (Fang, Song, Shen, Wang, Chen, Song 2019, arXiv 1912.11006).

    D(G; S) = E_z mean_c |T(G(z))_c - S(G(z))_c|,   z ~ N(0, 1)         (model discrepancy, on logits)
    student:    min_S D, for `student_steps` batches;   generator:   max_G D, for one         (algorithm 1)

A generator makes images on which student and teacher disagree most, and the student learns to agree on them. No image and no
label of the data set is used. The generator is that of `stillhouse.distill.generators`, shared with `data_free_learning`: its
images have mean 0 and variance 1 in each channel, like normalised images.

Deviations: any image size; a generator of 16 channels and batches of 128 by default (64, and 256 to 512, in the paper); the
student's optimiser is the trial's (the authors' code: SGD with 0.01 on MNIST and 0.1 on CIFAR); learning rates follow the
trial's schedule.

The student needs several updates for each of the generator's, as in the paper. After 376 generator steps with batches of 64, a
ResNet-8 of width 0.25 has 95.7 % validation accuracy with 5 student steps, and 25.0 % with 1 (digits, taught by a ResNet-14 of
98.3 %, a rate of 0.05, one seed). A rate of 0.1 with SGD was too high for a LeNet on MNIST, with batches of 64: 16 % after 195
generator steps, against 33 % after 90 at a rate of 0.05 and 34 % at 0.01.

A generator step costs 6.7 times a step of `kd` at batches of equal size (resnet8 taught by resnet20, digits, one thread).

Verified against the numbers of the authors' code (reference case dfad-official), values computed by hand and the update rule.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from stillhouse.distill.generators import GENERATOR, DataFreeMethod
from stillhouse.distill.method import Card, Step, Update, hyperparameter
from stillhouse.spec.priors import Choice


def discrepancy(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """The mean of |t - s| over batch and classes of logits [B, C]; 0 for equal logits; its gradient is bounded."""
    return F.l1_loss(student_logits, teacher_logits)


def generator_loss(disagreement: Tensor, form: str) -> Tensor:
    """The generator's loss: -D (`linear`), or -log(1 + D) (`log`), whose gradient is small where D is large."""
    return -disagreement if form == "linear" else -torch.log1p(disagreement)


@dataclass(frozen=True, kw_only=True)
class DataFreeAdversarial(DataFreeMethod):
    """The student learns to agree with the teacher on images that a generator makes to maximise their disagreement."""

    card: ClassVar[Card] = Card(
        title="Data-Free Adversarial Distillation",
        arxiv="1912.11006",
        family="A",
        equations="the model discrepancy and algorithm 1",
        deviations="any image size; a smaller generator and smaller batches by default (64 channels, 256 to 512 images in the "
        "paper); the trial's optimiser",
        suggested="2000 generator steps on MNIST, 25000 on CIFAR-10 with 64 channels and batches of 256 (authors' code); a "
        "learning rate of 0.01 to 0.1 with SGD",
        interactions="with one student step per generator step the student stays far behind (digits: 25.0 % instead of "
        "95.7 %); a generator step costs 6.7 times a step of kd at batches of equal size; views and labels have no effect; "
        "the student's BatchNorm statistics come from generated images",
    )
    revision: ClassVar[int] = 2

    student_steps: int = hyperparameter(5, minimum=1, help="student updates, each on a new batch, per generator update")
    generator_form: str = hyperparameter(
        "linear",
        choices=("linear", "log"),
        prior=Choice(("linear", "log")),
        help="the generator minimises -D (linear) or -log(1 + D) (log)",
    )

    @property
    def passes_per_step(self) -> int:
        return self.student_steps + 1

    def step(self, step: Step, update: Update) -> dict[str, Tensor]:
        losses = []
        for _ in range(self.student_steps):
            with torch.no_grad():
                images = self.generate(step)
                teacher_logits = step.call_teacher(images)
            losses.append(discrepancy(step.run_network(step.student, images), teacher_logits))
            update.minimise(losses[-1], "student")
        images = self.generate(step)
        disagreement = discrepancy(step.run_network(step.student, images), step.call_teacher(images))
        update.minimise(generator_loss(disagreement, self.generator_form), GENERATOR)
        return {"discrepancy": torch.stack([loss.detach() for loss in losses]).mean()}
