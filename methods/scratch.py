"""The control: the student trained without a teacher.

    L = CE(y, softmax(s))

The loss is the task's supervised loss, for classification the cross-entropy above. The gain of every distillation method is
measured against this control, with the same student, seed, views and epochs.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from stillhouse.distill.method import ANY_TASK, DEFAULT_TASK, Card, Method, Step, hyperparameter


@dataclass(frozen=True, kw_only=True)
class Scratch(Method):
    """Supervised training without a teacher."""

    card: ClassVar[Card] = Card(
        title="Training without a teacher",
        family="control",
        equations="the supervised loss of the task: for classification, cross-entropy with the labels",
        suggested="label_smoothing 0 to 0.2",
        baseline=True,
    )
    tasks: ClassVar[tuple[str, ...]] = (ANY_TASK,)

    label_smoothing: float = hyperparameter(
        0.0, minimum=0, below=1, help="probability that is spread evenly over the classes; 0 in the control"
    )

    def serves(self, task: str) -> bool:
        """Any task; with label smoothing the default task only, whose targets are classes."""
        return super().serves(task) if not self.label_smoothing else task == DEFAULT_TASK

    def loss(self, step: Step) -> dict[str, Tensor]:
        if not self.label_smoothing:
            return super().loss(step)
        return {"cross_entropy": F.cross_entropy(step.logits, step.targets, label_smoothing=self.label_smoothing)}
