"""The control: the student trained on the labels alone.

    L = CE(y, softmax(s))

Every gain of a distillation method is measured against it, with the same student, seed, views and epochs.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from stillhouse.distill.method import Card, Method, Step, hyperparameter


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

    label_smoothing: float = hyperparameter(
        0.0, minimum=0, below=1, help="share of every label that is spread evenly over the classes; 0 in the control"
    )

    def loss(self, step: Step) -> dict[str, Tensor]:
        return {"cross_entropy": F.cross_entropy(step.logits, step.targets, label_smoothing=self.label_smoothing)}
