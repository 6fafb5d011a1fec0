"""Distilling the Knowledge in a Neural Network (Hinton, Vinyals, Dean 2015, arXiv 1503.02531).

    p_T(z) = softmax(z / T)
    L = w T^2 KL(p_T(teacher) || p_T(student)) + (1 - w) CE(y, p_1(student))

The paper minimises the cross-entropy of the softened outputs; KL differs from it by the teacher's entropy, which has no
gradient, and is 0 for equal outputs. T^2 keeps the soft term's gradient at the same scale for every T (section 2).

Variants: `soft_only` is only the first term, with weight 1; `hard_label` replaces the soft targets by the teacher's argmax.
`samples` gives each sample its own weight w_n: w if the teacher is right and 0 if it is wrong, or w times the teacher's
probability of the label. The label has the weight 1 - w_n.
Deviations: `linear_decay` of w and the weights of single samples are not in the paper.

Verified against the numbers of RepDistiller, torchdistill, Attention Transfer and MGD (T = 1.5), and against the limit
T^2 dKL/ds -> (s - z) / C of section 2.1 for logits of zero mean.
"""

import warnings
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
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


def kd_losses(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """`kd_loss` of each sample, [B]."""
    student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1)


def teachers_shares(teacher_logits: Tensor, targets: Tensor, samples: str) -> Tensor:
    """How reliable the teacher is on each sample, in [0, 1]: [B].

    Args:
        teacher_logits: [B, C].
        targets: [B] int64, or probabilities [B, C] of mixed samples.
        samples: "teacher_right" for 1 where the teacher's argmax is the class of the sample (of a mixed one, the class with the
            larger share), else 0; "teacher_confidence" for the teacher's probability of the class at temperature 1.
    """
    classes = torch.zeros_like(teacher_logits).scatter_(1, targets.unsqueeze(1), 1) if targets.ndim == 1 else targets
    if samples == "teacher_right":
        return (teacher_logits.argmax(dim=1) == classes.argmax(dim=1)).to(teacher_logits.dtype)
    return (F.softmax(teacher_logits, dim=1) * classes).sum(dim=1)


def hard_label_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Cross-entropy of the student [B, C] with the teacher's argmax, the mean over the batch."""
    return F.cross_entropy(student_logits, teacher_logits.argmax(dim=1))


@dataclass(frozen=True, kw_only=True)
class KD(Method):
    """The student learns the teacher's softened outputs and the labels."""

    card: ClassVar[Card] = Card(
        title="Distilling the Knowledge in a Neural Network",
        arxiv="1503.02531",
        family="L",
        equations="section 2, with the factor T^2 and the weighted average of the two terms",
        deviations="KL instead of cross-entropy (same gradient); the weight may decay or depend on the sample",
        suggested="temperature 4, kd_weight 0.9 on CIFAR-100; temperature 2.5 to 20 in the paper",
        interactions="a teacher trained with label smoothing loses the information on similar classes (arXiv 1906.02629)",
    )

    temperature: float = hyperparameter(4.0, above=0, prior=LogUniform(1, 20), help="T, softens both outputs")
    kd_weight: float = hyperparameter(
        0.9,
        minimum=0,
        maximum=1,
        prior=Uniform(0.1, 1.0),
        help="w, weight of the teacher's outputs; the labels have weight 1 - w",
    )
    weight_schedule: Literal["constant", "linear_decay"] = hyperparameter(
        "constant",
        choices=("constant", "linear_decay"),
        help="linear_decay: kd_weight falls linearly to 0 until the end of training",
    )
    variant: Literal["weighted", "soft_only", "hard_label"] = hyperparameter(
        "weighted",
        choices=("weighted", "soft_only", "hard_label"),
        help="soft_only: no labels; hard_label: the teacher's argmax",
    )
    samples: Literal["alike", "teacher_right", "teacher_confidence"] = hyperparameter(
        "alike",
        choices=("alike", "teacher_right", "teacher_confidence"),
        help="weights of samples: all alike; 0 where the teacher is wrong; times the teacher's probability of the label",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        unused = {"soft_only": ("kd_weight", "weight_schedule", "samples"), "hard_label": ("temperature",)}
        for name in unused.get(self.variant, ()):
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
        if self.samples != "alike":
            return self._shared(step, weight * teachers_shares(teacher_logits, step.targets, self.samples))
        if self.variant == "hard_label":
            taught = {"hard_label": weight * hard_label_loss(step.logits, teacher_logits)}
        else:
            taught = {"kd": weight * kd_loss(step.logits, teacher_logits, self.temperature)}
        return {"cross_entropy": (1 - weight) * step.supervised()} | taught

    def _shared(self, step: Step, shares: Tensor) -> dict[str, Tensor]:
        """The terms if each sample has its own weight, `shares` [B]."""
        teacher_logits = step.teacher["logits"]
        if self.variant == "hard_label":
            taught = {"hard_label": F.cross_entropy(step.logits, teacher_logits.argmax(dim=1), reduction="none")}
        else:
            taught = {"kd": kd_losses(step.logits, teacher_logits, self.temperature)}
        labelled = F.cross_entropy(step.logits, step.targets, reduction="none")
        return {"cross_entropy": ((1 - shares) * labelled).mean()} | {
            name: (shares * losses).mean() for name, losses in taught.items()
        }
