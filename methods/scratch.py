"""The control: the student trained on the labels alone.

    L = CE(y, softmax(s))

Every gain of a distillation method is measured against it, with the same student, seed, views and epochs.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from stillhouse.distill.method import ANY_TASK, DEFAULT_TASK, Card, Method, Step, hyperparameter


@dataclass(frozen=True, kw_only=True)
class Scratch(Method):
    """Training without a teacher."""

    card: ClassVar[Card] = Card(
        title="Training without a teacher",
        family="control",
        equations="cross-entropy with the labels",
        suggested="label_smoothing 0 to 0.2",
        baseline=True,
    )
    tasks: ClassVar[tuple[str, ...]] = (ANY_TASK,)

    label_smoothing: float = hyperparameter(
        0.0, minimum=0, below=1, help="share of every label that is spread evenly over the classes; 0 in the control"
    )

    def serves(self, task: str) -> bool:
        """Any task, but only labels can be smoothed."""
        return super().serves(task) if not self.label_smoothing else task == DEFAULT_TASK

    def loss(self, step: Step) -> dict[str, Tensor]:
        if not self.label_smoothing:
            return super().loss(step)
        return {"cross_entropy": F.cross_entropy(step.logits, step.targets, label_smoothing=self.label_smoothing)}
