"""Relational Knowledge Distillation (Park, Kim, Lu, Cho 2019, arXiv 1904.05068): RKD.

    psi_D(x_i, x_j) = |x_i - x_j| / mu,  mu the mean distance of two samples of the batch      (equations 5 and 6)
    psi_A(x_i, x_j, x_k) = cos of the angle at x_i between x_j and x_k                          (equation 8)
    L = CE + lambda_D mean_ij h(psi_D) + lambda_A mean_ijk h(psi_A)        (equations 7, 9 and 10)

h is Huber's loss at 1 between student and teacher. The means are over all pairs and triples, including those in which a sample
occurs twice, which are 0. mu is the mean over pairs of distinct samples; the student's mu is differentiated, too (the authors'
code).

Deviation: samples with equal outputs have no direction to each other, so they have no gradient. The authors' gradient is 1e12
times too large.

Verified against the numbers of the authors' code for distance and for angle, and of RepDistiller for both together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from stillhouse.distill.embeddings import EmbeddingMethod, Relation, unit_rows
from stillhouse.distill.method import ANY_TASK, Card, hyperparameter
from stillhouse.spec.priors import LogUniform

_SMALLEST_SQUARE = 1e-12
"""Smallest value under the square root, as in the authors' code."""


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber's loss of relative distances, the mean over B x B pairs, of embeddings [B, K] and [B, K']; 0 for a batch of one."""
    return F.smooth_l1_loss(relative_distances(student), relative_distances(teacher))


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber's loss of cosines, the mean over B x B x B triples, of embeddings [B, K] and [B, K']; 0 for a batch of one."""
    return F.smooth_l1_loss(angle_cosines(student), angle_cosines(teacher))


def relative_distances(embeddings: Tensor) -> Tensor:
    """psi_D of embeddings [B, K]: [B, B], 0 on the diagonal, with a mean of 1 elsewhere; scale and offset have no effect."""
    batch = len(embeddings)
    own = torch.eye(batch, dtype=torch.bool, device=embeddings.device)
    lengths = embeddings.square().sum(dim=1)
    squares = lengths.unsqueeze(1) + lengths - 2 * embeddings @ embeddings.T
    distances = squares.clamp(min=_SMALLEST_SQUARE).sqrt().masked_fill(own, 0)
    return distances * (batch * (batch - 1)) / distances.sum() if batch > 1 else distances


def angle_cosines(embeddings: Tensor) -> Tensor:
    """psi_A of embeddings [B, K]: [B, B, B], the sample at the corner first; 0 if another one equals it."""
    directions = unit_rows(embeddings.unsqueeze(0) - embeddings.unsqueeze(1))
    return directions @ directions.transpose(1, 2)


@dataclass(frozen=True, kw_only=True)
class Relational(EmbeddingMethod):
    """The student's embeddings have the same relative distances and angles as the teacher's."""

    card: ClassVar[Card] = Card(
        title="Relational Knowledge Distillation",
        arxiv="1904.05068",
        family="R",
        equations="equations 5 to 10",
        deviations="samples with equal outputs have no direction to each other, so no gradient",
        suggested="distance_weight 25 and angle_weight 50 on CIFAR-100 (RepDistiller); 1 and 2 in metric learning",
        interactions="angles need B^2 K and B^3 numbers: over 8 MB for a batch of 128, 540 MB for 512; 0 turns them off",
    )
    tasks: ClassVar[tuple[str, ...]] = (ANY_TASK,)

    distance_weight: float = hyperparameter(25.0, minimum=0, prior=LogUniform(1, 100), help="lambda_D, weight of distances")
    angle_weight: float = hyperparameter(50.0, minimum=0, prior=LogUniform(2, 200), help="lambda_A, weight of angles")

    def relations(self) -> Mapping[str, tuple[float, Relation]]:
        return {"distance": (self.distance_weight, distance_loss), "angle": (self.angle_weight, angle_loss)}
