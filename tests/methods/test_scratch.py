import math

import pytest
import torch

from stillhouse import methods
from stillhouse.methods.scratch import Scratch
from stillhouse.testing import make_step


def test_the_loss_of_equal_logits_is_the_logarithm_of_the_number_of_classes() -> None:
    terms = Scratch().loss(make_step(student_logits=torch.zeros(4, 10)))
    assert list(terms) == ["cross_entropy"]
    assert float(terms["cross_entropy"]) == pytest.approx(math.log(10))


def test_label_smoothing_mixes_the_labels_with_the_uniform_distribution() -> None:
    logits, labels = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([1])
    log_q = [value - math.log(math.exp(2) + 1 + math.exp(-1)) for value in (2.0, 0.0, -1.0)]
    expected = -(0.7 * log_q[1] + 0.3 * sum(log_q) / 3)
    terms = Scratch(label_smoothing=0.3).loss(make_step(student_logits=logits, labels=labels))
    assert float(terms["cross_entropy"]) == pytest.approx(expected)


def test_mixed_samples_have_the_mixed_loss() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    step = make_step(student_logits=logits, targets=torch.tensor([[0.25, 0.75, 0.0]]))
    log_q = logits.log_softmax(1)[0]
    assert float(Scratch().loss(step)["cross_entropy"]) == pytest.approx(float(-0.25 * log_q[0] - 0.75 * log_q[1]))


def test_it_is_the_baseline_that_gains_are_measured_against() -> None:
    assert methods.baseline() == "scratch"


def test_label_smoothing_of_one_is_rejected() -> None:
    with pytest.raises(ValueError, match="label_smoothing must be < 1, got 1"):
        Scratch(label_smoothing=1.0)
