"""A Comprehensive Overhaul of Feature Distillation (Heo et al. 2019, arXiv 1904.01866).

    t~ = max(t, m), t the teacher's map before its ReLU, m_k = E[t_k | t_k < 0] < 0
    s~ = BN(conv1x1(student's map before its ReLU)), the BatchNorm in training mode
    d_p(s~, t~) = sum (s~ - t~)^2 where s~ > t~ or t~ > 0                                   (partial L2)
    L = CE + weight * sum_i 2^(i - n + 1) d_p(s~_i, t~_i) / N                               i = 0 .. n-1, the deepest weighs 1

m comes from the BatchNorm before the teacher's ReLU, whose output has mean beta and deviation |gamma| in each channel:
m = beta - |gamma| phi(beta / gamma) / Phi(-beta / |gamma|), or -3 |gamma| where Phi(-beta / |gamma|) <= 0.001 (the authors'
code). In a residual block it is the last BatchNorm of the branch, as in the authors' code. t~ is computed at the teacher. With
`margins: data`, for teachers without BatchNorm, m is the mean of the negative values over the batch and the positions; the
knowledge is then the map itself.

Deviations: none in the loss. The authors run the teacher in training mode, so that its maps depend on the batch; here it is in
evaluation mode, like every teacher, and one sealed view serves all trials. Maps of different sizes are average-pooled to the
smaller size, the teacher's before the margin is applied. If a network has no layers before a ReLU, the outputs of its stages
are used; for such a teacher `margins: batch_norm` is an error.

Verified against the authors' code (margins, loss, connectors), mdistiller and, for `data` and apart from its mean over all
elements, Knowledge-Distillation-Zoo.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from stillhouse.distill.maps import ChannelMethod, channels_of_teacher, make_connector, meeting_size, shrink
from stillhouse.distill.method import ANY_TASK, Card, Helper, MethodError, Setup, Step, hyperparameter
from stillhouse.knowledge.kinds import Knowledge, reduced
from stillhouse.models.architecture import Architecture
from stillhouse.spec.priors import LogUniform

_RARE = 0.001
"""Below this share of negative values the authors' code takes -3 sigma."""


def batch_norm_margin(gamma: Tensor, beta: Tensor) -> Tensor:
    """E[x | x < 0] of x ~ N(beta, gamma^2) per channel [K]; -3 |gamma| where x < 0 has a probability of 0.001 at most."""
    deviation = gamma.abs().clamp_min(torch.finfo(gamma.dtype).tiny)
    ratio = beta / deviation
    negative = torch.special.ndtr(-ratio)
    density = torch.exp(-ratio.square() / 2) / math.sqrt(2 * math.pi)
    return torch.where(negative > _RARE, beta - deviation * density / negative.clamp_min(_RARE), -3 * deviation)


def margin_relu(maps: Tensor, gamma: Tensor, beta: Tensor, *, height: int, width: int) -> Tensor:
    """max(t, m) of maps [B, K, H, W] averaged down to height x width; m from the BatchNorm's weights [K]."""
    return torch.maximum(shrink(maps, height, width), batch_norm_margin(gamma, beta).reshape(-1, 1, 1))


def shrunk(maps: Tensor, *, height: int, width: int) -> Tensor:
    """Maps [B, K, H, W] averaged down to [B, K, height, width]."""
    return shrink(maps, height, width)


def data_margin(maps: Tensor) -> Tensor:
    """The mean of a channel's negative values over batch and positions, [1, K, 1, 1]; 0 if it has none."""
    negative = maps < 0
    return (maps * negative).sum((0, 2, 3), keepdim=True) / (negative.sum((0, 2, 3), keepdim=True) + 1e-6)


def partial_l2(student: Tensor, target: Tensor) -> Tensor:
    """The sum of (s - t)^2 where s > t or t > 0, divided by the batch size, of maps [B, K, H, W]. 0 where s <= t <= 0."""
    counted = (student > target) | (target > 0)
    return ((student - target).square() * counted).sum() / len(student)


@dataclass(frozen=True, kw_only=True)
class Overhaul(ChannelMethod):
    """The student's pre-activations match the teacher's positive ones, and stay below the negative ones."""

    card: ClassVar[Card] = Card(
        title="A Comprehensive Overhaul of Feature Distillation",
        arxiv="1904.01866",
        family="F",
        equations="margin ReLU, features before the ReLU, partial L2 distance; margins as in the authors' code",
        deviations="the teacher is in evaluation mode (authors' code: training mode); the larger of two maps is average-pooled "
        "to the size of the smaller; margins from data as a variant",
        suggested="feature_weight 0.001 on CIFAR, 0.0001 on ImageNet",
        interactions="the loss is a sum over positions, so larger images need a smaller feature_weight",
    )
    tasks: ClassVar[tuple[str, ...]] = (ANY_TASK,)
    before_relu: ClassVar[bool] = True

    feature_weight: float = hyperparameter(
        0.001, minimum=0, prior=LogUniform(0.0001, 0.01), help="alpha, weight of the feature loss"
    )
    margins: Literal["batch_norm", "data"] = hyperparameter(
        "batch_norm",
        choices=("batch_norm", "data"),
        help="source of the margins: the teacher's BatchNorm, or data: the mean negative value of the batch",
    )

    @property
    def active(self) -> bool:
        return self.feature_weight > 0

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        if not self.active:
            return {}
        needed = {}
        for of_student, of_teacher in self.pairs(teacher, student).items():
            height, width = meeting_size(student.shape(of_student), teacher.shape(of_teacher))
            if self.margins == "data":
                kind = reduced(shrunk, of_teacher, height=height, width=width)
            else:
                weights = norm_weights(teacher, of_teacher, remedy="set margins to data")
                kind = reduced(margin_relu, of_teacher, weights=weights, height=height, width=width)
            needed[f"target.{of_student}"] = kind
        return needed

    def modules(self, setup: Setup) -> Mapping[str, Helper]:
        return self.connectors(setup, make_connector)

    def loss(self, step: Step) -> dict[str, Tensor]:
        terms = super().loss(step)
        if not self.active:
            return terms
        targets = [step.teacher[f"target.{layer}"] for layer in step.student_features]
        maps = [shrink(maps, *target.shape[2:]) for maps, target in zip(step.student_features.values(), targets, strict=True)]
        if self.margins == "data":
            targets = [torch.maximum(target, data_margin(target)) for target in targets]
        connectors = step.modules["connectors"]
        losses = [
            partial_l2(ours, target) / 2 ** (len(targets) - 1 - depth)
            for depth, (ours, target) in enumerate(zip(connectors(maps), channels_of_teacher(connectors, targets), strict=True))
        ]
        return terms | {"features": self.feature_weight * torch.stack(losses).sum()}


def norm_weights(teacher: Architecture, layer: str, *, remedy: str) -> tuple[str, str]:
    """The names of gamma and beta of the BatchNorm whose output layer `layer` returns.

    Raises:
        MethodError: there is none.
    """
    norm = teacher.normalisation(layer)
    if norm is None:
        needed = f"needs a BatchNorm right before layer '{layer}' of teacher {teacher.name}"
        raise MethodError(f"{needed}, which has none; {remedy}", names=[layer])
    return f"{norm}.weight", f"{norm}.bias"
