"""Learning Deep Representations with Probabilistic Knowledge Transfer (Passalis, Tefas 2018, arXiv 1803.10837): PKT.

    k(x_i, x_j) = (cos(x_i, x_j) + 1) / 2,  p_{j|i} = k(x_i, x_j) / sum_k k(x_i, x_k)        (equations 3, 4 and 7)
    L = CE + w / B^2 sum_ij p_{j|i} log (p_{j|i} / q_{j|i}),  p the teacher's, q the student's    (equation 8)

The student learns the teacher's probability that two samples are neighbours. The widths K and K' of the embeddings may differ.

As in the authors' code, the sums include the diagonal, the divergence is a mean over B^2 pairs, and 1e-7 is added to lengths
and in logarithms; published weights (30000) belong to that scale. Deviation: a sample whose outputs are all 0 has no gradient.

Verified against the numbers of the authors' code, with the teacher's and with the labels' similarities, and of
Knowledge-Distillation-Zoo (with 1e-6 instead).
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
    """p_{j|i} of embeddings [B, K]: [B, B], each row sums to 1."""
    unit = unit_rows(embeddings, epsilon)
    similarities = (unit @ unit.T + 1) / 2
    return similarities / similarities.sum(dim=1, keepdim=True)


def probability_divergence(student: Tensor, teacher: Tensor, epsilon: float = _EPSILON) -> Tensor:
    """The mean over all pairs of p log(p / q); q are the student's, p the teacher's probabilities [B, B]."""
    return (teacher * ((teacher + epsilon) / (student + epsilon)).log()).mean()


def probabilistic_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The divergence of embeddings [B, K] and [B, K']; 0 for a batch of one."""
    return probability_divergence(neighbour_probabilities(student), neighbour_probabilities(teacher))


@dataclass(frozen=True, kw_only=True)
class Probabilistic(EmbeddingMethod):
    """Two samples are neighbours in the student with the same probability as in the teacher."""

    card: ClassVar[Card] = Card(
        title="Learning Deep Representations with Probabilistic Knowledge Transfer",
        arxiv="1803.10837",
        family="R",
        equations="equations 3, 4, 7 and 8 with the cosine kernel",
        deviations="the diagonal is included and the divergence is a mean, as in the authors' code",
        suggested="transfer_weight 30000",
        interactions="at a learning rate of 0.05, students without BatchNorm need a tenth of the weight or clipped gradients",
    )
    tasks: ClassVar[tuple[str, ...]] = (ANY_TASK,)

    transfer_weight: float = hyperparameter(
        30_000.0, minimum=0, prior=LogUniform(1000, 100_000), help="w, weight of the divergence"
    )

    def relations(self) -> Mapping[str, tuple[float, Relation]]:
        return {"probabilistic_transfer": (self.transfer_weight, probabilistic_loss)}
