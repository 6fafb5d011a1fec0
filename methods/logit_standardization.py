"""Logit Standardization in Knowledge Distillation (Sun, Ren, Li, Wang, Cao 2024, arXiv 2403.01427), with KD as in the paper.

    Z(z) = (z - mean(z)) / std(z)        (over the classes of one sample; algorithm 1)
    L = lambda_CE CE(y, softmax(s)) + lambda_KD T^2 KL(softmax(Z(t) / T) || softmax(Z(s) / T))

Each network gets a temperature of its own for each sample, T std(z): the student need not reach the size of the teacher's
logits, only their relations.

std divides by the number of classes, as in the paper's algorithm; the authors' and others' code divides by one less
(`deviation="sample"`), with C classes the same as a temperature sqrt((C - 1) / C) times as high. Logits that are all equal
standardise to zeros.

Verified against the numbers of torchdistill in the `sample` form.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from stillhouse.distill.method import Card, Method, Step, hyperparameter
from stillhouse.knowledge.kinds import Knowledge, logits
from stillhouse.methods.kd import kd_loss
from stillhouse.models.architecture import Architecture
from stillhouse.spec.priors import LogUniform

_EPSILON = 1e-7
"""The authors' code's guard against logits that are all equal."""


def standardize(logits: Tensor, deviation: str = "population") -> Tensor:
    """(z - mean) / std of each row of [B, C].

    Args:
        logits: z; the result does not change when they are shifted or scaled by a positive number.
        deviation: "population" divides the squares by C, "sample" by C - 1.
    """
    std = logits.std(dim=1, keepdim=True, correction=1 if deviation == "sample" else 0)
    return (logits - logits.mean(dim=1, keepdim=True)) / (std + _EPSILON)


@dataclass(frozen=True, kw_only=True)
class LogitStandardization(Method):
    """KD on standardised logits."""

    card: ClassVar[Card] = Card(
        title="Logit Standardization in Knowledge Distillation",
        arxiv="2403.01427",
        family="L",
        equations="algorithm 1 with the KL divergence",
        deviations="none by default; the authors' code divides by C - 1",
        suggested="temperature 2 to 3, kd_weight 9, label_weight 0.1 on CIFAR-100",
        interactions="the student's outputs are not calibrated like the teacher's, since their size is free",
    )

    temperature: float = hyperparameter(2.0, above=0, prior=LogUniform(1, 6), help="T, in standard deviations of the logits")
    kd_weight: float = hyperparameter(9.0, minimum=0, prior=LogUniform(0.5, 20), help="lambda_KD, of the teacher's outputs")
    label_weight: float = hyperparameter(0.1, minimum=0, prior=LogUniform(0.05, 1), help="lambda_CE, of the labels")
    deviation: Literal["population", "sample"] = hyperparameter(
        "population", choices=("population", "sample"), help="whether the squares are divided by C or by C - 1"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.kd_weight and not self.label_weight:
            raise ValueError("kd_weight and label_weight are both 0, nothing would be learned; give one of them a weight")

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        return {"logits": logits()} if self.kd_weight else {}

    def loss(self, step: Step) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        if self.label_weight:
            terms["cross_entropy"] = self.label_weight * step.supervised()
        if self.kd_weight:
            student, teacher = (standardize(given, self.deviation) for given in (step.logits, step.teacher["logits"]))
            terms["kd"] = self.kd_weight * kd_loss(student, teacher, self.temperature)
        return terms
