"""Classification: one class for each image, judged by top-1 accuracy. Cross-entropy is its loss.

    L = -log softmax(z)_y

z are a sample's logits, y its class; where a view mixes samples, y is a distribution over the classes and the loss its
cross-entropy with softmax(z).
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from stillhouse.data.targets import CLASS_LABELS, TargetRule
from stillhouse.spec.metric import ACCURACY, Metric
from stillhouse.tasks.task import OutputProblem, Reduction, Task

_ROUNDING = 1e-3
"""Of sums of probabilities that were computed in half precision."""


class Accuracy:
    """Top-1 accuracy in [0, 1]: counts of samples, right ones and all, so that parts merge exactly."""

    def __init__(self) -> None:
        self._right = torch.zeros(1, dtype=torch.int64)
        self._count = torch.zeros(1, dtype=torch.int64)

    def update(self, outputs: Mapping[str, Tensor], targets: Tensor) -> None:
        # On the outputs' device: reading a number off a GPU would wait for it after every batch.
        self._right = self._right.to(targets.device) + (outputs["logits"].argmax(1) == targets).sum()
        self._count += len(targets)

    def state(self) -> dict[str, Tensor]:
        return {"right": self._right, "count": self._count}

    def merge(self, state: Mapping[str, Tensor]) -> None:
        self._right = self._right + state["right"].to(self._right.device)
        self._count = self._count + state["count"].to(self._count.device)

    def result(self) -> float:
        return int(self._right) / int(self._count)


class Classification(Task):
    """Which of C classes an image belongs to. Models return logits [B, C]; targets are int64 [B]."""

    default: ClassVar[bool] = True
    metric: ClassVar[Metric] = ACCURACY
    targets: ClassVar[TargetRule] = CLASS_LABELS
    output: ClassVar[str] = "logits"
    mixes: ClassVar[bool] = True

    def mix(self, own: Tensor, others: Tensor, shares: Tensor, num_outputs: int) -> Tensor:
        """Class probabilities [B, C]: `shares` [B] of the own class, the rest of the other sample's."""
        weights = shares.to(own.device).unsqueeze(1)
        classes = [F.one_hot(labels, num_outputs).float() for labels in (own, others)]
        return weights * classes[0] + (1 - weights) * classes[1]

    def output_problem(self, outputs: Mapping[str, Tensor]) -> OutputProblem | None:
        """Probabilities sum to 1 for every sample, log-probabilities have such exponentials; logits do so by no accident.

        log softmax(log p) = log p, so that log-probabilities give the same losses and soft targets as the logits; other
        comparisons of logits see them shifted.
        """
        values = outputs["logits"].float()
        remedy = "return the values before the last softmax"
        if values.ndim != 2 or values.shape[1] < 2 or not bool(values.isfinite().all()):
            return None
        if bool((values >= 0).all()) and _is_one(values.sum(1)):
            return OutputProblem(description="its outputs are probabilities, not logits", remedy=remedy, certain=True)
        if bool((values <= 0).all()) and _is_one(values.exp().sum(1)):
            return OutputProblem(description="its outputs are log-probabilities, not logits", remedy=remedy, certain=False)
        return None

    def losses(self, outputs: Mapping[str, Tensor], targets: Tensor, reduction: Reduction = "mean") -> dict[str, Tensor]:
        """`cross_entropy` of logits [B, C] with classes [B], or with probabilities [B, C] of mixed samples."""
        return {"cross_entropy": F.cross_entropy(outputs["logits"], targets, reduction=reduction)}

    def evaluator(self) -> Accuracy:
        return Accuracy()

    def trivial_value(self, targets: Tensor) -> float:
        """The share of the most common class."""
        return int(torch.bincount(targets).max()) / len(targets)


def _is_one(sums: Tensor) -> bool:
    return bool(((sums - 1).abs() < _ROUNDING).all())
