"""VkD: Improving Knowledge Distillation using Orthogonal Projections (Miles, Elezi, Deng 2024, arXiv 2403.06213).

    L = CE + alpha mean smoothL1(W s, layer_norm(t))
    W^T W = I if the teacher's embedding t is at least as wide as the student's s, W W^T = I otherwise

smoothL1(d) is d^2 / 2 for |d| < 1 and |d| - 1/2 beyond. An orthogonal projection keeps lengths and angles of the student's
embeddings, so that it cannot learn anything in place of the student. The layer normalisation of the teacher has no weights.
Outputs of named layers that are maps are averaged over their positions.

W is the orthonormal factor Q of a free matrix M = Q R, with a positive diagonal of R, so that it is unique.

Deviations: the authors' code makes W with torch's `orthogonal`, from reflections or from the exponential of a skew-symmetric
matrix. With 512 and 2048 channels, a step takes 10 s with reflections on one processor, and the exponential waits for a GPU. M
has no weight decay, since Q does not depend on the size of M. The authors also learn soft targets with a distillation token:
combine this method with `kd`. Normalisations for other tasks than classification are not part of this file.

A step costs 1.1 times one of `kd` (resnet8 taught by resnet20, digits, one thread).

The paper itself was not available. Verified by hand, by the properties of W before and after training, and by finite
differences for the gradient of M; the loss is that of the authors' code.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.distill.embeddings import EmbeddingMethod
from stillhouse.distill.method import ANY_TASK, Card, Helper, Setup, Step, hyperparameter
from stillhouse.spec.priors import LogUniform


def projection_loss(projected: Tensor, teacher: Tensor) -> Tensor:
    """The smooth L1 distance of W s [B, K] and the layer-normalised t [B, K], the mean over all elements."""
    return F.smooth_l1_loss(projected, F.layer_norm(teacher, teacher.shape[1:]))


class OrthogonalProjection(nn.Module):
    """W: maps [B, num_inputs] to [B, num_outputs]; its columns are orthonormal, or its rows if there are fewer of them."""

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.num_inputs, self.num_outputs = num_inputs, num_outputs
        self.free = nn.Parameter(torch.empty(max(num_inputs, num_outputs), min(num_inputs, num_outputs)))
        nn.init.orthogonal_(self.free)

    @property
    def weight(self) -> Tensor:
        """W, [num_outputs, num_inputs]."""
        factor, triangle = torch.linalg.qr(self.free)
        columns: Tensor = factor * torch.where(triangle.detach().diagonal() < 0, -1.0, 1.0).to(factor.dtype)
        return columns if self.num_outputs >= self.num_inputs else columns.T

    def forward(self, features: Tensor) -> Tensor:
        projected: Tensor = features @ self.weight.T
        return projected


@dataclass(frozen=True, kw_only=True)
class VkD(EmbeddingMethod):
    """An orthogonal projection of the student's embedding matches the layer-normalised embedding of the teacher."""

    card: ClassVar[Card] = Card(
        title="VkD: Improving Knowledge Distillation using Orthogonal Projections",
        arxiv="2403.06213",
        family="F",
        equations="the orthogonal projection and the layer normalisation of the teacher, with the smooth L1 distance",
        deviations="W is the orthonormal factor of a free matrix, which costs less than the authors' reflections",
        suggested="feature_weight 1 (authors' code, ImageNet, DeiT students of a RegNet)",
        interactions="the paper's results include soft targets at a distillation token",
    )
    tasks: ClassVar[tuple[str, ...]] = (ANY_TASK,)

    feature_weight: float = hyperparameter(1.0, minimum=0, prior=LogUniform(0.1, 30), help="alpha, weight of the distance")

    @property
    def active(self) -> bool:
        return self.feature_weight > 0

    @property
    def needs_whole_batch(self) -> bool:
        return False

    def modules(self, setup: Setup) -> Mapping[str, Helper]:
        if not self.active:
            return {}
        assert setup.teacher is not None, "embeddings come from a teacher"
        inputs = setup.student.shape(self.layer(setup.student, whose="student"))
        outputs = setup.teacher.shape(self.layer(setup.teacher, whose="teacher"))
        return {"projection": Helper(module=OrthogonalProjection(inputs[0], outputs[0]), training={"weight_decay": 0.0})}

    def loss(self, step: Step) -> dict[str, Tensor]:
        terms = step.supervised_terms()
        if self.active:
            student, teacher = self.embeddings(step)
            terms["projection"] = self.feature_weight * projection_loss(step.modules["projection"](student), teacher)
        return terms

    def embeddings(self, step: Step) -> tuple[Tensor, Tensor]:
        """The student's outputs [B, K] and the teacher's [B, K'], averaged over the positions of maps."""
        (student,) = step.student_features.values()
        return _vectors(student), _vectors(step.teacher["embedding"])


def _vectors(outputs: Tensor) -> Tensor:
    return outputs.flatten(2).mean(dim=2) if outputs.ndim > 2 else outputs
