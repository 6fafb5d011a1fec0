"""Classification: one class for each image, judged by top-1 accuracy. Cross-entropy is its loss.

    L = -log softmax(z)_y

z are a sample's logits, y its class; where a view mixes samples, y is a distribution over the classes and the loss its
cross-entropy with softmax(z).
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from stillhouse.data.targets import CLASS_LABELS, TargetRule
from stillhouse.spec.measure import Measure
from stillhouse.spec.metric import ACCURACY, Metric
from stillhouse.tasks import _class_evidence as class_evidence
from stillhouse.tasks.task import Evidence, OutputProblem, Reduction, SplitOutputs, Task

_ROUNDING = 1e-3
"""Of sums of probabilities that were computed in half precision."""


_CONFUSIONS = 100
"""Of the most frequent mistakes, how many pairs of classes a record holds: all of them for up to ten classes."""

MEASURES = (
    Measure(
        name="teacher_agreement",
        label="Same class as the teacher",
        direction="max",
        percent=True,
        digits=2,
        of_teacher=True,
        description="share of test samples for which student and teacher predict the same class",
    ),
    Measure(
        name="teacher_kl",
        label="KL divergence from the teacher",
        direction="min",
        digits=4,
        of_teacher=True,
        description="mean KL divergence of the student's probabilities from the teacher's, KL(teacher || student), in nats",
    ),
    Measure(
        name="teacher_mistakes_repeated",
        label="Repeats the teacher's mistakes",
        percent=True,
        digits=2,
        of_teacher=True,
        description="of the test samples that the teacher gets wrong, the share for which the student predicts the same class",
    ),
    Measure(
        name="nll",
        label="Negative log-likelihood",
        direction="min",
        digits=4,
        description="mean negative log-likelihood of the test labels, in nats",
    ),
    Measure(
        name="ece",
        label="Calibration error (ECE)",
        direction="min",
        percent=True,
        digits=2,
        description="expected calibration error on the test split, 15 bins of equal width",
    ),
    Measure(
        name="ece_scaled",
        label="ECE after scaling",
        direction="min",
        percent=True,
        digits=2,
        description="expected calibration error on the test split after scaling by one temperature from the validation split",
    ),
    Measure(
        name="worst_class_accuracy",
        label="Worst class",
        direction="max",
        percent=True,
        digits=2,
        description="accuracy on the test split of the class with the lowest accuracy",
    ),
)


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
    measures: ClassVar[tuple[Measure, ...]] = MEASURES

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

    def evidence(self, validation: SplitOutputs, test: SplitOutputs, teacher: SplitOutputs | None) -> Evidence:
        """Calibration, single classes, and how faithfully the student imitates its teacher (2106.05945).

        There is none where a logit is infinite.
        """
        logits, labels = test.outputs["logits"], test.targets
        if not all(bool(each.outputs["logits"].isfinite().all()) for each in (validation, test) if each.outputs):
            return Evidence()
        bins = class_evidence.calibration_bins(logits, labels)
        counts, right = class_evidence.class_counts(logits, labels)
        numbers = {
            "nll": class_evidence.negative_log_likelihood(logits, labels),
            "ece": class_evidence.calibration_error(bins),
            "worst_class_accuracy": class_evidence.worst_class(counts, right),
        }
        details: dict[str, Sequence[Any]] = {}
        if validation.outputs:
            temperature = class_evidence.fitted_temperature(validation.outputs["logits"], validation.targets)
            scaled = class_evidence.calibration_bins(logits / temperature, labels)
            numbers["ece_scaled"] = class_evidence.calibration_error(scaled)
            details["temperature"] = [temperature]
        if teacher is not None and bool(teacher.outputs["logits"].isfinite().all()):
            numbers |= _fidelity(logits, labels, teacher.outputs["logits"])
        return Evidence(
            numbers=numbers,
            details=details
            | {
                "calibration": bins.tolist(),
                "class_samples": counts.tolist(),
                "class_right": right.tolist(),
                "confusions": class_evidence.confusions(logits, labels, _CONFUSIONS),
            },
        )


def _fidelity(logits: Tensor, labels: Tensor, reference: Tensor) -> dict[str, float]:
    same = class_evidence.agreement(logits, reference)
    numbers = {
        "teacher_agreement": int(same.sum()) / len(labels),
        "teacher_kl": class_evidence.divergence(logits, reference),
    }
    wrong = reference.argmax(1) != labels
    if bool(wrong.any()):
        numbers["teacher_mistakes_repeated"] = int(same[wrong].sum()) / int(wrong.sum())
    return numbers


def _is_one(sums: Tensor) -> bool:
    return bool(((sums - 1).abs() < _ROUNDING).all())
