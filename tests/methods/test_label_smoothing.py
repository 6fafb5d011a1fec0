import math

import pytest
import torch
import torch.nn.functional as F

from stillhouse.methods.label_smoothing import LabelSmoothing
from stillhouse.testing import make_step


def test_the_loss_by_hand() -> None:
    # q = (1/2, 1/4, 1/4) and y' = (0.8, 0.1, 0.1): 0.8 log 2 + 0.2 log 4
    logits = torch.tensor([[math.log(2), 0.0, 0.0]])
    terms = LabelSmoothing(smoothing=0.3).loss(make_step(student_logits=logits))
    assert float(terms["cross_entropy"]) == pytest.approx(0.8 * math.log(2) + 0.2 * math.log(4))


def test_it_equals_cross_entropy_plus_the_distance_to_the_uniform_distribution() -> None:
    logits, labels = torch.randn(5, 10, dtype=torch.float64), torch.arange(5)
    step = make_step(student_logits=logits, labels=labels)
    to_uniform = -logits.log_softmax(1).mean(1).mean()
    expected = 0.9 * F.cross_entropy(logits, labels) + 0.1 * to_uniform
    torch.testing.assert_close(LabelSmoothing().loss(step)["cross_entropy"], expected)


def test_the_loss_is_smallest_for_the_smoothed_probabilities() -> None:
    # (0.9 + 0.1 / 4, and 0.1 / 4 for each of the other three classes)
    logits = torch.tensor([[0.925, 0.025, 0.025, 0.025]]).log().requires_grad_()
    loss = LabelSmoothing().loss(make_step(student_logits=logits))["cross_entropy"]
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, torch.zeros(1, 4), atol=1e-6, rtol=0)


def test_no_smoothing_is_plain_cross_entropy_also_for_mixed_samples() -> None:
    logits, targets = torch.randn(3, 4), torch.rand(3, 4).softmax(1)
    step = make_step(student_logits=logits, targets=targets)
    torch.testing.assert_close(LabelSmoothing(smoothing=0.0).loss(step)["cross_entropy"], F.cross_entropy(logits, targets))


def test_it_is_a_control_but_not_the_one_that_gains_are_measured_against() -> None:
    assert LabelSmoothing.card.family == "control"
    assert not LabelSmoothing.card.baseline


def test_a_smoothing_of_1_is_rejected() -> None:
    with pytest.raises(ValueError, match="smoothing must be < 1, got 1"):
        LabelSmoothing(smoothing=1.0)
