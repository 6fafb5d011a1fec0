"""Do Deep Nets Really Need to be Deep? (Ba, Caruana 2014, arXiv 1312.6184): regression on the teacher's logits.

    L = 1 / (2 B) sum_n |s_n - z_n|^2        (equation 1)

The student uses no labels. It learns the logits, because the softmax makes the differences between small probabilities tiny.

Variant: `classes="mean"` averages the squares over the classes, 2 / C times the paper's loss, as some libraries do.
Deviations: `logit_weight` scales the loss; it is 1 in the paper, which can choose the learning rate for this loss. In a sweep
all methods share a learning rate that suits cross-entropy, so the default is 0.1, equivalent to a tenth of that rate, as in
`noisy_teacher`. Students of 1000 digits at a learning rate of 0.05: with weight 1 a perceptron diverges, with 0.1 it has 97.3%;
a LeNet is unstable with both; with gradients clipped at 5, both students train with both weights (96.7% to 98.4%).
`label_weight` adds the labels; 0 in the paper.

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
        deviations="the loss is scaled by logit_weight, 0.1 by default and 1 in the paper; labels can be added; the low-rank "
        "layer of section 3 is not part of the method, but of the student",
        suggested="logit_weight 1 with gradients clipped at 5; 0.01 to 0.1 without, at a learning rate for cross-entropy",
        interactions="gradients grow with the teacher's logits: a student without BatchNorm needs a lower learning rate or "
        "clipped gradients, whatever the weight",
    )

    logit_weight: float = hyperparameter(
        0.1, above=0, prior=LogUniform(0.01, 0.2), help="weight of the regression, 1 in the paper"
    )
    label_weight: float = hyperparameter(0.0, minimum=0, help="weight of the cross-entropy with the labels; 0 in the paper")
    classes: Literal["sum", "mean"] = hyperparameter(
        "sum", choices=("sum", "mean"), help="sum: half the sum of squares over classes; mean: their mean, 2 / C times as much"
    )

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        return {"logits": logits()}

    def loss(self, step: Step) -> dict[str, Tensor]:
        regression = logit_regression_loss if self.classes == "sum" else mean_logit_regression_loss
        terms = {"logit_regression": self.logit_weight * regression(step.logits, step.teacher["logits"])}
        if self.label_weight:
            terms["cross_entropy"] = self.label_weight * step.supervised()
        return terms
