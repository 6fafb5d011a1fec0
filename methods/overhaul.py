"""A Comprehensive Overhaul of Feature Distillation (Heo et al. 2019, arXiv 1904.01866).

    t~ = max(t, m), t the teacher's map in front of its ReLU, m_k = E[t_k | t_k < 0] < 0
    s~ = BN(conv1x1(student's map in front of its ReLU)), the BatchNorm in training mode
    d_p(s~, t~) = sum (s~ - t~)^2 where s~ > t~ or t~ > 0                                   (partial L2)
    L = CE + weight * sum_i 2^(i - n + 1) d_p(s~_i, t~_i) / N                               i = 0 .. n-1, the deepest weighs 1

m comes from the BatchNorm in front of the teacher's ReLU, whose output has mean beta and deviation |gamma| in each channel:
m = beta - |gamma| phi(beta / gamma) / Phi(-beta / |gamma|), or -3 |gamma| where Phi(-beta / |gamma|) <= 0.001 (the authors'
code). In a residual block it is the branch's last BatchNorm, as there. t~ is made at the teacher. `margins: data` takes the
mean of the negative part over the batch and its positions instead, for teachers without BatchNorm; the map itself then travels.

Deviations: none in the loss. Maps of different size are average-pooled to the smaller, the teacher's in front of the margin.
A network without layers in front of its ReLU gives its stages, but a teacher of that kind is refused with BatchNorm's margins.

Verified against the authors' code (margins, loss, connectors), mdistiller and, for `data` and up to its mean over all
elements, Knowledge-Distillation-Zoo.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from stillhouse.distill.maps import MapMethod, make_connector, meeting_size, shrink
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
    """The mean of a channel's negative values over the batch and its positions, [1, K, 1, 1]; 0 where there is none."""
    negative = maps < 0
    return (maps * negative).sum((0, 2, 3), keepdim=True) / (negative.sum((0, 2, 3), keepdim=True) + 1e-6)


def partial_l2(student: Tensor, target: Tensor) -> Tensor:
    """(s - t)^2 summed where s > t or t > 0, over the batch size; both are [B, K, H, W]. Where t <= 0, less is fine."""
    counted = (student > target) | (target > 0)
    return ((student - target).square() * counted).sum() / len(student)


@dataclass(frozen=True, kw_only=True)
class Overhaul(MapMethod):
    """The student's pre-activations follow the teacher's where those are positive, and stay below them elsewhere."""

    card: ClassVar[Card] = Card(
        title="A Comprehensive Overhaul of Feature Distillation",
        arxiv="1904.01866",
        family="F",
        equations="margin ReLU, position in front of the ReLU, partial L2; margins as in the authors' code",
        deviations="maps average-pooled to the smaller; margins from data as a variant",
        suggested="feature_weight 0.001 on CIFAR, 0.0001 on ImageNet",
        interactions="the loss is a sum over positions: larger images want a smaller feature_weight",
    )
    tasks: ClassVar[tuple[str, ...]] = (ANY_TASK,)
    before_relu: ClassVar[bool] = True

    feature_weight: float = hyperparameter(0.001, minimum=0, prior=LogUniform(0.0001, 0.01), help="alpha, of the feature loss")
    margins: Literal["batch_norm", "data"] = hyperparameter(
        "batch_norm",
        choices=("batch_norm", "data"),
        help="data: the batch's mean negative value, for teachers without BatchNorm",
    )

    @property
    def active(self) -> bool:
        return self.feature_weight > 0

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        if not self.active:
            return {}
        asked = {}
        for of_student, of_teacher in self.pairs(teacher, student).items():
            height, width = meeting_size(student.shape(of_student), teacher.shape(of_teacher))
            if self.margins == "data":
                kind = reduced(shrunk, of_teacher, height=height, width=width)
            else:
                weights = norm_weights(teacher, of_teacher, remedy="set margins: data")
                kind = reduced(margin_relu, of_teacher, weights=weights, height=height, width=width)
            asked[f"target.{of_student}"] = kind
        return asked

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
        losses = [
            partial_l2(ours, target) / 2 ** (len(targets) - 1 - depth)
            for depth, (ours, target) in enumerate(zip(step.modules["connectors"](maps), targets, strict=True))
        ]
        return terms | {"features": self.feature_weight * torch.stack(losses).sum()}


def norm_weights(teacher: Architecture, layer: str, *, remedy: str) -> tuple[str, str]:
    """The names of gamma and beta of the BatchNorm whose output `layer` passes on.

    Raises:
        MethodError: there is none.
    """
    norm = teacher.normalisation(layer)
    if norm is None:
        wanted = f"needs a BatchNorm in front of layer '{layer}' of teacher {teacher.name}"
        raise MethodError(f"{wanted}, it has none; {remedy}", names=[layer])
    return f"{norm}.weight", f"{norm}.bias"
