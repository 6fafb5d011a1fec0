import math
from typing import Literal

import pytest
import torch
import torch.nn.functional as F

from stillhouse.methods.kd import kd_loss
from stillhouse.methods.transformed_teacher import TransformedTeacher, transformed_teacher_loss
from stillhouse.models.architecture import Architecture
from stillhouse.testing import make_step

NET = Architecture(name="net", num_classes=2, input_shape=(1, 8, 8), shapes={})


def log_odds(*probabilities: float) -> torch.Tensor:
    """Logits of two classes, of which the first has the given probability."""
    return torch.tensor([[math.log(p / (1 - p)), 0.0] for p in probabilities], dtype=torch.float64)


def test_the_loss_by_hand() -> None:
    # Square roots of (16/25, 9/25) are (4/5, 3/5): U = 7/5 and q = (4/7, 3/7). The student has (1/2, 1/2).
    student, teacher = log_odds(1 / 2), log_odds(16 / 25)
    divergence = 4 / 7 * math.log(8 / 7) + 3 / 7 * math.log(6 / 7)
    assert float(transformed_teacher_loss(student, teacher, 0.5, weighted=False)) == pytest.approx(divergence)
    assert float(transformed_teacher_loss(student, teacher, 0.5, weighted=True)) == pytest.approx(7 / 5 * divergence)


def test_each_sample_is_weighted_by_its_own_sum_of_powers() -> None:
    student, teacher = log_odds(0.5, 0.9), log_odds(16 / 25, 0.5)
    singles = [transformed_teacher_loss(student[n : n + 1], teacher[n : n + 1], 0.5, weighted=False) for n in range(2)]
    # (7/5) and 2 sqrt(1/2)
    expected = (7 / 5 * singles[0] + math.sqrt(2) * singles[1]) / 2
    torch.testing.assert_close(transformed_teacher_loss(student, teacher, 0.5, weighted=True), expected)


def test_a_power_is_a_temperature_of_the_teacher_alone() -> None:
    student, teacher = torch.randn(6, 10, dtype=torch.float64), torch.randn(6, 10, dtype=torch.float64)
    # KD at temperature 4 divides the student's logits, too, and multiplies by 4^2.
    torch.testing.assert_close(
        transformed_teacher_loss(student, teacher, 0.25, weighted=False), kd_loss(4 * student, teacher, 4.0) / 16
    )


def test_at_power_1_it_is_kd_at_temperature_1_and_the_weights_are_1() -> None:
    student, teacher = torch.randn(6, 10, dtype=torch.float64), torch.randn(6, 10, dtype=torch.float64)
    for weighted in (False, True):
        loss = transformed_teacher_loss(student, teacher, 1.0, weighted=weighted)
        torch.testing.assert_close(loss, kd_loss(student, teacher, 1.0))


def test_a_certain_teacher_keeps_loss_and_gradient_finite() -> None:
    student = torch.zeros(1, 3, requires_grad=True)
    loss = transformed_teacher_loss(student, torch.tensor([[1000.0, 0.0, -1000.0]]), 0.1, weighted=True)
    (gradient,) = torch.autograd.grad(loss, student)
    assert bool(loss.isfinite())
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("form", ["wttm", "ttm"])
def test_the_weight_scales_the_term_and_0_needs_no_teacher(form: Literal["wttm", "ttm"]) -> None:
    student, teacher = torch.randn(4, 10), torch.randn(4, 10)
    step = make_step(student_logits=student, teacher={"logits": teacher})
    terms = TransformedTeacher(kd_weight=3.0, power=0.3, form=form).loss(step)
    expected = 3 * transformed_teacher_loss(student, teacher, 0.3, weighted=form == "wttm")
    torch.testing.assert_close(terms["transformed_teacher"], expected)
    torch.testing.assert_close(terms["cross_entropy"], F.cross_entropy(student, step.labels))
    assert TransformedTeacher(kd_weight=0).knowledge(NET, NET) == {}
    assert list(TransformedTeacher(kd_weight=0).loss(make_step(student_logits=student))) == ["cross_entropy"]
