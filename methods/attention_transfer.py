"""Paying More Attention to Attention (Zagoruyko, Komodakis 2017, arXiv 1612.03928): activation-based attention transfer.

    Q = vec(sum_c |A_c|^p)  or  vec(max_c |A_c|^p),  q = Q / |Q|_2
    paper:  L = CE + sum_j beta_j / 2 sum_n |q_student - q_teacher|_2        (equation 2)
    code:   L = CE + beta sum_j mean_{n, hw} (q_student - q_teacher)^2       (the authors' repository)

Section 4.1 sets beta_j to 10^3 divided by the number of elements of the map and by the batch size. `attention_weight` is
that 10^3, so it means the same in both forms. The map is computed at the teacher: H x W numbers per sample.

Deviations: a map of fewer than 49 elements is weighted as if it had 49, the fewest in the paper's experiments; divided by the
4 elements of a 2 x 2 map, the term would be much larger than the cross-entropy. Where teacher and student have different
numbers of stages, they are paired from the last one backwards. Where the sizes of a pair differ, the features of the larger are
average-pooled to the size of the smaller before their powers are taken, as in RepDistiller. `kd_weight` > 0 adds the soft
targets of `kd`, as the paper does in its tables "AT+KD".

Verified against the numbers of the authors' code, torchdistill's `paper` mode and RepDistiller, and against the formulas.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from stillhouse.distill.maps import MapMethod, meeting_size, shrink
from stillhouse.distill.method import ANY_TASK, DEFAULT_TASK, Card, Step, hyperparameter
from stillhouse.knowledge.kinds import Knowledge, logits, reduced
from stillhouse.methods.kd import kd_loss
from stillhouse.models.architecture import Architecture
from stillhouse.spec.priors import LogUniform

_FEWEST_ELEMENTS = 49
"""7 x 7, the last stage of the ImageNet networks of section 4.2."""


def attention_map(features: Tensor, *, power: float, pooling: str) -> Tensor:
    """sum_c |A_c|^p or max_c |A_c|^p over the channels of [B, K, H, W], divided by its L2 norm: [B, H, W].

    Normalised where it is made, so that no power of an activation overflows float16 on its way. A map of zeros stays one.
    """
    merged = torch.pow(features.abs(), power)
    merged = merged.amax(dim=1) if pooling == "max" else merged.sum(dim=1)
    return F.normalize(merged.flatten(1)).reshape(merged.shape)


def pooled_attention_map(features: Tensor, *, power: float, pooling: str, height: int, width: int) -> Tensor:
    """`attention_map` of the features [B, K, H, W] averaged down to height x width: [B, height, width]."""
    return attention_map(shrink(features, height, width), power=power, pooling=pooling)


def attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """|q_s - q_t|_2, the mean over the batch, of normalised maps [B, H, W]. Between 0 and sqrt(2)."""
    distances: Tensor = torch.linalg.vector_norm((student - teacher).flatten(1), dim=1)
    return distances.mean()


def squared_attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """(q_s - q_t)^2, the mean over all elements, of normalised maps [B, H, W]."""
    return (student - teacher).square().mean()


@dataclass(frozen=True, kw_only=True)
class AttentionTransfer(MapMethod):
    """The student's feature maps are active at the positions where the teacher's are."""

    card: ClassVar[Card] = Card(
        title="Paying More Attention to Attention: Improving the Performance of CNNs via Attention Transfer",
        arxiv="1612.03928",
        family="F",
        equations="equations 1 and 2, activation-based; the gradient-based form of section 3.2 is gradient_attention",
        deviations="stages paired from the last; the larger of two maps is average-pooled to the size of the smaller first; "
        "maps smaller than 7x7 are weighted as if they were 7x7",
        suggested="attention_weight 1000 (section 4.1, and the authors' repository with form code), power 2",
        interactions="worse than no teacher if the architectures differ much (VGG-13 to MobileNetV2 on CIFAR-100); "
        "students without BatchNorm and small images need a weight below 200: 84.7% with 1000, 95.4% with 100, "
        "95.9% without a teacher (12 epochs of 1000 digits of 8 x 8 pixels, resnet8 of width 0.25, 2 seeds)",
    )
    revision: ClassVar[int] = 2
    tasks: ClassVar[tuple[str, ...]] = (ANY_TASK,)

    attention_weight: float = hyperparameter(
        1000.0,
        minimum=0,
        prior=LogUniform(3, 10_000),
        help="beta times the number of elements of a map and times the batch size",
    )
    form: Literal["paper", "code"] = hyperparameter(
        "paper", choices=("paper", "code"), help="paper: beta / 2 times the norm; code: beta times the mean square"
    )
    power: float = hyperparameter(2.0, minimum=1, help="p; the teacher's maps are computed anew for each value")
    pooling: Literal["sum", "max"] = hyperparameter(
        "sum", choices=("sum", "max"), help="how the channels are reduced to one map"
    )
    kd_weight: float = hyperparameter(
        0.0, minimum=0, maximum=1, help="weight w of soft targets as in kd; the labels have weight 1 - w; 0: no soft targets"
    )
    temperature: float = hyperparameter(4.0, above=0, help="T of the soft targets, if kd_weight > 0")

    def serves(self, task: str) -> bool:
        """Any task; with soft targets (`kd_weight` > 0), which need logits, the default task only."""
        return super().serves(task) if not self.kd_weight else task == DEFAULT_TASK

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        needed: dict[str, Knowledge] = {"logits": logits()} if self.kd_weight else {}
        for of_student, of_teacher in (self.pairs(teacher, student) if self.active else {}).items():
            shape = teacher.shape(of_teacher)
            height, width = meeting_size(student.shape(of_student), shape)
            if (height, width) == tuple(shape[1:]):  # shared by all students whose maps are not smaller
                map_of_teacher = reduced(attention_map, of_teacher, power=self.power, pooling=self.pooling)
            else:
                map_of_teacher = reduced(
                    pooled_attention_map, of_teacher, power=self.power, pooling=self.pooling, height=height, width=width
                )
            needed[f"attention.{of_student}"] = map_of_teacher
        return needed

    @property
    def active(self) -> bool:
        return self.attention_weight > 0

    def loss(self, step: Step) -> dict[str, Tensor]:
        terms = {name: (1 - self.kd_weight) * term for name, term in super().loss(step).items()}
        if self.kd_weight:
            terms["kd"] = self.kd_weight * kd_loss(step.logits, step.teacher["logits"], self.temperature)
        if not self.active:
            return terms
        attention = torch.stack(
            [self._distance(features, step.teacher[f"attention.{layer}"]) for layer, features in step.student_features.items()]
        )
        return terms | {"attention": self.attention_weight * attention.sum()}

    def _distance(self, features: Tensor, teacher: Tensor) -> Tensor:
        height, width = teacher.shape[1:]
        student = pooled_attention_map(features, power=self.power, pooling=self.pooling, height=height, width=width)
        elements = max(height * width, _FEWEST_ELEMENTS)
        if self.form == "code":
            return squared_attention_distance(student, teacher) * height * width / elements
        return attention_distance(student, teacher) / (2 * elements)
