"""Exploring Inter-Channel Correlation for Diversity-preserved KD (Liu et al., ICCV 2021, arXiv 2202.03680): ICKD-C.

    G = F F^T of a map F [K, H W], each row divided by its L2 norm
    L = CE + weight * sum (G_student - G_teacher)^2 / (K N)

The student's map first goes through a 1x1 convolution and a BatchNorm into the teacher's K channels. G is made at the teacher
where its K x K entries are fewer than the map's K x H x W; the spatial sizes of the two networks need not agree.

Deviations: none; the scale is that of the authors' code. The grid-level form for dense prediction (ICKD-S) is not here.

Verified against torchdistill, whose loss is divided by N once more.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from stillhouse.distill.maps import MapMethod, make_connector
from stillhouse.distill.method import ANY_TASK, Card, Helper, Setup, Step, hyperparameter
from stillhouse.knowledge.kinds import Knowledge, feature, reduced
from stillhouse.models.architecture import Architecture
from stillhouse.spec.priors import LogUniform


def channel_correlation(maps: Tensor) -> Tensor:
    """F F^T of [B, K, H, W] with rows of length 1: [B, K, K]. The row of a dead channel stays zero."""
    flat = maps.flatten(2)
    return F.normalize(flat @ flat.transpose(1, 2), dim=2)


def correlation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """(G_student - G_teacher)^2 summed over columns, the mean over rows and batch; both are [B, K, K]. At most 4."""
    return (student - teacher).square().sum(dim=2).mean()


@dataclass(frozen=True, kw_only=True)
class InterChannel(MapMethod):
    """The student's channels resemble one another as the teacher's do."""

    card: ClassVar[Card] = Card(
        title="Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation",
        arxiv="2202.03680",
        family="F",
        equations="the inter-channel correlation for classification (ICKD-C)",
        deviations="the last pair of maps by default",
        suggested="correlation_weight 2.5 on CIFAR-100",
        interactions="with many channels the correlation matrix outgrows the map: the map is asked for then",
    )
    tasks: ClassVar[tuple[str, ...]] = (ANY_TASK,)
    last_alone: ClassVar[bool] = True

    correlation_weight: float = hyperparameter(2.5, minimum=0, prior=LogUniform(0.1, 50), help="beta of the authors' code")

    @property
    def active(self) -> bool:
        return self.correlation_weight > 0

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        if not self.active:
            return {}
        asked = {}
        for of_student, of_teacher in self.pairs(teacher, student).items():
            channels, height, width = teacher.shape(of_teacher)
            if channels <= height * width:
                asked[f"correlation.{of_student}"] = reduced(channel_correlation, of_teacher)
            else:
                asked[f"map.{of_student}"] = feature(of_teacher)
        return asked

    def modules(self, setup: Setup) -> Mapping[str, Helper]:
        return self.connectors(setup, make_connector)

    def loss(self, step: Step) -> dict[str, Tensor]:
        terms = super().loss(step)
        if not self.active:
            return terms
        connected = step.modules["connectors"](list(step.student_features.values()))
        losses = []
        for layer, maps in zip(step.student_features, connected, strict=True):
            teacher = step.teacher.get(f"correlation.{layer}")
            if teacher is None:
                teacher = channel_correlation(step.teacher[f"map.{layer}"])
            losses.append(correlation_loss(channel_correlation(maps), teacher))
        return terms | {"correlation": self.correlation_weight * torch.stack(losses).sum()}
