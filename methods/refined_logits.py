"""Knowledge Distillation with Refined Logits (Sun, Chen, Li, Wang 2024, arXiv 2408.07703): RLD.

    sample confidence  SCD = T1^2 KL((t_max, 1 - t_max) || (s_y, 1 - s_y)),  both networks' probabilities at temperature T1
    masked correlation MCD = T2^2 KL(t^ || s^),  softmax over the classes that the teacher ranks below the label y, at T2
    L = CE + w(t) (alpha SCD + beta MCD)

The student learns how sure the teacher is, whatever class that is, but applies it to the label: the teacher's confidence in its
own first class becomes the student's in class y. The order of classes is learned only among those that the teacher ranks below
the label, so a teacher that is wrong does not contradict the label. w(t) rises linearly from 0 to 1 (in the authors' code over
20 of 240 epochs).

Deviations: w rises with every step, not with every epoch. The logarithms of the first term are computed from differences of
logits, so they are finite where a probability rounds to 0. A class whose logit equals the label's is masked, as in the authors'
code. The label of a mixed sample is the class with the larger share.

A step costs 1.0 times one of `kd` (resnet8 taught by resnet20, digits, one thread).

Verified against the authors' code, evaluated by hand on small outputs, and against `decoupled`, to which it reduces where the
teacher is right.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from stillhouse.distill.method import Card, Method, Step, hyperparameter
from stillhouse.distill.schedule import risen
from stillhouse.knowledge.kinds import Knowledge, logits
from stillhouse.methods.decoupled import target_log_odds
from stillhouse.models.architecture import Architecture
from stillhouse.spec.priors import LogUniform


def confidence_loss(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """SCD: T^2 KL of the teacher's confidence in its first class and the student's in the label, the mean over the batch.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C].
        labels: [B] int64.
        temperature: T > 0.
    """
    student = target_log_odds(student_logits / temperature, labels)
    teacher = target_log_odds(teacher_logits / temperature, teacher_logits.argmax(dim=1))
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def masked_correlation_loss(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """MCD: T^2 KL over the classes with a teacher's logit below the label's, the mean over the batch.

    A sample with fewer than two such classes adds 0. Arguments as in `confidence_loss`.
    """
    masked = teacher_logits >= teacher_logits.gather(1, labels.unsqueeze(1))
    lowest = torch.finfo(torch.float32).min / 4  # finite, so that 0 times its logarithm is 0
    student, teacher = (
        F.log_softmax(
            (values.to(torch.promote_types(values.dtype, torch.float32)) / temperature).masked_fill(masked, lowest), 1
        )
        for values in (student_logits, teacher_logits)
    )
    divergences = (teacher.exp() * (teacher - student)).masked_fill(masked, 0.0).sum(dim=1)
    return temperature**2 * divergences.mean()


@dataclass(frozen=True, kw_only=True)
class RefinedLogits(Method):
    """The teacher's confidence is applied to the label, and its order to the classes that it ranks below the label."""

    card: ClassVar[Card] = Card(
        title="Knowledge Distillation with Refined Logits",
        arxiv="2408.07703",
        family="L",
        equations="sample confidence and masked correlation distillation; the warm-up of the authors' code",
        deviations="the warm-up advances with every step",
        suggested="confidence_weight 1 at temperature 1, correlation_weight 8 at temperature 4 (authors' code, CIFAR-100)",
        interactions="where the teacher is right on all training samples, it differs from decoupled only in its temperatures",
    )

    confidence_weight: float = hyperparameter(
        1.0, minimum=0, prior=LogUniform(0.25, 4), help="alpha, weight of the sample confidence"
    )
    confidence_temperature: float = hyperparameter(
        1.0, above=0, prior=LogUniform(0.5, 4), help="T1, softens the outputs in the sample confidence"
    )
    correlation_weight: float = hyperparameter(
        8.0, minimum=0, prior=LogUniform(0.5, 16), help="beta, weight of the masked correlation"
    )
    temperature: float = hyperparameter(4.0, above=0, prior=LogUniform(1, 10), help="T2, softens the masked correlation")
    warmup_fraction: float = hyperparameter(
        1 / 12,
        minimum=0,
        maximum=1,
        help="share of the training over which both weights rise from 0; 20 of 240 epochs in the authors' code",
    )

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        return {"logits": logits()} if self.confidence_weight or self.correlation_weight else {}

    def loss(self, step: Step) -> dict[str, Tensor]:
        terms = super().loss(step)
        labels = step.targets if step.targets.ndim == 1 else step.targets.argmax(dim=1)
        warm = risen(step.progress, self.warmup_fraction)
        for name, weight, loss, temperature in (
            ("confidence", self.confidence_weight, confidence_loss, self.confidence_temperature),
            ("correlation", self.correlation_weight, masked_correlation_loss, self.temperature),
        ):
            if weight:
                terms[name] = warm * weight * loss(step.logits, step.teacher["logits"], labels, temperature)
        return terms
