"""Logit Standardization in Knowledge Distillation (Sun, Ren, Li, Wang, Cao 2024, arXiv 2403.01427), with KD as in the paper.

    Z(z) = (z - mean(z)) / std(z)        (over the classes of one sample; algorithm 1)
    L = lambda_CE CE(y, softmax(s)) + lambda_KD T^2 KL(softmax(Z(t) / T) || softmax(Z(s) / T))

Each network has its own temperature for each sample, T std(z). So the student need not reach the scale of the teacher's logits,
only their relations.

std divides by the number of classes C, as in the paper's algorithm. The authors' code and others divide by C - 1
(`deviation="sample"`), which is the same as a temperature sqrt((C - 1) / C) times as high. If all logits of a sample are equal,
the result is 0.

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
"""Added to the deviation as in the authors' code, for samples whose logits are all equal."""


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
        deviations="none by default; the authors' code divides by C - 1 (deviation: sample)",
        suggested="temperature 2 to 3, kd_weight 9, label_weight 0.1 on CIFAR-100",
        interactions="the student's probabilities are not calibrated like the teacher's, since the scale of its logits is free",
    )

    temperature: float = hyperparameter(
        2.0, above=0, prior=LogUniform(1, 6), help="T, in units of the standard deviation of the logits"
    )
    kd_weight: float = hyperparameter(
        9.0, minimum=0, prior=LogUniform(0.5, 20), help="lambda_KD, weight of the teacher's outputs"
    )
    label_weight: float = hyperparameter(0.1, minimum=0, prior=LogUniform(0.05, 1), help="lambda_CE, weight of the labels")
    deviation: Literal["population", "sample"] = hyperparameter(
        "population",
        choices=("population", "sample"),
        help="standard deviation: population divides the squares by C, sample by C - 1",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.kd_weight and not self.label_weight:
            raise ValueError("kd_weight and label_weight must not both be 0, since nothing would be learned; set one of them")

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
