"""Quantization Mimic (Wei, Pan, Qin, Ouyang, Yan 2018, arXiv 1805.02152): the student matches the teacher's quantized maps.

    Q(f) = s max(ceil(f / s - 1/2), 0)                 the nearest of 0, s, 2 s, ...; ties go down, negative values to 0
    L = 1 / 2N sum_n |Q(t_n) - Q(r(s_n))|^2
    R = 1 / NK sum_n |G(Q(t_n)) - G(Q(r(s_n)))|^2      G(F) = F F^T of [K, HW], its rows of length 1; with `relation_weight`

r is a 1x1 convolution to the teacher's channels; the gradient of Q is that of the values themselves (straight-through). The
student's search for the teacher's values becomes one in a small, discrete set. R compares how the quantized maps of a layer
relate to each other, not their values.

Deviations: the paper mimics the features of detected regions, and N is the number of regions; here maps of whole images are
compared, N is the number of images, and the sum over a map is divided by its elements, so that one weight suits all sizes
(`form: mean`; `paper` is the sum). The larger of two maps is averaged to the size of the smaller one first. R is not the
paper's; G is that of `inter_channel`.

Verified against the formula in float64, with values on ties; R against its formula.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from stillhouse.distill.maps import ChannelMethod, channels_of_teacher, meeting_size, shrink
from stillhouse.distill.method import ANY_TASK, Card, Helper, Setup, Step, hyperparameter
from stillhouse.knowledge.kinds import Knowledge, reduced
from stillhouse.methods.inter_channel import channel_correlation, correlation_loss
from stillhouse.models.architecture import Architecture
from stillhouse.spec.priors import LogUniform


def quantized(maps: Tensor, step: float) -> Tensor:
    """Q: the nearest of 0, s, 2 s, ... for s = `step` > 0; a value in the middle of two becomes the smaller one."""
    return step * (maps / step - 0.5).ceil().clamp_min(0)


def mimic_loss(student: Tensor, teacher: Tensor, step: float, form: str = "paper") -> Tensor:
    """1 / 2N sum_n |Q(teacher_n) - Q(student_n)|^2; the gradient is (Q(student) - Q(teacher)) / N.

    Args:
        student: r(s), [N, K, H, W].
        teacher: of the same shape.
        step: s.
        form: "paper" sums over a map's elements, "mean" averages over them.
    """
    summed = (_straight_through(student, step) - quantized(teacher, step)).square().sum() / (2 * len(student))
    return summed if form == "paper" else summed / student[0].numel()


def relation_loss(student: Tensor, teacher: Tensor, step: float) -> Tensor:
    """1 / NK sum_n |G(Q(teacher_n)) - G(Q(student_n))|^2, G the correlations of the K maps of an image. At most 4.

    Args:
        student: r(s), [N, K, H, W].
        teacher: of the same shape.
        step: s.
    """
    ours, theirs = _straight_through(student, step), quantized(teacher, step)
    loss: Tensor = correlation_loss(channel_correlation(ours), channel_correlation(theirs))
    return loss


def _straight_through(maps: Tensor, step: float) -> Tensor:
    """Q(f), with the gradient of f."""
    return maps + (quantized(maps, step) - maps).detach()


def map_at_size(features: Tensor, *, height: int, width: int) -> Tensor:
    """Features [B, K, H, W] averaged down to height x width."""
    return shrink(features, height, width)


@dataclass(frozen=True, kw_only=True)
class QuantizationMimic(ChannelMethod):
    """The student's maps, quantized, match the teacher's quantized maps."""

    card: ClassVar[Card] = Card(
        title="Quantization Mimic: Towards Very Tiny CNN for Object Detection",
        arxiv="1805.02152",
        family="Q",
        equations="the quantization and mimic losses of section 3, on feature maps of whole images",
        deviations="mean over a map's elements by default; maps of images instead of regions",
        suggested="mimic_weight 1 on the last maps, quantization_step near half of a typical activation",
        interactions="maps before a ReLU lose their negative values; a step larger than most activations teaches zeros",
    )
    tasks: ClassVar[tuple[str, ...]] = (ANY_TASK,)
    last_pair_only: ClassVar[bool] = True

    mimic_weight: float = hyperparameter(1.0, minimum=0, prior=LogUniform(0.1, 100), help="weight of the mimic loss")
    quantization_step: float = hyperparameter(
        0.5, above=0, prior=LogUniform(0.05, 2), help="s, the distance of quantized values"
    )
    form: Literal["mean", "paper"] = hyperparameter(
        "mean", choices=("mean", "paper"), help="mean or sum over the elements of a map"
    )

    relation_weight: float = hyperparameter(
        0.0, minimum=0, added_later=True, help="weight of the relations between the quantized maps of a layer"
    )

    @property
    def active(self) -> bool:
        return self.mimic_weight > 0 or self.relation_weight > 0

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        if not self.active:
            return {}
        needed = {}
        for ours, theirs in self.pairs(teacher, student).items():
            height, width = meeting_size(student.shape(ours), teacher.shape(theirs))
            # Not quantized yet: one sealed view then serves every step.
            needed[f"map.{ours}"] = reduced(map_at_size, theirs, height=height, width=width)
        return needed

    def modules(self, setup: Setup) -> Mapping[str, Helper]:
        return self.connectors(setup, lambda inputs, outputs: nn.Conv2d(inputs, outputs, 1))

    def loss(self, step: Step) -> dict[str, Tensor]:
        terms = super().loss(step)
        if not self.active:
            return terms
        teachers = [step.teacher[f"map.{layer}"] for layer in step.student_features]
        shrunk = [
            shrink(features, *teacher.shape[2:])
            for features, teacher in zip(step.student_features.values(), teachers, strict=True)
        ]
        connectors = step.modules["connectors"]
        mapped, teachers = connectors(shrunk), channels_of_teacher(connectors, teachers)
        pairs = list(zip(mapped, teachers, strict=True))
        if self.mimic_weight:
            losses = [mimic_loss(ours, theirs, self.quantization_step, self.form) for ours, theirs in pairs]
            terms["mimic"] = self.mimic_weight * torch.stack(losses).sum()
        if self.relation_weight:
            losses = [relation_loss(ours, theirs, self.quantization_step) for ours, theirs in pairs]
            terms["relations"] = self.relation_weight * torch.stack(losses).sum()
        return terms
