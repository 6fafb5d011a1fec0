"""Learning Deep Representations with Probabilistic Knowledge Transfer (Passalis, Tefas 2018, arXiv 1803.10837): PKT.

    k(x_i, x_j) = (cos(x_i, x_j) + 1) / 2,  p_{j|i} = k(x_i, x_j) / sum_k k(x_i, x_k)        (equations 3, 4 and 7)
    L = CE + w / B^2 sum_ij p_{j|i} log (p_{j|i} / q_{j|i}),  p the teacher's, q the student's    (equation 8)

The student keeps the probability with which samples would be neighbours; K and K' may differ.

The diagonal counts, the divergence is a mean over B^2 pairs, and 1e-7 guards lengths and logarithms, all as in the authors'
code: published weights (30000) belong to that scale. Deviation: outputs of zeros get no gradient.

Verified against the numbers of the authors' code, with the teacher's and with the labels' similarities, and of
Knowledge-Distillation-Zoo (guard 1e-6).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from stillhouse.distill.embeddings import EmbeddingMethod, Relation, unit_rows
from stillhouse.distill.method import ANY_TASK, Card, hyperparameter
from stillhouse.spec.priors import LogUniform

_EPSILON = 1e-7


def neighbour_probabilities(embeddings: Tensor, epsilon: float = _EPSILON) -> Tensor:
    """p_{j|i}, [B, B] with rows that sum to 1, of embeddings [B, K]."""
    unit = unit_rows(embeddings, epsilon)
    similarities = (unit @ unit.T + 1) / 2
    return similarities / similarities.sum(dim=1, keepdim=True)


def probability_divergence(student: Tensor, teacher: Tensor, epsilon: float = _EPSILON) -> Tensor:
    """The mean over all pairs of p log (p / q), q the student's and p the teacher's, both [B, B]."""
    return (teacher * ((teacher + epsilon) / (student + epsilon)).log()).mean()


def probabilistic_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The divergence of embeddings [B, K] and [B, K']; 0 for a batch of one."""
    return probability_divergence(neighbour_probabilities(student), neighbour_probabilities(teacher))


@dataclass(frozen=True, kw_only=True)
class Probabilistic(EmbeddingMethod):
    """The student's samples have the teacher's probabilities of being neighbours."""

    card: ClassVar[Card] = Card(
        title="Learning Deep Representations with Probabilistic Knowledge Transfer",
        arxiv="1803.10837",
        family="R",
        equations="equations 3, 4, 7 and 8 with the cosine kernel",
        deviations="the diagonal counts and the divergence is a mean, as in the authors' code",
        suggested="transfer_weight 30000",
        interactions="students without BatchNorm want a tenth of the weight or clipped gradients at a rate of 0.05",
    )
    tasks: ClassVar[tuple[str, ...]] = (ANY_TASK,)

    transfer_weight: float = hyperparameter(30_000.0, minimum=0, prior=LogUniform(1000, 100_000), help="w")

    def relations(self) -> Mapping[str, tuple[float, Relation]]:
        return {"probabilistic_transfer": (self.transfer_weight, probabilistic_loss)}
