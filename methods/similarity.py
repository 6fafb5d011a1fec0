"""Similarity-Preserving Knowledge Distillation (Tung, Mori 2019, arXiv 1907.09682): SP.

    G = rows of F F^T, each divided by its L2 norm;  F [B, KHW] the flattened outputs of a layer
    L = CE + gamma / B^2 |G_teacher - G_student|_F^2        (equations 1 to 4)

Samples that are similar in the teacher should be similar in the student. The two layers may have any shapes.

Deviations: a sample whose outputs are all 0 has no gradient, instead of one that is 1e12 times too large. Rows have L2 norm 1;
a library that divides them by their L1 norm by mistake is not followed.

Verified against the numbers of RepDistiller, which are those of Knowledge-Distillation-Zoo and mdistiller, too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from stillhouse.distill.embeddings import EmbeddingMethod, Relation, unit_rows
from stillhouse.distill.method import ANY_TASK, Card, hyperparameter
from stillhouse.models.architecture import Architecture
from stillhouse.spec.priors import LogUniform


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """|G_t - G_s|_F^2 / B^2 of flattened outputs [B, K] and [B, K']; 0 for a batch of one."""
    return (_similarities(teacher) - _similarities(student)).square().mean()


def _similarities(features: Tensor) -> Tensor:
    return unit_rows(features @ features.T)


@dataclass(frozen=True, kw_only=True)
class Similarity(EmbeddingMethod):
    """Two samples of a batch are as similar in the student as in the teacher."""

    card: ClassVar[Card] = Card(
        title="Similarity-Preserving Knowledge Distillation",
        arxiv="1907.09682",
        family="R",
        equations="equations 1 to 4 on one pair of layers",
        deviations="samples whose outputs are all 0 have no gradient",
        suggested="similarity_weight 3000 on the last feature maps",
        interactions="whole maps are large to cache; at a rate of 0.05, students without BatchNorm need clipped gradients",
    )
    tasks: ClassVar[tuple[str, ...]] = (ANY_TASK,)

    similarity_weight: float = hyperparameter(
        3000.0, minimum=0, prior=LogUniform(100, 10_000), help="gamma, weight of the distance between similarity matrices"
    )

    def default_layer(self, architecture: Architecture) -> str | None:
        return architecture.stages[-1] if architecture.stages else super().default_layer(architecture)

    def relations(self) -> Mapping[str, tuple[float, Relation]]:
        return {"similarity": (self.similarity_weight, similarity_loss)}
