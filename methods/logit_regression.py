"""Do Deep Nets Really Need to be Deep? (Ba, Caruana 2014, arXiv 1312.6184): regression on the teacher's logits.

    L = 1 / (2 B) sum_n |s_n - z_n|^2        (equation 1)

The student uses no labels. It learns the logits, because the softmax makes the differences between small probabilities tiny.

Variant: `classes="mean"` averages the squares over the classes, 2 / C times the paper's loss, as some libraries do.
Training: as in `noisy_teacher`, the norm of the gradients is bounded by 5, so that the paper's weight, 1, trains at a
learning rate that suits cross-entropy. Validation accuracy in % of students of 1,257 digits, 12 epochs at a rate of 0.05,
mean of 2 seeds (`scratch`: 95.4, 95.3, 97.7):

    logit_weight, bound    mlp          lenet        resnet8
    1, 5                   97.5         96.1         98.0
    0.1, 5                 94.9         94.2         97.6
    0.1, none              94.9         71.4         97.8
    1, none                at chance    at chance    97.3

Deviations: `label_weight` adds the labels; 0 in the paper.

Verified against the value of the paper's formula and the numbers of Knowledge-Distillation-Zoo.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from stillhouse.distill.method import Card, Method, Setup, Stage, Step, hyperparameter
from stillhouse.knowledge.kinds import Knowledge, logits
from stillhouse.methods.noisy_teacher import GRADIENT_CLIP, logit_regression_loss
from stillhouse.models.architecture import Architecture
from stillhouse.spec.priors import LogUniform


def mean_logit_regression_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """(s - z)^2, the mean over batch and classes, of logits [B, C]."""
    return F.mse_loss(student_logits, teacher_logits)


@dataclass(frozen=True, kw_only=True)
class LogitRegression(Method):
    """The student learns the teacher's logits by regression."""

    card: ClassVar[Card] = Card(
        title="Do Deep Nets Really Need to be Deep?",
        arxiv="1312.6184",
        family="L",
        equations="equation 1",
        deviations="gradients are bounded by 5, so that the paper's weight trains at a learning rate for cross-entropy; labels "
        "can be added; the low-rank layer of section 3 is not part of the method, but of the student",
        suggested="logit_weight 1, the paper's; 0.1 trains more slowly (digits, 12 epochs: an mlp has 94.9% instead of 97.5%)",
        interactions="gradients grow with the teacher's logits",
    )

    revision: ClassVar[int] = 2

    logit_weight: float = hyperparameter(
        1.0, above=0, prior=LogUniform(0.01, 2), help="weight of the regression, 1 in the paper"
    )
    label_weight: float = hyperparameter(0.0, minimum=0, help="weight of the cross-entropy with the labels; 0 in the paper")
    classes: Literal["sum", "mean"] = hyperparameter(
        "sum", choices=("sum", "mean"), help="sum: half the sum of squares over classes; mean: their mean, 2 / C times as much"
    )

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        return {"logits": logits()}

    def stages(self, setup: Setup) -> Sequence[Stage]:
        return (Stage(epochs=setup.epochs, gradient_clip=GRADIENT_CLIP),)

    def loss(self, step: Step) -> dict[str, Tensor]:
        regression = logit_regression_loss if self.classes == "sum" else mean_logit_regression_loss
        terms = {"logit_regression": self.logit_weight * regression(step.logits, step.teacher["logits"])}
        if self.label_weight:
            terms["cross_entropy"] = self.label_weight * step.supervised()
        return terms
