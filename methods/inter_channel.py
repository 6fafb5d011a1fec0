"""Exploring Inter-Channel Correlation for Diversity-preserved KD (Liu et al., ICCV 2021, arXiv 2202.03680): ICKD-C.

    G = F F^T of a map F [K, H W], each row divided by its L2 norm
    L = CE + weight * sum (G_student - G_teacher)^2 / (K N)

A 1x1 convolution and a BatchNorm first map the student's channels to the teacher's K channels. G is computed at the teacher if
its K x K entries are fewer than the K x H x W of the map. The spatial sizes of the two networks may differ.

Deviations: none; the scale is that of the authors' code. The grid-level form for dense prediction (ICKD-S) is not implemented.

Verified against torchdistill, whose loss is divided by N once more.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from stillhouse.distill.maps import ChannelMethod, channels_of_teacher, make_connector
from stillhouse.distill.method import ANY_TASK, Card, Helper, Setup, Step, hyperparameter
from stillhouse.knowledge.kinds import Knowledge, feature, reduced
from stillhouse.models.architecture import Architecture
from stillhouse.spec.priors import LogUniform

_SHORTEST = 1e-12
"""A row that is not longer counts as zero."""


def channel_correlation(maps: Tensor) -> Tensor:
    """F F^T of [B, K, H, W] with rows of length 1: [B, K, K]. The row of a dead channel stays zero."""
    flat = maps.flatten(2)
    products = flat @ flat.transpose(1, 2)
    lengths = torch.linalg.vector_norm(products, dim=2, keepdim=True)
    # Divided by their length or a bound of it, rows of zeros would have gradients of any size.
    return products / torch.where(lengths > _SHORTEST, lengths, 1.0)


def correlation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """(G_student - G_teacher)^2, the sum over columns, the mean over rows and batch, of matrices [B, K, K]. At most 4."""
    return (student - teacher).square().sum(dim=2).mean()


@dataclass(frozen=True, kw_only=True)
class InterChannel(ChannelMethod):
    """The student's channels correlate with each other as the teacher's do."""

    card: ClassVar[Card] = Card(
        title="Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation",
        arxiv="2202.03680",
        family="F",
        equations="the correlation between channels, for classification (ICKD-C)",
        deviations="only the last pair of maps by default",
        suggested="correlation_weight 2.5 on CIFAR-100",
        interactions="with more channels than positions the teacher's map itself is the knowledge, which is large to cache",
    )
    tasks: ClassVar[tuple[str, ...]] = (ANY_TASK,)
    last_pair_only: ClassVar[bool] = True

    correlation_weight: float = hyperparameter(
        2.5, minimum=0, prior=LogUniform(0.1, 50), help="weight of the correlation loss, beta in the authors' code"
    )

    @property
    def active(self) -> bool:
        return self.correlation_weight > 0

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        if not self.active:
            return {}
        needed: dict[str, Knowledge] = {}
        for of_student, of_teacher in self.pairs(teacher, student).items():
            channels, height, width = teacher.shape(of_teacher)
            if channels <= height * width:
                needed[f"correlation.{of_student}"] = reduced(channel_correlation, of_teacher)
            else:
                needed[f"map.{of_student}"] = feature(of_teacher)
        return needed

    def modules(self, setup: Setup) -> Mapping[str, Helper]:
        return self.connectors(setup, make_connector)

    def loss(self, step: Step) -> dict[str, Tensor]:
        terms = super().loss(step)
        if not self.active:
            return terms
        connectors = step.modules["connectors"]
        connected = connectors(list(step.student_features.values()))
        teachers = [self._of_teacher(step, layer) for layer in step.student_features]
        chosen = channels_of_teacher(connectors, teachers, 1, 2)
        losses = [
            # The length of a row counts the channels that remain.
            correlation_loss(channel_correlation(maps), theirs if theirs.shape == whole.shape else F.normalize(theirs, dim=2))
            for maps, theirs, whole in zip(connected, chosen, teachers, strict=True)
        ]
        return terms | {"correlation": self.correlation_weight * torch.stack(losses).sum()}

    def _of_teacher(self, step: Step, layer: str) -> Tensor:
        teacher = step.teacher.get(f"correlation.{layer}")
        return channel_correlation(step.teacher[f"map.{layer}"]) if teacher is None else teacher
