"""Improved Knowledge Distillation via Teacher Assistant (Mirzadeh et al. 2019, arXiv 1902.03393).

    stage "assistant"  L = (1 - w) CE(y, p_1(a)) + w T^2 KL(p_T(teacher) || p_T(a))        (equations 1 to 3)
    stage "student"    L = (1 - w) CE(y, p_1(s)) + w T^2 KL(p_T(a) || p_T(s))

A network a, larger than the student and smaller than the teacher, learns from the teacher by ordinary distillation. Then it is
frozen, and the student learns from it, without the teacher.

Deviations: both stages share the trial's epochs, so that every method has the same budget; in the paper each has a full
training. By default the assistant is the teacher's model at width 0.5, which works for every model; the paper uses fewer layers
of the same kind. There is one assistant, not a chain of them.

Verified by composition: both stages are `kd`, which is verified against published implementations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from stillhouse.distill.method import (
    Card,
    Helper,
    Method,
    MethodError,
    Setup,
    Stage,
    Step,
    Update,
    hyperparameter,
)
from stillhouse.distill.stages import epochs_of_first_stage
from stillhouse.knowledge.kinds import Knowledge, logits
from stillhouse.methods.kd import kd_loss
from stillhouse.models.architecture import Architecture
from stillhouse.models.modes import evaluating
from stillhouse.spec.priors import LogUniform, Uniform

_WIDTH_OF_TEACHERS_MODEL = 0.5


@dataclass(frozen=True, kw_only=True)
class TeacherAssistant(Method):
    """A network of intermediate size learns from the teacher; the student learns from that network."""

    card: ClassVar[Card] = Card(
        title="Improved Knowledge Distillation via Teacher Assistant",
        arxiv="1902.03393",
        family="G",
        equations="equations 1 to 3, with one assistant",
        deviations="assistant and student share the trial's epochs; the default assistant is the teacher's model at width 0.5",
        suggested="an assistant whose accuracy is halfway between the teacher's and the student's",
        interactions="helps if teacher and student differ much in size; in a short training the assistant has few epochs",
    )

    temperature: float = hyperparameter(4.0, above=0, prior=LogUniform(1, 20), help="T, in both stages")
    kd_weight: float = hyperparameter(
        0.9,
        minimum=0,
        maximum=1,
        prior=Uniform(0.1, 1.0),
        help="w, weight of the soft targets in both stages; the labels have weight 1 - w",
    )
    assistant: str | None = hyperparameter(None, help="name of the assistant's model; by default the teacher's")
    assistant_width: float | None = hyperparameter(
        None, above=0, help="width of the assistant; by default 0.5 for the teacher's model, the default width of a named one"
    )
    assistant_fraction: float = hyperparameter(
        0.5, above=0, below=1, prior=Uniform(0.3, 0.7), help="share of the epochs for training the assistant"
    )

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        return {"logits": logits()} if self.kd_weight else {}

    def stages(self, setup: Setup) -> Sequence[Stage]:
        if not self.kd_weight:
            return super().stages(setup)
        epochs = epochs_of_first_stage(setup.epochs, self.assistant_fraction)
        # The student takes no part while the assistant is trained, so its forward pass ends as early as possible.
        first = next(iter(setup.student.shapes))
        return [
            Stage(name="assistant", epochs=epochs, until=first, comparable=False),
            Stage(name="student", epochs=setup.epochs - epochs, knowledge=()),
        ]

    def modules(self, setup: Setup) -> Mapping[str, Helper]:
        if not self.kd_weight:
            return {}
        assert setup.teacher is not None, "an assistant assists a teacher"
        width = self.assistant_width if self.assistant or self.assistant_width else _WIDTH_OF_TEACHERS_MODEL
        options: dict[str, Any] = {} if width is None else {"width": width}
        try:
            module = setup.new_model(self.assistant or setup.teacher.name, **options)
        except MethodError as error:
            raise MethodError(f"cannot make the assistant: {error}" + ("" if self.assistant else "; set assistant")) from error
        return {"assistant": Helper(module=module, evaluate=True)}

    def loss(self, step: Step) -> dict[str, Tensor]:
        """The terms of the network that the stage trains."""
        if step.stage.name == "assistant":
            return self._terms(step.run_network(step.modules["assistant"], step.images), step.teacher["logits"], step.targets)
        if not self.kd_weight:
            return super().loss(step)
        assistant = step.modules["assistant"]
        with torch.no_grad(), evaluating(assistant):
            taught = step.run_network(assistant, step.images)
        return self._terms(step.logits, taught, step.targets)

    def step(self, step: Step, update: Update) -> dict[str, Tensor]:
        terms = self.loss(step)
        update.minimise(torch.stack(list(terms.values())).sum(), "assistant" if step.stage.name == "assistant" else "student")
        return terms

    def _terms(self, learner: Tensor, teaching: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {
            "cross_entropy": (1 - self.kd_weight) * F.cross_entropy(learner, targets),
            "kd": self.kd_weight * kd_loss(learner, teaching, self.temperature),
        }
