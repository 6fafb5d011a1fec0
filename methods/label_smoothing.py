"""Rethinking the Inception Architecture for Computer Vision (Szegedy et al. 2016, arXiv 1512.00567): label smoothing.

    L = CE(y', softmax(s)),  y' = (1 - epsilon) y + epsilon / C        (section 7)

The second control, and a teacher-free one: smoothed labels are the soft targets of a teacher that knows no difference
between the wrong classes (Yuan et al. 2020, arXiv 1909.11723). A method whose teacher helps should beat it, too.

Deviations: none. Verified against its closed form, cross-entropy plus the distance to the uniform distribution.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from stillhouse.distill.method import Card, Method, Step, hyperparameter
from stillhouse.spec.priors import Uniform


@dataclass(frozen=True, kw_only=True)
class LabelSmoothing(Method):
    """Training without a teacher on labels that leave every class a share."""

    card: ClassVar[Card] = Card(
        title="Rethinking the Inception Architecture for Computer Vision",
        arxiv="1512.00567",
        family="control",
        equations="section 7, label smoothing",
        suggested="smoothing 0.1",
        interactions="a student trained so makes a worse teacher in its turn (arXiv 1906.02629)",
    )

    smoothing: float = hyperparameter(
        0.1, minimum=0, below=1, prior=Uniform(0.0, 0.3), help="epsilon, the share of a label spread evenly over the classes"
    )

    def loss(self, step: Step) -> dict[str, Tensor]:
        return {"cross_entropy": F.cross_entropy(step.logits, step.targets, label_smoothing=self.smoothing)}
