"""Training Shallow and Thin Networks for Acceleration via Knowledge Distillation with Conditional Adversarial Networks
(Xu, Hsu, Huang 2017, arXiv 1709.00513).

A discriminator D reads logits. It tells the teacher's (real) from the student's (fake), and predicts the class:

    L_A  = mean log P(real | t) + mean log P(fake | s)
    L_DS = mean log P(y | t) + mean log P(y | s)
    discriminator: max (L_A + L_DS) / 2
    student:       min CE(y, s) + l |s - t|_1 + a (L_A - L_DS) / 2

The student learns from the labels, from the teacher's logits (the sum over classes, the mean over the batch), and from a loss
that is learned: to be taken for the teacher, and to be classified by D as the teacher is. D is a multilayer perceptron with two
hidden layers. In each step D is updated first, then the student.

Deviations: D sees logits divided by the root mean square of the teacher's in the batch, so that its training does not depend on
how large a teacher's logits are; `scale: none` gives it the logits as they are.

No code was published, and the paper's text was not at hand: the losses follow reference case cgan-kd-formula, which was written
from it; the size of D and its learning rate are assumptions.

A step costs 1.1 times one of `kd` (resnet8 taught by resnet20, digits, one thread).

Verified against the numbers of that case, and its gradient for the student.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.distill.method import Card, Helper, Method, Setup, Step, Update, hyperparameter, sum_of_terms
from stillhouse.knowledge.kinds import Knowledge, logits
from stillhouse.models.architecture import Architecture
from stillhouse.spec.priors import LogUniform

_REAL, _FAKE = 0, 1


def origin_likelihood(judged_student: Tensor, judged_teacher: Tensor) -> Tensor:
    """L_A: the mean of log P(fake | s) plus that of log P(real | t).

    Args:
        judged_student: [B, 2], what the discriminator returns for the student's logits: scores of real and fake.
        judged_teacher: [B, 2].
    """
    fake, real = F.log_softmax(judged_student, dim=1)[:, _FAKE], F.log_softmax(judged_teacher, dim=1)[:, _REAL]
    return fake.mean() + real.mean()


def class_likelihood(judged_student: Tensor, judged_teacher: Tensor, targets: Tensor) -> Tensor:
    """L_DS: the mean of log P(y | s) plus that of log P(y | t).

    Args:
        judged_student: [B, C], what the discriminator returns for the student's logits: scores of the classes.
        judged_teacher: [B, C].
        targets: [B] int64, or probabilities [B, C] of mixed samples.
    """
    return -F.cross_entropy(judged_student, targets) - F.cross_entropy(judged_teacher, targets)


def logit_distance(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """|s - t|_1 of logits [B, C]: the sum over classes, the mean over the batch."""
    return (student_logits - teacher_logits).abs().sum(dim=1).mean()


class Discriminator(nn.Module):
    """Scores of the classes [B, C], then those of real and fake [B, 2], from logits [B, C]."""

    def __init__(self, num_classes: int, hidden: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.layers = nn.Sequential(
            nn.Linear(num_classes, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, num_classes + 2),
        )

    def forward(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.layers(logits)
        return scores[:, : self.num_classes], scores[:, self.num_classes :]


@dataclass(frozen=True, kw_only=True)
class ConditionalAdversarial(Method):
    """A discriminator on logits is the loss: the student learns to be taken for the teacher, and to be classified like it."""

    card: ClassVar[Card] = Card(
        title="Training Shallow and Thin Networks for Acceleration via Knowledge Distillation with Conditional Adversarial "
        "Networks",
        arxiv="1709.00513",
        family="M",
        equations="the losses of student and discriminator, from reference case cgan-kd-formula (no code was published)",
        deviations="the discriminator sees logits in units of the teacher's; its size and learning rate are assumptions",
        suggested="adversarial_weight 1; a smaller l1_weight where the teacher's logits are large",
        interactions="the distance of logits is a sum over classes, so with many classes it outweighs the labels; a "
        "step costs 1.1 times one of kd",
    )

    l1_weight: float = hyperparameter(
        1.0, minimum=0, prior=LogUniform(0.01, 3), help="l, weight of the distance to the teacher's logits"
    )
    adversarial_weight: float = hyperparameter(
        1.0, minimum=0, prior=LogUniform(0.1, 10), help="a, weight of the discriminator's part of the student's loss"
    )
    hidden: int = hyperparameter(64, minimum=1, help="size of both hidden layers of the discriminator")
    discriminator_learning_rate: float = hyperparameter(
        1e-3, above=0, prior=LogUniform(1e-4, 1e-2), help="learning rate of the discriminator's optimiser, Adam"
    )
    scale: Literal["teacher", "none"] = hyperparameter(
        "teacher",
        choices=("teacher", "none"),
        help="teacher: the discriminator sees logits divided by the root mean square of the teacher's in the batch",
    )

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        return {"logits": logits()} if self.l1_weight or self.adversarial_weight else {}

    def modules(self, setup: Setup) -> Mapping[str, Helper]:
        if not self.adversarial_weight:
            return {}
        recipe = {"optimizer": "adam", "learning_rate": self.discriminator_learning_rate, "weight_decay": 0.0}
        return {"discriminator": Helper(module=Discriminator(setup.student.num_classes, self.hidden), training=recipe)}

    def step(self, step: Step, update: Update) -> dict[str, Tensor]:
        terms = super().loss(step)
        if self.l1_weight:
            terms["l1"] = self.l1_weight * logit_distance(step.logits, step.teacher["logits"])
        judged: dict[str, Tensor] = {}
        if self.adversarial_weight:
            judged = self._train_discriminator(step, update)
            origin, classes = self._likelihoods(step, step.logits)
            terms["adversarial"] = self.adversarial_weight * (origin - classes) / 2
        update.minimise(sum_of_terms(terms), "student")
        return terms | judged

    def _train_discriminator(self, step: Step, update: Update) -> dict[str, Tensor]:
        origin, classes = self._likelihoods(step, step.logits.detach())
        loss = -(origin + classes) / 2
        update.minimise(loss, "discriminator")
        return {"discriminator": loss}

    def _likelihoods(self, step: Step, student_logits: Tensor) -> tuple[Tensor, Tensor]:
        """L_A and L_DS."""
        discriminator, teacher_logits = step.modules["discriminator"], step.teacher["logits"]
        if self.scale == "teacher":
            size = teacher_logits.square().mean().sqrt().clamp_min(torch.finfo(teacher_logits.dtype).eps)
            student_logits, teacher_logits = student_logits / size, teacher_logits / size
        (classes, origin), (teacher_classes, teacher_origin) = discriminator(student_logits), discriminator(teacher_logits)
        return origin_likelihood(origin, teacher_origin), class_likelihood(classes, teacher_classes, step.targets)
