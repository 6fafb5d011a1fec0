"""Self-supervised Knowledge Distillation using Singular Value Decomposition (Lee, Kim, Song 2018, arXiv 1807.06819).

    F [HW, K] = U S V^T; the k leading right singular vectors of the teacher's map, k + 3 of the student's
    v_s: for each vector of the teacher the student's with the largest |cos|, with the sign of that cos
    both times the teacher's singular values divided by their norm (1 for k = 1)
    R = exp(-(v_i - v_{i-1})^2 / 8) over all pairs of entries of successive stages i - 1 and i
    L = CE + weight * 1/N sum over stages |R_student - R_teacher|^2

The vectors are computed at the teacher: k K numbers per sample. The sign of a singular vector is arbitrary, but R depends on
it. Here the entry of largest magnitude is positive, so that the teacher's knowledge is the same in every process.

Deviations: the paper pairs maps with equal numbers of channels; where they differ, a 1x1 convolution maps the student's
channels to the teacher's. Gradients are exact, and finite for equal and for zero singular values, too; in the authors' code
they are twice as large and differ where HW < K. The paper clips gradients; here `training.gradient_clip` does.

Verified against RepDistiller. The authors' code differs in its signs, its sum over the batch and its gradients; the loss agrees
up to these, and the gradients agree with recorded exact ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from stillhouse.distill.maps import MapMethod, widen
from stillhouse.distill.method import ANY_TASK, Card, Helper, Setup, Step, hyperparameter
from stillhouse.knowledge.kinds import Knowledge, reduced
from stillhouse.models.architecture import Architecture
from stillhouse.spec.priors import Integers, LogUniform

_EXTRA = 3
"""How many more vectors of the student than of the teacher are candidates for a match (the authors' code)."""
_WIDTH = 8.0
"""2 sigma^2 of the radial basis function (the authors' code)."""


def leading_vectors(maps: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """The leading right singular vectors [B, K, n] of maps [B, K, H, W] as [HW, K] matrices, and singular values [B, n].

    n is at most `number`, K and HW. They are eigenvectors of the smaller Gram matrix, in double precision. Their derivative is
    that of first-order perturbation, dv_i = sum_{j != i} v_j (v_j^T dG v_i) / (l_i - l_j) without the terms of equal
    eigenvalues, so that dead channels have no infinite gradient.
    """
    flat = maps.flatten(2).double()
    wide = flat.shape[1] > flat.shape[2]
    gram = flat.transpose(1, 2) @ flat if wide else flat @ flat.transpose(1, 2)
    number = min(number, gram.shape[1])
    values, vectors = torch.linalg.eigh(torch.nan_to_num(gram.detach(), posinf=0.0, neginf=0.0))
    leading, leading_values = vectors[:, :, -number:].flip(2), values[:, -number:].flip(1)
    gaps = leading_values[:, None, :] - values[:, :, None]
    smallest = torch.finfo(gaps.dtype).eps * values.abs().amax(dim=1)[:, None, None].clamp_min(1e-300)
    inverse = torch.where(gaps.abs() > smallest, 1 / gaps, 0.0)
    change = vectors @ (inverse * (vectors.transpose(1, 2) @ ((gram - gram.detach()) @ leading)))
    leading = leading + change
    right = F.normalize(flat @ leading, dim=1) if wide else leading
    return right.to(maps.dtype), leading_values.clamp_min(0).sqrt().to(maps.dtype)


def singular_vectors(maps: Tensor, *, number: int) -> Tensor:
    """The teacher's knowledge: leading vectors times normalised singular values, [B, K, number]; largest entries positive."""
    vectors, values = leading_vectors(maps, number)
    largest = vectors.gather(1, vectors.abs().argmax(dim=1, keepdim=True))
    return vectors * torch.where(largest < 0, -1.0, 1.0) * F.normalize(values, dim=1)[:, None, :]


def aligned_vectors(maps: Tensor, teacher: Tensor) -> Tensor:
    """For each of the teacher's vectors [B, K, n], the most similar leading vector of the student, with its sign and scale.

    Args:
        maps: the student's, [B, K, H, W].
        teacher: from `singular_vectors`.
    """
    vectors, _ = leading_vectors(maps, teacher.shape[2] + _EXTRA)
    cosine = vectors.detach().transpose(1, 2) @ teacher
    chosen = cosine.abs().argmax(dim=1, keepdim=True)
    sides = cosine.gather(1, chosen).sign()
    like = vectors.gather(2, chosen.expand(-1, vectors.shape[1], -1))
    scales: Tensor = torch.linalg.vector_norm(teacher, dim=1, keepdim=True)
    return like * sides * scales


def basis_functions(earlier: Tensor, later: Tensor) -> Tensor:
    """exp(-(v - v')^2 / 8) over all pairs of entries v of `later` [B, K', n] and v' of `earlier` [B, K, n]: [B, K', K, n]."""
    return torch.exp(-(later[:, :, None] - earlier[:, None]).square() / _WIDTH)


def basis_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """(R_student - R_teacher)^2, the sum per sample, the mean over the batch."""
    return (student - teacher).square().sum() / len(student)


@dataclass(frozen=True, kw_only=True)
class KDSVD(MapMethod):
    """The main directions of the student's features change from stage to stage as the teacher's do."""

    card: ClassVar[Card] = Card(
        title="Self-supervised Knowledge Distillation Using Singular Value Decomposition",
        arxiv="1807.06819",
        family="F",
        equations="truncated singular value decomposition, alignment of vectors, radial basis functions",
        deviations="signs fixed at the teacher; 1x1 convolutions where channels differ; exact gradients",
        suggested="svd_weight 1, one vector",
        interactions="slow for wide networks, since the maps of every sample are decomposed",
    )
    tasks: ClassVar[tuple[str, ...]] = (ANY_TASK,)
    relates_pairs: ClassVar[bool] = True

    svd_weight: float = hyperparameter(
        1.0, minimum=0, prior=LogUniform(0.1, 100), help="weight of the loss on singular vectors"
    )
    vectors: int = hyperparameter(
        1, minimum=1, prior=Integers(1, 4), help="k, number of the teacher's singular vectors per map"
    )

    @property
    def active(self) -> bool:
        return self.svd_weight > 0

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        if not self.active:
            return {}
        pairs = self.pairs(teacher, student)
        # Successive stages are compared vector by vector, so all must have the same number of vectors.
        number = min(min(shape[0], shape[1] * shape[2]) for shape in map(teacher.shape, pairs.values()))
        number = min(number, self.vectors)
        return {f"vectors.{ours}": reduced(singular_vectors, theirs, number=number) for ours, theirs in pairs.items()}

    def modules(self, setup: Setup) -> Mapping[str, Helper]:
        return self.connectors(setup, widen)

    def loss(self, step: Step) -> dict[str, Tensor]:
        terms = super().loss(step)
        if not self.active:
            return terms
        teacher = [step.teacher[f"vectors.{layer}"] for layer in step.student_features]
        maps = step.modules["connectors"](list(step.student_features.values()))
        student = [aligned_vectors(features, theirs) for features, theirs in zip(maps, teacher, strict=True)]
        losses = [
            basis_loss(basis_functions(*ours), basis_functions(*theirs))
            for ours, theirs in zip(pairwise(student), pairwise(teacher), strict=True)
        ]
        return terms | {"singular_vectors": self.svd_weight * torch.stack(losses).sum()}
