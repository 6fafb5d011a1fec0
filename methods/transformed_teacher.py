"""Knowledge Distillation Based on Transformed Teacher Matching (Zheng, Yang 2024, arXiv 2402.11148): TTM and WTTM.

    q_c = p_teacher,c^gamma / U,  U = sum_c p_teacher,c^gamma           (power transform; the same as a temperature 1 / gamma)
    TTM:   L = CE + w KL(q || p_student)
    WTTM:  L = CE + w U KL(q || p_student), the mean over the samples, each with its own U

Both networks of plain KD have a temperature. Here only the teacher's output is softened: by the paper, this adds the Renyi
entropy of the student's output to KD as a regulariser. U is large where the teacher's output is smooth, so WTTM gives such
samples a larger weight.

A step costs 1.0 times one of `kd` (resnet8 taught by resnet20, digits, one thread).

Verified against the authors' code, evaluated by hand on small outputs, and against the identity with a temperature.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from stillhouse.distill.method import Card, Method, Step, hyperparameter
from stillhouse.knowledge.kinds import Knowledge, logits
from stillhouse.models.architecture import Architecture
from stillhouse.spec.priors import LogUniform, Uniform


def transformed_teacher_loss(student_logits: Tensor, teacher_logits: Tensor, power: float, *, weighted: bool) -> Tensor:
    """KL(q || p_student), each sample's times its U if `weighted`, the mean over the batch.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C].
        power: gamma > 0.
        weighted: WTTM rather than TTM.
    """
    teacher = power * F.log_softmax(teacher_logits, dim=1)
    log_sums = teacher.logsumexp(dim=1, keepdim=True)
    log_q = teacher - log_sums
    divergences = (log_q.exp() * (log_q - F.log_softmax(student_logits, dim=1))).sum(dim=1)
    return (log_sums.squeeze(1).exp() * divergences if weighted else divergences).mean()


@dataclass(frozen=True, kw_only=True)
class TransformedTeacher(Method):
    """The student matches a power of the teacher's probabilities with its own probabilities at temperature 1."""

    card: ClassVar[Card] = Card(
        title="Knowledge Distillation Based on Transformed Teacher Matching",
        arxiv="2402.11148",
        family="L",
        equations="the objectives of TTM and WTTM",
        suggested="power 0.1 to 0.2; kd_weight 4 for wttm at power 0.2 and 45 for ttm at 0.1 (authors' examples, CIFAR-100)",
        interactions="U grows with the number of classes (C^(1 - power) for a uniform teacher): fewer classes bear a larger "
        "kd_weight",
    )

    power: float = hyperparameter(0.2, above=0, maximum=1, prior=Uniform(0.05, 0.5), help="gamma, the power of probabilities")
    kd_weight: float = hyperparameter(4.0, minimum=0, prior=LogUniform(1, 100), help="w, weight of the divergence")
    form: Literal["wttm", "ttm"] = hyperparameter(
        "wttm", choices=("wttm", "ttm"), help="wttm: each sample's divergence times its U; ttm: all samples alike"
    )

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        return {"logits": logits()} if self.kd_weight else {}

    def loss(self, step: Step) -> dict[str, Tensor]:
        terms = super().loss(step)
        if self.kd_weight:
            loss = transformed_teacher_loss(step.logits, step.teacher["logits"], self.power, weighted=self.form == "wttm")
            terms["transformed_teacher"] = self.kd_weight * loss
        return terms
