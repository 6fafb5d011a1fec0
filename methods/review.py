"""Distilling Knowledge via Knowledge Review (Chen, Liu, Zhao, Jia 2021, arXiv 2104.09044).

    from the deepest stage to the shallowest:                                      (attention-based fusion)
        x = BN(conv1x1(features)); y = what the next deeper stage handed down, resized
        z = sigmoid(conv1x1([x, y])), two channels; x = x z_0 + y z_1, handed on to the next shallower stage
        review = BN(conv3x3(x)), in the teacher's channels and size
    HCL(r, t) = (|r - t|^2 + sum_{l in 4, 2, 1} w_l |pool_l(r) - pool_l(t)|^2) / (1 + sum w_l), w = 1/2, 1/4, 1/8;
        levels as high as the map or higher are left out                                (hierarchical context loss)
    L = CE + weight min(1, progress / warmup) sum over stages HCL(review, teacher's features)

Every shallow map of the teacher so reviews what the student's deeper stages know. Embeddings take part as maps of one pixel
where both networks have one, as in the authors' code. Squares are averaged over all elements.

Deviations: stages are paired from the last backwards where their numbers differ; resizing goes by each stage's own size, so
that unlike architectures fit. The warm-up is a fraction of the training: the authors' 20 of 240 epochs by default.

Verified against the authors' code: loss, fusion, their gradients.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.distill.maps import MapMethod, shrink
from stillhouse.distill.method import ANY_TASK, Card, Helper, Setup, Step, hyperparameter
from stillhouse.knowledge.kinds import Knowledge, feature
from stillhouse.models.architecture import Architecture
from stillhouse.models.layers import initialise_convolutions
from stillhouse.spec.priors import LogUniform

_MAX_CHANNELS = 512
"""The authors' limit on the channels in which stages are fused."""


def hierarchical_context_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The weighted mean of the mean squares of two maps [B, K, H, W], at their own size and averaged to 4, 2 and 1.

    The weights are 1, 1/2, 1/4, 1/8; levels that are not smaller than the map are left out, and do not halve the weight.
    """
    total, weights, weight = F.mse_loss(student, teacher), 1.0, 1.0
    for side in (4, 2, 1):
        if side >= min(student.shape[2:]):
            continue
        weight /= 2
        total = total + weight * F.mse_loss(shrink(student, side, side), shrink(teacher, side, side))
        weights += weight
    return total / weights


class Fusion(nn.Module):
    """One stage: fuses its features with what a deeper stage hands down, and reviews them in the teacher's shape.

    Args:
        deepest: nothing is handed down to this stage.
    """

    def __init__(self, num_inputs: int, num_fused: int, num_outputs: int, *, deepest: bool) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(num_inputs, num_fused, 1, bias=False), nn.BatchNorm2d(num_fused))
        self.conv2 = nn.Sequential(nn.Conv2d(num_fused, num_outputs, 3, padding=1, bias=False), nn.BatchNorm2d(num_outputs))
        self.att_conv = None if deepest else nn.Sequential(nn.Conv2d(2 * num_fused, 2, 1), nn.Sigmoid())
        initialise_convolutions(self, mode="fan_in")

    def forward(self, features: Tensor, handed_down: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The review [B, num_outputs, *size] and what is handed on [B, num_fused, *size]."""
        fused: Tensor = self.conv1(features)
        if self.att_conv is not None:
            assert handed_down is not None
            deeper = F.interpolate(handed_down, fused.shape[2:], mode="nearest")
            shares = self.att_conv(torch.cat([fused, deeper], dim=1))
            fused = fused * shares[:, :1] + deeper * shares[:, 1:]
        if fused.shape[2:] != size:
            fused = F.interpolate(fused, size, mode="nearest")
        return self.conv2(fused), fused


class Reviewer(nn.Module):
    """All fusions, shallow to deep.

    Args:
        shapes: (student's shape, teacher's shape) of each stage, shallow to deep; (K, H, W) or (K,).
    """

    def __init__(self, shapes: Sequence[tuple[Sequence[int], Sequence[int]]]) -> None:
        super().__init__()
        fused = min(_MAX_CHANNELS, shapes[-1][0][0])
        last = len(shapes) - 1
        self.stages = nn.ModuleList(
            Fusion(ours[0], fused, theirs[0], deepest=place == last) for place, (ours, theirs) in enumerate(shapes)
        )

    def forward(self, features: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """The reviews of the stages, shallow to deep, at the given sizes (height, width)."""
        reviews: list[Tensor] = []
        handed_down = None
        for stage, maps, size in reversed(list(zip(self.stages, features, sizes, strict=True))):
            review, handed_down = stage(maps, handed_down, size)
            reviews.insert(0, review)
        return reviews


@dataclass(frozen=True, kw_only=True)
class Review(MapMethod):
    """Shallow features of the teacher are learnt from the student's features of all deeper stages."""

    card: ClassVar[Card] = Card(
        title="Distilling Knowledge via Knowledge Review",
        arxiv="2104.09044",
        family="F",
        equations="residual review with attention-based fusion and hierarchical context loss",
        deviations="stages paired from the last; the warm-up is a fraction of the training",
        suggested="review_weight 5 (WRN, ResNet x4, ShuffleNetV1), 8 (ShuffleNetV2), 0.6 to 1 (ResNet-20 and -32) on CIFAR-100",
        interactions="asks for whole maps of all stages: the most knowledge of all methods to move or cache",
    )
    tasks: ClassVar[tuple[str, ...]] = (ANY_TASK,)

    review_weight: float = hyperparameter(5.0, minimum=0, prior=LogUniform(0.3, 10), help="lambda, weight of the reviews")
    warmup_fraction: float = hyperparameter(
        1 / 12, minimum=0, maximum=1, help="share of the training over which the weight rises from 0; 20 of 240 epochs"
    )

    @property
    def active(self) -> bool:
        return self.review_weight > 0

    def pairs(self, teacher: Architecture, student: Architecture) -> dict[str, str]:
        """{student's layer: teacher's layer}, shallow to deep, ending with the embeddings unless layers are named."""
        pairs = super().pairs(teacher, student)
        if student.pooled and teacher.pooled and not (self.teacher_maps or self.student_maps):
            pairs[student.pooled] = teacher.pooled
        return pairs

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        if not self.active:
            return {}
        return {f"features.{ours}": feature(theirs) for ours, theirs in self.pairs(teacher, student).items()}

    def modules(self, setup: Setup) -> Mapping[str, Helper]:
        if not self.active:
            return {}
        assert setup.teacher is not None, "features come from a teacher"
        pairs = self.pairs(setup.teacher, setup.student).items()
        return {
            "reviewer": Helper(
                module=Reviewer([(setup.student.shape(ours), setup.teacher.shape(theirs)) for ours, theirs in pairs])
            )
        }

    def loss(self, step: Step) -> dict[str, Tensor]:
        terms = super().loss(step)
        if not self.active:
            return terms
        teacher = [_as_map(step.teacher[f"features.{layer}"]) for layer in step.student_features]
        student = [_as_map(features) for features in step.student_features.values()]
        reviews = step.modules["reviewer"](student, [(maps.shape[2], maps.shape[3]) for maps in teacher])
        losses = [hierarchical_context_loss(review, maps) for review, maps in zip(reviews, teacher, strict=True)]
        risen = min(1.0, step.progress / self.warmup_fraction) if self.warmup_fraction else 1.0
        return terms | {"review": self.review_weight * risen * torch.stack(losses).sum()}


def _as_map(features: Tensor) -> Tensor:
    return features[:, :, None, None] if features.ndim == 2 else features
