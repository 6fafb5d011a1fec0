"""Do Deep Nets Really Need to be Deep? (Ba, Caruana 2014, arXiv 1312.6184): regression on the teacher's logits.

    L = 1 / (2 B) sum_n |s_n - z_n|^2        (equation 1)

The student sees no labels: the logits say what the teacher knows without passing through the softmax, which squeezes the
differences between small probabilities.

Variant: `classes="mean"` averages the squares over the classes, 2 / C times the paper's loss, as some libraries do.
Deviations: `logit_weight` scales the loss, 1 in the paper. The paper can choose the learning rate for this loss; in a sweep all
methods share one that suits cross-entropy, so the default of 0.1 stands for a tenth of it, as in `noisy_teacher`. Students of
1000 digits at a rate of 0.05: a perceptron diverges at 1 and has 97.3% at 0.1; a LeNet is unstable at both; with gradients
clipped at 5, both weights train both students (96.7% to 98.4%). `label_weight` adds the labels; 0 in the paper.

Verified against the value of the paper's formula and the numbers of Knowledge-Distillation-Zoo.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from stillhouse.distill.method import Card, Method, Step, hyperparameter
from stillhouse.knowledge.kinds import Knowledge, logits
from stillhouse.methods.noisy_teacher import logit_regression_loss
from stillhouse.models.architecture import Architecture
from stillhouse.spec.priors import LogUniform


def mean_logit_regression_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """(s - z)^2, the mean over batch and classes; both are [B, C]."""
    return F.mse_loss(student_logits, teacher_logits)


@dataclass(frozen=True, kw_only=True)
class LogitRegression(Method):
    """The student regresses the teacher's logits."""

    card: ClassVar[Card] = Card(
        title="Do Deep Nets Really Need to be Deep?",
        arxiv="1312.6184",
        family="L",
        equations="equation 1",
        deviations="the loss is scaled by logit_weight, 0.1 by default and 1 in the paper; the labels may be added; the "
        "low-rank layer of section 3 is the student's affair",
        suggested="logit_weight 1 with gradients clipped at 5; 0.01 to 0.1 without, at a rate made for cross-entropy",
        interactions="gradients grow with the teacher's logits: a student without BatchNorm wants a lower rate or clipped "
        "gradients, whatever the weight",
    )

    logit_weight: float = hyperparameter(
        0.1, above=0, prior=LogUniform(0.01, 0.2), help="scale of the regression, 1 in the paper"
    )
    label_weight: float = hyperparameter(0.0, minimum=0, help="scale of the cross-entropy with the labels; 0 in the paper")
    classes: Literal["sum", "mean"] = hyperparameter(
        "sum", choices=("sum", "mean"), help="sum: half the squares' sum; mean: their mean, 2 / C times that"
    )

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        return {"logits": logits()}

    def loss(self, step: Step) -> dict[str, Tensor]:
        regression = logit_regression_loss if self.classes == "sum" else mean_logit_regression_loss
        terms = {"logit_regression": self.logit_weight * regression(step.logits, step.teacher["logits"])}
        if self.label_weight:
            terms["cross_entropy"] = self.label_weight * step.supervised()
        return terms
