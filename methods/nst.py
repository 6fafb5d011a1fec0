"""Like What You Like: Knowledge Distill via Neuron Selectivity Transfer (Huang, Wang 2017, arXiv 1707.01219).

    f_c = F_c / |F_c|_2 over the positions of channel c
    MMD^2 = mean_{cc'} k(t_c, t_c') + mean_{cc'} k(s_c, s_c') - 2 mean_{cc'} k(t_c, s_c')
    code:   L = CE + lambda MMD^2          (the authors' repository)
    paper:  L = CE + lambda / 2 MMD^2

Kernels: linear k = x.y; polynomial k = (x.y + c)^d with d = 2, c = 0; Gaussian k = exp(-|x - y|^2 / (2 sigma^2))
with sigma^2 the mean squared distance of the pairs. The term of the teacher alone is part of the value; it has no gradient. The
linear kernel needs the mean of the teacher's normalised channels (H x W numbers); the others need all channels.

The default is what the authors' repository trains: the weight of the form `code`, and the maps before the ReLU, which are the
outputs of a BatchNorm. `form="paper"` with `maps="after_relu"` is the formula of the paper on the activations.

Deviations: sigma^2 is computed for each sample over the pairs (t, s), and is a constant in the backward pass. Maps of different
sizes are average-pooled to the smaller size. By default only the last pair of maps is compared.

Verified against RepDistiller, the gradient of the authors' code and the formulas of the kernels.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from stillhouse.distill.maps import MapMethod, meeting_size, shrink
from stillhouse.distill.method import ANY_TASK, Card, Step, hyperparameter
from stillhouse.knowledge.kinds import Knowledge, reduced
from stillhouse.models.architecture import Architecture
from stillhouse.spec.priors import LogUniform


def selectivity(maps: Tensor, *, height: int, width: int) -> Tensor:
    """Maps [B, K, H, W] averaged down to height x width, each channel divided by its L2 norm. A channel of zeros stays one."""
    maps = shrink(maps, height, width)
    return F.normalize(maps.flatten(2), dim=2).reshape(maps.shape)


def mean_selectivity(maps: Tensor, *, height: int, width: int) -> Tensor:
    """The mean of the normalised channels, [B, 1, height, width]: all that the linear kernel needs."""
    return selectivity(maps, height=height, width=width).mean(dim=1, keepdim=True)


def linear_mmd(student: Tensor, teacher: Tensor) -> Tensor:
    """|mean_c t_c - mean_c s_c|^2, the mean over the batch, of normalised maps [B, K, H, W]; the two K may differ."""
    return (teacher.mean(dim=1) - student.mean(dim=1)).square().sum() / len(student)


def polynomial_mmd(student: Tensor, teacher: Tensor, *, degree: int = 2, offset: float = 0.0) -> Tensor:
    """MMD^2 with k = (x.y + offset)^degree, the mean over the batch, of normalised maps [B, K, H, W]; the two K may differ."""

    def kernel(left: Tensor, right: Tensor) -> Tensor:
        return (left.flatten(2) @ right.flatten(2).transpose(1, 2) + offset).pow(degree).mean()

    return kernel(teacher, teacher) + kernel(student, student) - 2 * kernel(teacher, student)


def gaussian_mmd(student: Tensor, teacher: Tensor, *, variance: Tensor | float | None = None) -> Tensor:
    """MMD^2 with k = exp(-|x - y|^2 / (2 variance)), the mean over the batch, of normalised maps [B, K, H, W].

    Args:
        variance: sigma^2, one number or [B], one per sample; None for each sample's mean squared distance over the pairs (t,
        s).
    """

    def distances(left: Tensor, right: Tensor) -> Tensor:
        products = left.flatten(2) @ right.flatten(2).transpose(1, 2)
        squares = left.flatten(2).square().sum(2)[:, :, None] + right.flatten(2).square().sum(2)[:, None, :]
        return squares - 2 * products

    between = distances(teacher, student)
    if variance is None:
        variance = between.detach().mean(dim=(1, 2)).clamp_min(1e-12)
    scale = torch.as_tensor(variance, dtype=student.dtype, device=student.device).reshape(-1, 1, 1)

    def kernel(squares: Tensor) -> Tensor:
        return torch.exp(-squares / (2 * scale)).mean()

    return kernel(distances(teacher, teacher)) + kernel(distances(student, student)) - 2 * kernel(between)


_DISTANCES = {"linear": linear_mmd, "polynomial": polynomial_mmd, "gaussian": gaussian_mmd}


@dataclass(frozen=True, kw_only=True)
class NST(MapMethod):
    """The distribution of the student's channel patterns matches that of the teacher's."""

    card: ClassVar[Card] = Card(
        title="Like What You Like: Knowledge Distill via Neuron Selectivity Transfer",
        arxiv="1707.01219",
        family="F",
        equations="the squared maximum mean discrepancy with linear, polynomial and Gaussian kernel",
        deviations="sigma^2 per sample, without gradient; the larger of two maps is average-pooled to the size of the smaller",
        suggested="nst_weight 50 with the polynomial kernel and form code (the authors' repository)",
        interactions="worse than no teacher if the architectures differ much (VGG-13 to MobileNetV2 on CIFAR-100) or maps are "
        "small: on 2 x 2 after the ReLU, 93.0% with 25 and form code, 95.2% with 5, 95.7% without a teacher (12 epochs of "
        "1000 digits, resnet8 of width 0.25, 4 seeds)",
    )
    revision: ClassVar[int] = 2
    tasks: ClassVar[tuple[str, ...]] = (ANY_TASK,)
    last_pair_only: ClassVar[bool] = True

    nst_weight: float = hyperparameter(50.0, minimum=0, prior=LogUniform(1, 500), help="lambda")
    form: Literal["code", "paper"] = hyperparameter(
        "code", choices=("code", "paper"), help="code: the loss has the weight lambda; paper: lambda / 2"
    )
    maps: Literal["before_relu", "after_relu"] = hyperparameter(
        "before_relu",
        choices=("before_relu", "after_relu"),
        help="which maps of the stages are compared, unless layers are named; a network without maps before the ReLU gives "
        "those after it",
    )
    kernel: Literal["linear", "polynomial", "gaussian"] = hyperparameter(
        "polynomial", choices=("linear", "polynomial", "gaussian"), help="kernel of the maximum mean discrepancy"
    )

    @property
    def active(self) -> bool:
        return self.nst_weight > 0

    @property
    def teacher_before_relu(self) -> bool:
        return self.maps == "before_relu"

    @property
    def student_before_relu(self) -> bool:
        return self.maps == "before_relu"

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        if not self.active:
            return {}
        needed = {}
        for of_student, of_teacher in self.pairs(teacher, student).items():
            height, width = meeting_size(student.shape(of_student), teacher.shape(of_teacher))
            reduction = mean_selectivity if self.kernel == "linear" else selectivity
            needed[f"selectivity.{of_student}"] = reduced(reduction, of_teacher, height=height, width=width)
        return needed

    def loss(self, step: Step) -> dict[str, Tensor]:
        terms = super().loss(step)
        if not self.active:
            return terms
        losses = []
        for layer, maps in step.student_features.items():
            teacher = step.teacher[f"selectivity.{layer}"]
            height, width = teacher.shape[2:]
            losses.append(_DISTANCES[self.kernel](selectivity(maps, height=height, width=width), teacher))
        weight = self.nst_weight if self.form == "code" else self.nst_weight / 2
        return terms | {"selectivity": weight * torch.stack(losses).sum()}
