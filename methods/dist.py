"""Knowledge Distillation from A Stronger Teacher (Huang, You, Wang, Qian, Xu 2022, arXiv 2205.10536): DIST.

    p = softmax(z / T),  d(u, v) = 1 - Pearson's correlation of u and v
    inter = T^2 / B sum_n d(p_student[n, :], p_teacher[n, :])       (classes of one sample; equation 7)
    intra = T^2 / C sum_c d(p_student[:, c], p_teacher[:, c])       (samples of one class; equation 9)
    L = CE + beta inter + gamma intra                                (equation 10)

The loss compares relations between probabilities, not the probabilities themselves, which a student cannot reach if its teacher
is much stronger.

The defaults are the authors' settings for CIFAR-100: both relations with weight 1 in a loss of weight 2, which is 2 for each
here, and T = 4. For ImageNet they set T = 1.

T^2 and the 1e-8 in the correlation's denominator are from the authors' code. With the latter, a constant row or column (a
batch of one sample, a class with probability 0 everywhere) counts as uncorrelated: distance 1, without gradient.

Verified against the numbers of the authors' code, for classes and for the pixels of a segmentation.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from stillhouse.distill.method import Card, Method, Step, hyperparameter
from stillhouse.knowledge.kinds import Knowledge, logits
from stillhouse.models.architecture import Architecture
from stillhouse.spec.priors import LogUniform

_EPSILON = 1e-8


def pearson_distance(student: Tensor, teacher: Tensor, dim: int) -> Tensor:
    """1 - Pearson's correlation along `dim`, the mean over the rest. Between 0 and 2; 1 if one of the two is constant."""
    student, teacher = (values - values.mean(dim=dim, keepdim=True) for values in (student, teacher))
    lengths = torch.linalg.vector_norm(student, dim=dim) * torch.linalg.vector_norm(teacher, dim=dim)
    correlation: Tensor = (student * teacher).sum(dim=dim) / (lengths + _EPSILON)
    return 1 - correlation.mean()


def inter_class_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 times the distance between both networks' probabilities of a sample, the mean over samples; logits are [B, C]."""
    student, teacher = ((logits / temperature).softmax(dim=1) for logits in (student_logits, teacher_logits))
    return temperature**2 * pearson_distance(student, teacher, dim=1)


def intra_class_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 times the distance between both networks' probabilities of a class, the mean over classes; logits are [B, C]."""
    student, teacher = ((logits / temperature).softmax(dim=1) for logits in (student_logits, teacher_logits))
    return temperature**2 * pearson_distance(student, teacher, dim=0)


@dataclass(frozen=True, kw_only=True)
class Dist(Method):
    """The student's probabilities correlate with the teacher's, within each sample and within each class."""

    card: ClassVar[Card] = Card(
        title="Knowledge Distillation from A Stronger Teacher",
        arxiv="2205.10536",
        family="L",
        equations="equations 6 to 10",
        suggested="both weights 2; temperature 4 on CIFAR-100, 1 on ImageNet",
        interactions="intra_weight helps little if the batch is smaller than the number of classes",
    )
    revision: ClassVar[int] = 2

    inter_weight: float = hyperparameter(
        2.0, minimum=0, prior=LogUniform(0.25, 4), help="beta, weight of the relation between the classes of a sample"
    )
    intra_weight: float = hyperparameter(
        2.0, minimum=0, prior=LogUniform(0.25, 4), help="gamma, weight of the relation between the samples of a class"
    )
    temperature: float = hyperparameter(4.0, above=0, prior=LogUniform(1, 8), help="T, softens both outputs")

    @property
    def needs_whole_batch(self) -> bool:
        return bool(self.intra_weight)

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        return {"logits": logits()} if self.inter_weight or self.intra_weight else {}

    def loss(self, step: Step) -> dict[str, Tensor]:
        terms = super().loss(step)
        if self.inter_weight:
            inter = inter_class_loss(step.logits, step.teacher["logits"], self.temperature)
            terms["inter_class"] = self.inter_weight * inter
        if self.intra_weight:
            intra = intra_class_loss(step.logits, step.teacher["logits"], self.temperature)
            terms["intra_class"] = self.intra_weight * intra
        return terms
