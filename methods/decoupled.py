"""Decoupled Knowledge Distillation (Zhao, Cui, Song, Qiu, Liang 2022, arXiv 2203.08679).

    b = (p_target, 1 - p_target),  p^ = softmax over the classes other than the target, all at temperature T
    KL(p_teacher || p_student) = KL(b_t || b_s) + (1 - p_target_t) KL(p^_t || p^_s)      (equation 7, an identity)
    L = CE + w(t) T^2 (alpha KL(b_t || b_s) + beta KL(p^_t || p^_s))                      (equation 8)

The first term (TCKD) carries how difficult a sample is, the second (NCKD) the similarity of the other classes. Plain KD weights
the second by 1 - p_target, which is nearly 0 where the teacher is certain. w(t) rises linearly from 0 to 1 (in the authors'
code over 20 of 240 epochs).

Deviations: w rises with every step, not with every epoch. The target is left out of the second softmax; the authors' code
lowers its logit by 1000, with the same result. The target of a mixed sample is the class with the larger share.

Verified against the numbers of mdistiller, the authors' code, and against the identity above.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from stillhouse.distill.method import Card, Method, Step, hyperparameter
from stillhouse.distill.schedule import risen
from stillhouse.knowledge.kinds import Knowledge, logits
from stillhouse.models.architecture import Architecture
from stillhouse.spec.priors import LogUniform


def target_class_loss(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """T^2 KL(b_t || b_s) of the target class against all others, the mean over the batch.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C].
        labels: [B] int64.
        temperature: T > 0.
    """
    student, teacher = (target_log_odds(logits / temperature, labels) for logits in (student_logits, teacher_logits))
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def other_classes_loss(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """T^2 KL(p^_t || p^_s) of the classes other than the target, the mean over the batch; 0 for two classes.

    Arguments as in `target_class_loss`.
    """
    student, teacher = (
        F.log_softmax(without_target(logits / temperature, labels), dim=1) for logits in (student_logits, teacher_logits)
    )
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def other_places(places: Tensor, count: int) -> Tensor:
    """The numbers 0 .. count-1 without a sample's own, in order: [B, count - 1] int64 for `places` [B]."""
    others = torch.arange(count - 1, device=places.device)
    return others + (others >= places.unsqueeze(1))


def target_log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """(log p_target, log (1 - p_target)), [B, 2], of logits [B, C]; both are finite, even if one probability rounds to 0."""
    target = logits.gather(1, labels.unsqueeze(1))
    others = without_target(logits, labels).logsumexp(dim=1, keepdim=True)
    return F.log_softmax(torch.cat([target, others], dim=1), dim=1)


def without_target(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits [B, C - 1] of the other classes, in their order, of logits [B, C] and labels [B] int64."""
    return logits.gather(1, other_places(labels, logits.shape[1]))


@dataclass(frozen=True, kw_only=True)
class Decoupled(Method):
    """KD in two terms with separate weights: the target class against the rest, and the other classes among themselves."""

    card: ClassVar[Card] = Card(
        title="Decoupled Knowledge Distillation",
        arxiv="2203.08679",
        family="L",
        equations="equations 7 and 8 and algorithm 1; the warm-up of the authors' code",
        deviations="the warm-up advances with every step; the target is left out of the softmax instead of masked",
        suggested="target_weight 1, others_weight 8, temperature 4 on CIFAR-100; others_weight 0.5, temperature 1 on ImageNet",
        interactions="students without BatchNorm diverge at a learning rate of 0.05 unless gradients are clipped (at 5)",
    )

    temperature: float = hyperparameter(4.0, above=0, prior=LogUniform(1, 10), help="T, softens both outputs")
    target_weight: float = hyperparameter(
        1.0, minimum=0, prior=LogUniform(0.25, 4), help="alpha, weight of the target class term"
    )
    others_weight: float = hyperparameter(
        8.0, minimum=0, prior=LogUniform(0.5, 16), help="beta, weight of the term of the other classes"
    )
    warmup_fraction: float = hyperparameter(
        1 / 12,
        minimum=0,
        maximum=1,
        help="share of the training over which both weights rise from 0; 20 of 240 epochs in the authors' code",
    )

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        return {"logits": logits()} if self.target_weight or self.others_weight else {}

    def loss(self, step: Step) -> dict[str, Tensor]:
        terms = super().loss(step)
        labels = step.targets if step.targets.ndim == 1 else step.targets.argmax(dim=1)
        warm = risen(step.progress, self.warmup_fraction)
        for name, weight, loss in (
            ("target_class", self.target_weight, target_class_loss),
            ("other_classes", self.others_weight, other_classes_loss),
        ):
            if weight:
                terms[name] = warm * weight * loss(step.logits, step.teacher["logits"], labels, self.temperature)
        return terms
