"""Distilling Knowledge via Knowledge Review (Chen, Liu, Zhao, Jia 2021, arXiv 2104.09044).

    from the deepest stage to the shallowest:                                      (attention-based fusion)
        x = BN(conv1x1(features)); y = the fused features of the next deeper stage, resized
        z = sigmoid(conv1x1([x, y])), two channels; x = x z_0 + y z_1, passed to the next shallower stage
        review = BN(conv3x3(x)), in the teacher's channels and size
    HCL(r, t) = (|r - t|^2 + sum_{l in 4, 2, 1} w_l |pool_l(r) - pool_l(t)|^2) / (1 + sum w_l), w = 1/2, 1/4, 1/8;
        without levels that are not smaller than the map                                (hierarchical context loss)
    L = CE + weight min(1, progress / warmup) sum over stages HCL(review, teacher's features)

So each map of the teacher is compared with the student's features of the same stage and of all deeper ones. If both networks
have an embedding, it is the deepest stage, as a map of one pixel, as in the authors' code. Squares are averaged over all
elements.

The teacher's maps are those before the ReLU and the student's those after it, as in the authors' code for CIFAR, to whose scale
the published weights belong. `teacher_form="after_relu"` compares maps after the ReLU, which are also used where a network has
no layer that returns the map before it. The convolutions start from the uniform Kaiming initialisation with gain 1, and the
attention gate from torch's default, as in the authors' code.

Deviations: where the networks have different numbers of stages, these are paired from the last one backwards. Maps are resized
to the size of each stage, so that the architectures may differ. The warm-up is a fraction of the training; its default is the
authors' 20 of 240 epochs.

Verified against the authors' code: loss, fusion and their gradients.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.distill.maps import MapMethod, shrink
from stillhouse.distill.method import ANY_TASK, Card, Helper, Setup, Step, hyperparameter
from stillhouse.distill.schedule import risen
from stillhouse.knowledge.kinds import Knowledge, feature
from stillhouse.models.architecture import Architecture
from stillhouse.spec.priors import LogUniform

_MAX_CHANNELS = 512
"""The authors' limit on the number of channels in which stages are fused."""


def hierarchical_context_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The weighted mean of the squared differences of two maps [B, K, H, W], at their own size and pooled to 4, 2 and 1.

    The weights are 1, 1/2, 1/4, 1/8. Levels that are not smaller than the map are left out; they do not halve the weight.
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
    """One stage: fuses its features with those passed from the deeper stage, and maps them to the teacher's shape.

    Args:
        deepest: whether there is no deeper stage.
    """

    def __init__(self, num_inputs: int, num_fused: int, num_outputs: int, *, deepest: bool) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(num_inputs, num_fused, 1, bias=False), nn.BatchNorm2d(num_fused))
        self.conv2 = nn.Sequential(nn.Conv2d(num_fused, num_outputs, 3, padding=1, bias=False), nn.BatchNorm2d(num_outputs))
        self.att_conv = None if deepest else nn.Sequential(nn.Conv2d(2 * num_fused, 2, 1), nn.Sigmoid())
        for sequence in (self.conv1, self.conv2):
            nn.init.kaiming_uniform_(sequence.get_parameter("0.weight"), a=1)  # gain 1

    def forward(self, features: Tensor, deeper: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The review [B, num_outputs, *size] and the fused features for the next stage [B, num_fused, *size]."""
        fused: Tensor = self.conv1(features)
        if self.att_conv is not None:
            assert deeper is not None
            deeper = F.interpolate(deeper, fused.shape[2:], mode="nearest")
            shares = self.att_conv(torch.cat([fused, deeper], dim=1))
            fused = fused * shares[:, :1] + deeper * shares[:, 1:]
        if fused.shape[2:] != size:
            fused = F.interpolate(fused, size, mode="nearest")
        return self.conv2(fused), fused


class Reviewer(nn.Module):
    """The fusions of all stages, shallow to deep.

    Args:
        shapes: (student's shape, teacher's shape) of each stage, shallow to deep; (K, H, W) or (K,).
    """

    def __init__(self, shapes: Sequence[tuple[Sequence[int], Sequence[int]]]) -> None:
        super().__init__()
        fused = min(_MAX_CHANNELS, shapes[-1][0][0])
        last = len(shapes) - 1
        self.stages = nn.ModuleList(
            Fusion(ours[0], fused, theirs[0], deepest=number == last) for number, (ours, theirs) in enumerate(shapes)
        )

    def forward(self, features: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """The reviews of all stages, shallow to deep, at the given sizes (height, width)."""
        reviews: list[Tensor] = []
        fused = None
        for stage, maps, size in reversed(list(zip(self.stages, features, sizes, strict=True))):
            review, fused = stage(maps, fused, size)
            reviews.insert(0, review)
        return reviews


@dataclass(frozen=True, kw_only=True)
class Review(MapMethod):
    """The teacher's features of a stage are learned from the student's features of that stage and all deeper ones."""

    card: ClassVar[Card] = Card(
        title="Distilling Knowledge via Knowledge Review",
        arxiv="2104.09044",
        family="F",
        equations="residual review with attention-based fusion and the hierarchical context loss",
        deviations="stages paired from the last backwards; the warm-up is a fraction of the training",
        suggested="review_weight 5 (WRN, ResNet x4, ShuffleNetV1), 8 (ShuffleNetV2), 0.6 to 1 (ResNet-20 and -32) on CIFAR-100",
        interactions="needs whole maps of all stages, the largest knowledge of all methods to move or cache",
    )
    revision: ClassVar[int] = 2
    tasks: ClassVar[tuple[str, ...]] = (ANY_TASK,)
    accepts_embeddings: ClassVar[bool] = True

    review_weight: float = hyperparameter(5.0, minimum=0, prior=LogUniform(0.3, 10), help="lambda, weight of the review loss")
    warmup_fraction: float = hyperparameter(
        1 / 12,
        minimum=0,
        maximum=1,
        help="share of the training over which the weight rises from 0; 20 of 240 epochs in the authors' code",
    )
    teacher_form: Literal["before_relu", "after_relu"] = hyperparameter(
        "before_relu",
        choices=("before_relu", "after_relu"),
        help="which maps of the teacher's stages are targets; the student's are those after the ReLU",
    )
    embedding: bool = hyperparameter(
        True, help="whether the embeddings are the deepest stage, if both networks have one; also with named layers"
    )

    @property
    def active(self) -> bool:
        return self.review_weight > 0

    @property
    def teacher_before_relu(self) -> bool:
        return self.teacher_form == "before_relu"

    def pairs(self, teacher: Architecture, student: Architecture) -> dict[str, str]:
        """{student's layer: teacher's layer}, shallow to deep; the embeddings are last."""
        pairs = super().pairs(teacher, student)
        if self.embedding and student.pooled and teacher.pooled and student.pooled not in pairs:
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
        warm = risen(step.progress, self.warmup_fraction)
        return terms | {"review": self.review_weight * warm * torch.stack(losses).sum()}


def _as_map(features: Tensor) -> Tensor:
    return features[:, :, None, None] if features.ndim == 2 else features
