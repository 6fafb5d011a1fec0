"""Rethinking the Inception Architecture for Computer Vision (Szegedy et al. 2016, arXiv 1512.00567): label smoothing.

    L = CE(y', softmax(s)),  y' = (1 - epsilon) y + epsilon / C        (section 7)

A control without a teacher, besides `scratch`. Smoothed labels are the soft targets of a teacher that gives all wrong classes
the same probability (Yuan et al. 2020, arXiv 1909.11723). If a method's teacher helps, the method is better than this control,
too.

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
    """Training without a teacher, on labels that give every class a probability above 0."""

    card: ClassVar[Card] = Card(
        title="Rethinking the Inception Architecture for Computer Vision",
        arxiv="1512.00567",
        family="control",
        equations="section 7, label smoothing",
        suggested="smoothing 0.1",
        interactions="a network trained with it is a worse teacher (arXiv 1906.02629)",
    )

    smoothing: float = hyperparameter(
        0.1, minimum=0, below=1, prior=Uniform(0.0, 0.3), help="epsilon, probability that is spread evenly over the classes"
    )

    def loss(self, step: Step) -> dict[str, Tensor]:
        return {"cross_entropy": F.cross_entropy(step.logits, step.targets, label_smoothing=self.smoothing)}
