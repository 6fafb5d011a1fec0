"""From Knowledge Distillation to Self-Knowledge Distillation (Yang, Zeng, Li, Zhang, Yuan, Li 2023, arXiv 2303.13005): NKD.

    target = -t_y log s_y,  y the sample's class, t and s both networks' probabilities at temperature 1
    others = -T^2 sum_{c != y} t^_c log s^_c,  t^ and s^: softmax over the classes other than y only, at temperature T
    L = CE + alpha target + gamma others

The cross-entropy of KD over the classes other than the target compares sums that differ between the networks, 1 - t_y and
1 - s_y. Normalised to sums of 1, the two distributions can become equal.

Deviations: later versions of the authors' code keep the target among the other classes, since the mask that should leave it out
is true everywhere; here it is left out, as in the paper. The target of a mixed sample is the class with the larger share, as in
their code.

A step costs 1.0 times one of `kd` (resnet8 taught by resnet20, digits, one thread).

Verified by hand, by the closed form of its gradient and minimum, and against `decoupled`, whose second term differs from the
one here by the teacher's entropy.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from stillhouse.distill.method import Card, Method, Step, hyperparameter
from stillhouse.knowledge.kinds import Knowledge, logits
from stillhouse.methods.decoupled import without_target
from stillhouse.models.architecture import Architecture
from stillhouse.spec.priors import LogUniform


def soft_target_loss(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """-t_y log s_y, the mean over the batch, of logits [B, C] and labels [B] int64."""
    student, teacher = F.log_softmax(student_logits, dim=1), F.softmax(teacher_logits, dim=1)
    target = labels.unsqueeze(1)
    return -(teacher.gather(1, target) * student.gather(1, target)).mean()


def normalized_others_loss(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """T^2 times the cross-entropy of the classes other than the target, the mean over the batch; 0 for two classes.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C].
        labels: [B] int64.
        temperature: T > 0.
    """
    student, teacher = (without_target(values, labels) / temperature for values in (student_logits, teacher_logits))
    return temperature**2 * F.cross_entropy(student, F.softmax(teacher, dim=1))


@dataclass(frozen=True, kw_only=True)
class NormalizedKD(Method):
    """The teacher's probability weights the sample's own class; the other classes are compared among themselves."""

    card: ClassVar[Card] = Card(
        title="From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized Loss and "
        "Customized Soft Labels",
        arxiv="2303.13005",
        family="L",
        equations="the loss of NKD; the self-distillation of the same paper (USKD) is not part of it",
        deviations="the target is left out of the other classes, as in the paper (later code keeps it there)",
        suggested="others_weight 1.5, temperature 1 (authors' code)",
    )

    target_weight: float = hyperparameter(
        1.0, minimum=0, prior=LogUniform(0.25, 4), help="alpha, weight of the term of the sample's class; 1 in the paper"
    )
    others_weight: float = hyperparameter(
        1.5, minimum=0, prior=LogUniform(0.25, 8), help="gamma, weight of the term of the other classes"
    )
    temperature: float = hyperparameter(1.0, above=0, prior=LogUniform(0.5, 4), help="T, softens the other classes")

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        return {"logits": logits()} if self.target_weight or self.others_weight else {}

    def loss(self, step: Step) -> dict[str, Tensor]:
        terms = super().loss(step)
        labels = step.targets if step.targets.ndim == 1 else step.targets.argmax(dim=1)
        if self.target_weight:
            terms["soft_target"] = self.target_weight * soft_target_loss(step.logits, step.teacher["logits"], labels)
        if self.others_weight:
            others = normalized_others_loss(step.logits, step.teacher["logits"], labels, self.temperature)
            terms["other_classes"] = self.others_weight * others
        return terms
