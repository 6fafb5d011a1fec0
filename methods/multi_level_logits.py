"""Multi-Level Logit Distillation (Jin, Wang, Lin, CVPR 2023): MLKD, or MLLD.

    P = softmax(z / T), [B, C], of the student (s) and of the teacher (t), for each of the temperatures 2, 3, 4, 5, 6
    instance  T^2 mean_n KL(P_t[n] || P_s[n])
    batch     1 / B |P_t P_t^T - P_s P_s^T|_F^2          which samples of a batch have similar outputs
    class     1 / C |P_t^T P_t - P_s^T P_s|_F^2          which classes appear together in the outputs of a batch
    L = lambda CE + sum_T (alpha instance + beta batch + gamma class)

Softening the outputs with several temperatures is the paper's prediction augmentation. The class term grows with the square of
the batch size, the batch term in proportion to it.

`samples: uncertain` learns only from the half of a batch on which the teacher is less certain, and in the class term only from
the half of the classes to which it gives less probability; both halves are set by the median, at temperature 1.

Deviations: one view per step. The authors' code adds the cross-entropy and the instance term of a second, stronger view of the
same images; here the view policy of the sweep decides how strong views are, and one pass of student and teacher is enough.
Their code multiplies its mask of uncertain samples with a loss that is a mean already, which only halves it; `uncertain`
applies the mask to the samples. It computes batch and class terms of the strong view and does not add them, and it takes the
weak view's outputs for two of the strong view's temperatures.

A step costs 1.1 times one of `kd` (resnet8 taught by resnet20, digits, one thread).

The paper itself was not available. Verified against the authors' code, evaluated by hand on small outputs, and against `kd`,
which is the instance term at one temperature.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from stillhouse.distill.method import Card, Method, Step, hyperparameter
from stillhouse.knowledge.kinds import Knowledge, logits
from stillhouse.models.architecture import Architecture
from stillhouse.spec.priors import LogUniform


def log_probabilities(logits: Tensor, temperatures: Sequence[float]) -> Tensor:
    """The logarithms of softmax(z / T) of logits [B, C] for each of N temperatures: [N, B, C]."""
    return torch.stack([F.log_softmax(logits / temperature, dim=1) for temperature in temperatures])


def instance_loss(student: Tensor, teacher: Tensor, temperatures: Sequence[float], samples: Tensor | None = None) -> Tensor:
    """The sum over temperatures of T^2 KL(teacher || student), the mean over the batch.

    Args:
        student: log probabilities, [N, B, C].
        teacher: log probabilities, [N, B, C].
        temperatures: the N temperatures.
        samples: [B], 1 for samples that count and 0 for others; None for all.
    """
    divergences = (teacher.exp() * (teacher - student)).sum(dim=2)
    scaled = torch.stack([temperature**2 * row for temperature, row in zip(temperatures, divergences, strict=True)])
    return _chosen(scaled, samples).mean(dim=1).sum()


def batch_loss(student: Tensor, teacher: Tensor, samples: Tensor | None = None) -> Tensor:
    """The sum over temperatures of |P_t P_t^T - P_s P_s^T|_F^2 / B, of probabilities [N, B, C].

    Args:
        student: P_s.
        teacher: P_t.
        samples: [B], 1 for the columns that count and 0 for others; None for all.
    """
    differences = teacher @ teacher.mT - student @ student.mT
    return _chosen(differences.square(), samples).sum() / student.shape[1]


def class_loss(student: Tensor, teacher: Tensor, classes: Tensor | None = None) -> Tensor:
    """The sum over temperatures of |P_t^T P_t - P_s^T P_s|_F^2 / C; as `batch_loss`, with the classes' mask [C]."""
    return batch_loss(student.mT, teacher.mT, classes)


def lower_half(values: Tensor) -> Tensor:
    """1 where a value [K] is at most the median, else 0; the median of an even number is the mean of the middle two."""
    ordered = values.sort().values
    middle = (len(values) - 1) // 2
    return (values <= (ordered[middle] + ordered[-1 - middle]) / 2).to(values.dtype)


def _chosen(values: Tensor, mask: Tensor | None) -> Tensor:
    return values if mask is None else values * mask


@dataclass(frozen=True, kw_only=True)
class MultiLevelLogits(Method):
    """The teacher's outputs are matched per sample, between the samples of a batch and between the classes."""

    card: ClassVar[Card] = Card(
        title="Multi-Level Logit Distillation",
        family="L",
        equations="instance, batch and class level alignment with several temperatures (prediction augmentation)",
        deviations="one view per step (authors' code: a weak and a strong one); the mask of uncertain samples is an option and "
        "applied to the samples (authors' code: to their mean)",
        suggested="temperatures 2 to 6, label_weight 0.1 and 0.9 for the three terms (authors' code, CIFAR-100)",
        interactions="the class term grows with the square of the batch size: the weights belong to batches of 64",
    )

    temperatures: tuple[float, ...] = hyperparameter((2.0, 3.0, 4.0, 5.0, 6.0), help="T, each at least once and > 0")
    label_weight: float = hyperparameter(0.1, minimum=0, prior=LogUniform(0.05, 1), help="lambda, weight of the labels")
    instance_weight: float = hyperparameter(
        0.9, minimum=0, prior=LogUniform(0.1, 10), help="alpha, weight of the outputs of single samples"
    )
    batch_weight: float = hyperparameter(
        0.9, minimum=0, prior=LogUniform(0.05, 10), help="beta, weight of the relations between samples"
    )
    class_weight: float = hyperparameter(
        0.9, minimum=0, prior=LogUniform(0.01, 10), help="gamma, weight of the relations between classes"
    )
    samples: Literal["all", "uncertain"] = hyperparameter(
        "all",
        choices=("all", "uncertain"),
        help="uncertain: only samples and classes of which the teacher is less certain than the median",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        good = [math.isfinite(temperature) and temperature > 0 for temperature in self.temperatures]
        if not good or not all(good):
            raise ValueError(f"temperatures must list at least one number > 0, got {list(self.temperatures)}")
        if not self.active and not self.label_weight:
            raise ValueError("label_weight and the other weights must not all be 0, since nothing would be learned; set one")

    @property
    def active(self) -> bool:
        """Whether the loss reads the teacher's outputs."""
        return bool(self.instance_weight or self.batch_weight or self.class_weight)

    @property
    def needs_whole_batch(self) -> bool:
        return bool(self.batch_weight or self.class_weight or (self.active and self.samples == "uncertain"))

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        return {"logits": logits()} if self.active else {}

    def loss(self, step: Step) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        if self.label_weight:
            terms["cross_entropy"] = self.label_weight * step.supervised()
        if not self.active:
            return terms
        student, teacher = (log_probabilities(given, self.temperatures) for given in (step.logits, step.teacher["logits"]))
        samples, classes = self._masks(step.teacher["logits"])
        if self.instance_weight:
            terms["instance"] = self.instance_weight * instance_loss(student, teacher, self.temperatures, samples)
        if self.batch_weight:
            terms["batch"] = self.batch_weight * batch_loss(student.exp(), teacher.exp(), samples)
        if self.class_weight:
            terms["class"] = self.class_weight * class_loss(student.exp(), teacher.exp(), classes)
        return terms

    def _masks(self, teacher_logits: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The samples [B] and the classes [C] that count."""
        if self.samples == "all":
            return None, None
        probabilities = F.softmax(teacher_logits, dim=1)
        return lower_half(probabilities.amax(dim=1)), lower_half(probabilities.sum(dim=0))
