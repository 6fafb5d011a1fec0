"""Calibration, fidelity and single classes against values by hand, and against torchmetrics where it has the same number."""

import math

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_confusion_matrix

from stillhouse.tasks import SplitOutputs, find
from stillhouse.tasks import _class_evidence as evidence

# Ten samples of two classes. The logits are (log p, log(1 - p)), so that the probabilities are p and 1 - p.
P = [0.9, 0.9, 0.9, 0.9, 0.6, 0.6, 0.2, 0.2, 0.3, 0.45]
LABELS = torch.tensor([0, 0, 0, 1, 0, 1, 1, 1, 1, 0])
TEACHER_P = [0.8, 0.8, 0.4, 0.8, 0.8, 0.8, 0.3, 0.6, 0.2, 0.1]


def logits_of(p: list[float]) -> Tensor:
    first = torch.tensor(p, dtype=torch.float64)
    return torch.stack([first, 1 - first], dim=1).log()


LOGITS, TEACHER = logits_of(P), logits_of(TEACHER_P)


def test_the_likelihood_of_ten_samples_by_hand() -> None:
    right = [0.9, 0.9, 0.9, 0.1, 0.6, 0.4, 0.8, 0.8, 0.7, 0.45]
    assert evidence.negative_log_likelihood(LOGITS, LABELS) == pytest.approx(-sum(map(math.log, right)) / 10)


def test_the_calibration_of_ten_samples_by_hand() -> None:
    # The largest probabilities: 0.9 four times (3 right), 0.6 twice (1 right), 0.8 twice (2), 0.7 (1), 0.55 (0).
    bins = evidence.calibration_bins(LOGITS, LABELS)
    found = {place: row.tolist() for place, row in enumerate(bins) if row[0]}
    assert found.keys() == {8, 10, 11, 13}
    # 0.6 = 9 / 15 and 0.8 = 12 / 15 are upper ends of their bins, 0.55 lies in that of 0.6.
    assert found[8] == pytest.approx([3, 1.75, 1])
    assert found[10] == pytest.approx([1, 0.7, 1])
    assert found[11] == pytest.approx([2, 1.6, 2])
    assert found[13] == pytest.approx([4, 3.6, 3])
    assert evidence.calibration_error(bins) == pytest.approx((0.75 + 0.3 + 0.4 + 0.6) / 10)


def test_fidelity_of_ten_samples_by_hand() -> None:
    # Student's classes 0 0 0 0 0 0 1 1 1 1, teacher's 0 0 1 0 0 0 1 0 1 1.
    assert evidence.agreement(LOGITS, TEACHER).tolist() == [True, True, False, True, True, True, True, False, True, True]
    terms = [t * math.log(t / s) + (1 - t) * math.log((1 - t) / (1 - s)) for s, t in zip(P, TEACHER_P, strict=True)]
    assert evidence.divergence(LOGITS, TEACHER) == pytest.approx(sum(terms) / 10)
    assert evidence.divergence(TEACHER, TEACHER) == 0.0


def test_single_classes_of_ten_samples_by_hand() -> None:
    counts, right = evidence.class_counts(LOGITS, LABELS)
    assert (counts.tolist(), right.tolist()) == ([5, 5], [4, 3])
    assert evidence.worst_class(counts, right) == 0.6
    assert evidence.confusions(LOGITS, LABELS, 9) == [[1, 0, 2], [0, 1, 1]]
    assert evidence.confusions(LOGITS, LABELS, 1) == [[1, 0, 2]]
    assert math.isnan(evidence.worst_class(torch.zeros(2), torch.zeros(2)))


def test_a_class_without_samples_is_not_the_worst() -> None:
    counts, right = evidence.class_counts(torch.eye(3)[[0, 0, 1]], torch.tensor([0, 0, 1]))
    assert (counts.tolist(), evidence.worst_class(counts, right)) == ([2, 1, 0], 1.0)


def test_the_temperature_by_which_logits_were_scaled_is_found() -> None:
    """Labels are drawn so often from the probabilities of some logits that only their own scale explains them."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(200, 4, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(1), 2_000, replacement=True, generator=generator).T.reshape(-1)
    for scale in (0.5, 1.0, 3.0):
        found = evidence.fitted_temperature((scale * logits).repeat(2_000, 1), labels)
        assert found == pytest.approx(scale, rel=0.02)


def test_the_temperature_is_where_the_derivative_of_the_likelihood_vanishes() -> None:
    scale = torch.tensor(1 / evidence.fitted_temperature(LOGITS, LABELS), dtype=torch.float64, requires_grad=True)
    torch.nn.functional.cross_entropy(LOGITS * scale, LABELS).backward()
    assert scale.grad is not None
    assert abs(float(scale.grad)) < 1e-5


def test_the_temperature_stays_within_its_bounds_and_is_one_without_samples() -> None:
    sure, labels = 100 * torch.eye(2), torch.tensor([1, 0])
    assert evidence.fitted_temperature(sure, labels) == pytest.approx(20, rel=1e-3)
    assert evidence.fitted_temperature(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64)) == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_torchmetrics_finds_the_same(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(500, 7, generator=generator)
    labels = torch.randint(7, (500,), generator=generator)
    ours = evidence.calibration_error(evidence.calibration_bins(logits, labels))
    assert ours == pytest.approx(float(multiclass_calibration_error(logits, labels, 7, n_bins=15)), abs=1e-6)
    matrix = multiclass_confusion_matrix(logits.argmax(1), labels, 7)
    counts, right = evidence.class_counts(logits, labels)
    assert counts.tolist() == matrix.sum(1).tolist()
    assert right.tolist() == matrix.diagonal().tolist()
    rebuilt = torch.diag(right)
    for true, predicted, samples in evidence.confusions(logits, labels, 7 * 6):
        rebuilt[true, predicted] = samples
    assert torch.equal(rebuilt, matrix)


def test_the_evidence_of_a_classification_puts_them_together() -> None:
    test = SplitOutputs(outputs={"logits": LOGITS.float()}, targets=LABELS)
    teacher = SplitOutputs(outputs={"logits": TEACHER.float()}, targets=LABELS)
    task = find("classification")
    found = task.evidence(test, test, teacher)
    assert set(found.numbers) == {measure.name for measure in task.measures}
    assert found.numbers["teacher_agreement"] == 0.8
    # The teacher is wrong on samples 2, 3, 5, 7 and 9, and the student agrees with it on 3, 5 and 9.
    assert found.numbers["teacher_mistakes_repeated"] == 0.6
    assert found.numbers["worst_class_accuracy"] == 0.6
    assert set(task.evidence(test, test, None).numbers) == {measure.name for measure in task.measures if not measure.of_teacher}
    always_right = SplitOutputs(outputs={"logits": torch.eye(2)[LABELS]}, targets=LABELS)
    assert "teacher_mistakes_repeated" not in task.evidence(test, test, always_right).numbers


def test_infinite_logits_are_no_evidence() -> None:
    good = SplitOutputs(outputs={"logits": LOGITS}, targets=LABELS)
    bad = SplitOutputs(outputs={"logits": torch.where(LOGITS < -2, -torch.inf, LOGITS)}, targets=LABELS)
    task = find("classification")
    assert not task.evidence(good, bad, None).numbers
    assert "teacher_kl" not in task.evidence(good, good, bad).numbers
