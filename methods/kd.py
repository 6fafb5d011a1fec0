"""Distilling the Knowledge in a Neural Network (Hinton, Vinyals, Dean 2015, arXiv 1503.02531).

    p_T(z) = softmax(z / T)
    L = w T^2 KL(p_T(teacher) || p_T(student)) + (1 - w) CE(y, p_1(student))

The paper minimises the cross-entropy of the softened outputs; KL differs from it by the teacher's entropy, which has no
gradient, and is 0 for equal outputs. T^2 keeps the soft term's gradient at the same scale for every T (section 2).

Variants: `soft_only` is the first term alone with weight 1; `hard_label` replaces the soft targets by the teacher's argmax.
Deviations: `linear_decay` of w is not in the paper.

Verified against the numbers of RepDistiller, torchdistill, Attention Transfer and MGD (T = 1.5), and against the limit
T^2 dKL/ds -> (s - z) / C of section 2.1 for logits of zero mean.
"""

import warnings
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from stillhouse.distill.method import Card, Method, Step, hyperparameter
from stillhouse.knowledge.kinds import Knowledge, logits
from stillhouse.models.architecture import Architecture
from stillhouse.spec.priors import LogUniform, Uniform


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), the mean over the batch.

    As T grows, the gradient tends to (s - z) / C per sample for logits of zero mean.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C].
        temperature: T > 0.
    """
    student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def hard_label_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Cross-entropy of the student [B, C] with the teacher's argmax, the mean over the batch."""
    return F.cross_entropy(student_logits, teacher_logits.argmax(dim=1))


@dataclass(frozen=True, kw_only=True)
class KD(Method):
    """The student matches the teacher's softened outputs."""

    card: ClassVar[Card] = Card(
        title="Distilling the Knowledge in a Neural Network",
        arxiv="1503.02531",
        family="L",
        equations="section 2, with the factor T^2 and the weighted average of both terms",
        deviations="KL instead of cross-entropy (same gradient); the weight may decay",
        suggested="temperature 4, kd_weight 0.9 on CIFAR-100; temperature 2.5 to 20 in the paper",
        interactions="label smoothing of the teacher erases what the soft targets say of the other classes (arXiv 1906.02629)",
    )

    temperature: float = hyperparameter(4.0, above=0, prior=LogUniform(1, 20), help="T, softens both outputs")
    kd_weight: float = hyperparameter(
        0.9, minimum=0, maximum=1, prior=Uniform(0.1, 1.0), help="w, the teacher's share; the labels get the rest"
    )
    weight_schedule: Literal["constant", "linear_decay"] = hyperparameter(
        "constant", choices=("constant", "linear_decay"), help="linear_decay: kd_weight falls to 0 at the end of training"
    )
    variant: Literal["weighted", "soft_only", "hard_label"] = hyperparameter(
        "weighted", choices=("weighted", "soft_only", "hard_label"), help="soft_only: no labels; hard_label: teacher's argmax"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        unused = {"soft_only": ("kd_weight", "weight_schedule"), "hard_label": ("temperature",)}.get(self.variant, ())
        for name in unused:
            if getattr(self, name) != self.defaults()[name]:
                warnings.warn(f"{name} has no effect with variant={self.variant!r}", stacklevel=3)

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        return {"logits": logits()} if self.kd_weight or self.variant == "soft_only" else {}

    def loss(self, step: Step) -> dict[str, Tensor]:
        if self.variant == "soft_only":
            return {"kd": kd_loss(step.logits, step.teacher["logits"], self.temperature)}
        if not self.kd_weight:
            return super().loss(step)
        teacher_logits = step.teacher["logits"]
        weight = self.kd_weight * (1 - step.progress if self.weight_schedule == "linear_decay" else 1)
        if self.variant == "hard_label":
            taught = {"hard_label": weight * hard_label_loss(step.logits, teacher_logits)}
        else:
            taught = {"kd": weight * kd_loss(step.logits, teacher_logits, self.temperature)}
        return {"cross_entropy": (1 - weight) * F.cross_entropy(step.logits, step.targets)} | taught
