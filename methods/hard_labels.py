"""Hard teaching: the teacher's class, its argmax, in place of the label.

    L = (1 - w) CE(argmax t, s) + w CE(y, s),   w = 0 by default

It is what remains of distillation without the teacher's probabilities, so comparing it with `scratch` (the labels) and `kd`
with `variant: soft_only` (the softened outputs) shows what the probabilities add. With w = 1/2 it is the hard-label
distillation of DeiT (Touvron et al. 2021, arXiv 2012.12877, equation 3) without its token; with w = 0 it needs no labels.

`kd` has the same loss as `variant: hard_label`; as a method of its own it stands beside `kd` in one sweep.

A step costs 0.97 times one of `kd`, which it is without the softmax of the teacher (resnet8 taught by resnet20, digits, one
thread).

Verified against equation 3 by hand.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from stillhouse.distill.method import Card, Method, Step, hyperparameter
from stillhouse.knowledge.kinds import Knowledge, logits
from stillhouse.methods.kd import hard_label_loss
from stillhouse.models.architecture import Architecture


@dataclass(frozen=True, kw_only=True)
class HardLabels(Method):
    """The student learns the teacher's class, without its probabilities."""

    card: ClassVar[Card] = Card(
        title="Hard teaching: the teacher's class as the label",
        arxiv="2012.12877",
        family="L",
        equations="equation 3 with a weight of the labels, without the distillation token",
        deviations="no labels by default",
        suggested="label_weight 0 to compare hard with soft teaching, 0.5 as in the paper",
        interactions="a teacher that is right on all training samples teaches the labels, so the method is then scratch",
    )

    label_weight: float = hyperparameter(0.0, minimum=0, maximum=1, help="w, weight of the labels; the teacher has 1 - w")

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        return {"logits": logits()} if self.label_weight < 1 else {}

    def loss(self, step: Step) -> dict[str, Tensor]:
        if self.label_weight == 1:
            return super().loss(step)
        taught = {"hard_label": (1 - self.label_weight) * hard_label_loss(step.logits, step.teacher["logits"])}
        if not self.label_weight:
            return taught
        return {name: self.label_weight * term for name, term in super().loss(step).items()} | taught
