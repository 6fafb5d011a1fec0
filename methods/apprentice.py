"""Apprentice (Mishra, Marr 2017, arXiv 1711.05852): a low-precision student learns from a full-precision teacher.

    L = alpha H(y, p_teacher) + beta H(y, p_student) + gamma H(z_teacher, p_student)          (equation 1)

H is the cross-entropy, z the teacher's probabilities. The precision of the student is not the method's: an operator such as
`{quantize: {weight_bits: 4, activation_bits: 8}}` of the student decides it.

Schemes (section 4 of the paper):
    joint     A: teacher and student train together from fresh weights, with all three terms. The teacher is a helper of the
              trial, `teacher_model` in full precision; no trained teacher is needed and no sealed view is read
    fixed     B: the teacher is trained already; alpha is 0
    finetune  C: the student first trains in full precision from the labels, then at its precision as in `fixed`

Deviations: whether H(z, p) is the cross-entropy or the divergence is not fixed by the paper; they have the same gradient. No
gradient of the third term reaches the teacher. The paper softens nothing; `temperature` is an option, with the factor T^2. In
`finetune`, the student is trained in the same trial, and learnt for a share of its epochs.

Verified against the paper's equation in float64, with the weights 1, 1/2 and 1/2.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from stillhouse.distill.method import Card, Helper, Method, Setup, Stage, Step, hyperparameter
from stillhouse.distill.stages import epochs_of_first_stage
from stillhouse.knowledge.kinds import Knowledge, logits
from stillhouse.models.architecture import Architecture
from stillhouse.spec.priors import Choice, LogUniform, Uniform

_SCHEMES = ("joint", "fixed", "finetune")
_ONLY_JOINT = ("alpha", "teacher_model", "teacher_width")


def soft_cross_entropy(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 H(softmax(teacher / T), softmax(student / T)), the mean over the batch of logits [B, C].

    No gradient reaches the teacher.
    """
    soft = F.softmax(teacher_logits.detach() / temperature, dim=1)
    return temperature**2 * F.cross_entropy(student_logits / temperature, soft)


@dataclass(frozen=True, kw_only=True)
class Apprentice(Method):
    """A student of low precision learns from the labels and from a teacher of full precision."""

    card: ClassVar[Card] = Card(
        title="Apprentice: Using Knowledge Distillation Techniques To Improve Low-Precision Network Accuracy",
        arxiv="1711.05852",
        family="Q",
        equations="equation 1 and the schemes A, B and C of section 4",
        deviations="the third term trains the student only; a temperature is an option",
        suggested="alpha 1, beta and gamma 0.5; scheme fixed costs least, finetune was the most accurate in the paper",
        interactions="for students with the operator quantize; others learn as in kd with a weight of 0.5. A high "
        "temperature costs a student of few bits accuracy",
    )

    scheme: Literal["joint", "fixed", "finetune"] = hyperparameter(
        "fixed", choices=_SCHEMES, help="joint: the teacher trains too; fixed: it is trained; finetune: the student is, first"
    )
    alpha: float = hyperparameter(1.0, minimum=0, help="joint: weight of the teacher's own loss")
    beta: float = hyperparameter(0.5, minimum=0, help="weight of the labels")
    gamma: float = hyperparameter(0.5, above=0, prior=LogUniform(0.1, 5), help="weight of the teacher's outputs")
    temperature: float = hyperparameter(1.0, above=0, prior=Choice((1.0, 2.0, 4.0)), help="T; 1 in the paper")
    full_precision_fraction: float = hyperparameter(
        0.5, above=0, below=1, prior=Uniform(0.3, 0.7), help="finetune: share of the epochs in full precision"
    )
    teacher_model: str | None = hyperparameter(None, help="joint: the teacher's model; by default the student's")
    teacher_width: float | None = hyperparameter(None, above=0, help="joint: width of the teacher; by default its model's")

    def __post_init__(self) -> None:
        super().__post_init__()
        unused = (() if self.scheme == "joint" else _ONLY_JOINT) + (
            () if self.scheme == "finetune" else ("full_precision_fraction",)
        )
        defaults = self.defaults()
        for name in unused:
            if getattr(self, name) != defaults[name] and self.hyperparameters()[name].prior is None:
                warnings.warn(f"{name} has no effect with scheme={self.scheme!r}", stacklevel=3)

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        return {} if self.scheme == "joint" else {"logits": logits()}

    def stages(self, setup: Setup) -> Sequence[Stage]:
        if self.scheme != "finetune":
            return super().stages(setup)
        first = epochs_of_first_stage(setup.epochs, self.full_precision_fraction)
        return (
            Stage(name="full_precision", epochs=first, full_precision=True, comparable=False, knowledge=()),
            Stage(name="low_precision", epochs=setup.epochs - first),
        )

    def modules(self, setup: Setup) -> Mapping[str, Helper]:
        if self.scheme != "joint":
            return {}
        options: dict[str, Any] = {} if self.teacher_width is None else {"width": self.teacher_width}
        teacher = setup.new_model(self.teacher_model or setup.student.name, **options)
        return {"teacher": Helper(module=teacher, evaluate=True)}

    def loss(self, step: Step) -> dict[str, Tensor]:
        if step.stage.full_precision:
            return step.supervised_terms()
        terms = {"cross_entropy": self.beta * step.supervised()}
        if self.scheme == "joint":
            teacher_logits = step.run_network(step.modules["teacher"], step.images)
            terms["teacher_cross_entropy"] = self.alpha * F.cross_entropy(teacher_logits, step.targets)
        else:
            teacher_logits = step.teacher["logits"]
        return terms | {"soft_cross_entropy": self.gamma * soft_cross_entropy(step.logits, teacher_logits, self.temperature)}
