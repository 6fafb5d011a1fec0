"""Paying More Attention to Attention (Zagoruyko, Komodakis 2017, arXiv 1612.03928): gradient-based attention transfer.

    J = d CE(softmax(z(x)), y) / dx, the network's sensitivity to each pixel             (equation 3)
    L = CE + w / 2 mean_n |J_student(x_n) - J_teacher(x_n)|_2                            (equation 4)

The teacher's J is computed at the teacher, in evaluation mode, with one number per pixel of a sample. The student's J is
differentiated once more to train it (equation 5), so a step costs about as much as three. y is the sample's own class in
both, also where a view mixes samples.

Reading: the paper gives the loss for one sample; `reading="batch"` takes the norm over the whole batch, of the gradient of the
batch's mean loss, which is smaller by about the square root of the batch size.
Deviations: none in the loss. The paper's flip symmetry (equation 6) needs no teacher and is not implemented. A student with
BatchNorm is differentiated through the statistics of its batch.

Verified against the formula in float64 on recorded networks, in both readings, with the gradients of all weights.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from stillhouse.distill.method import Card, Method, Step, hyperparameter
from stillhouse.knowledge.kinds import Knowledge, input_gradient
from stillhouse.models.architecture import Architecture
from stillhouse.spec.priors import LogUniform


def gradient_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """|J_s - J_t|_2, the mean over the batch; J are the gradients of each sample's own loss, [B, channels, H, W]."""
    distances: Tensor = torch.linalg.vector_norm((student - teacher).flatten(1), dim=1)
    return distances.mean()


def batch_gradient_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """|J_s - J_t|_2 over the whole batch; J are gradients of its mean loss, those of `gradient_distance` divided by B."""
    distance: Tensor = torch.linalg.vector_norm(student - teacher)
    return distance / len(student)


@dataclass(frozen=True, kw_only=True)
class GradientAttention(Method):
    """The student's loss is sensitive to the same pixels as the teacher's."""

    card: ClassVar[Card] = Card(
        title="Paying More Attention to Attention: Improving the Performance of CNNs via Attention Transfer",
        arxiv="1612.03928",
        family="F",
        equations="equations 3 to 5, gradient-based; the activation-based form is the method attention_transfer",
        deviations="a student with BatchNorm is differentiated through the statistics of its batch",
        suggested="gradient_weight 0.1, not from the paper: with 1 the accuracy was 82.8%, with 10 36.2%, without a teacher "
        "94.3% (12 epochs of 1000 digits, resnet8 of width 0.25, 2 seeds)",
        interactions="a step costs about as much as three; if the teacher fits the training images, its gradients are near 0 "
        "and the term only smooths the student; training.compile has no effect",
    )

    gradient_weight: float = hyperparameter(
        0.1, minimum=0, prior=LogUniform(0.003, 1), help="beta, weight of the distance between gradients"
    )
    reading: Literal["sample", "batch"] = hyperparameter(
        "sample",
        choices=("sample", "batch"),
        help="sample: mean of the norms of single samples; batch: norm over the whole batch",
    )

    @property
    def differentiates_images(self) -> bool:
        return self.gradient_weight > 0

    @property
    def needs_whole_batch(self) -> bool:
        return self.reading == "batch"

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        return {"gradient": input_gradient()} if self.gradient_weight else {}

    def loss(self, step: Step) -> dict[str, Tensor]:
        terms = super().loss(step)
        if self.gradient_weight:
            distance = gradient_distance if self.reading == "sample" else batch_gradient_distance
            terms["gradient"] = self.gradient_weight / 2 * distance(step.input_gradient(), step.teacher["gradient"])
        return terms
