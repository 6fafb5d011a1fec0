from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from stillhouse.methods.logit_regression import LogitRegression, logit_regression_loss, mean_logit_regression_loss
from stillhouse.testing import ReferenceCase, make_step

Open = Callable[[str], ReferenceCase]


def test_the_loss_equals_the_papers_formula(open_case: Open) -> None:
    case = open_case("logits-kdzoo")
    loss = logit_regression_loss(case["in.s_logits"], case["in.t_logits"])
    case.check(loss, "aux.ba_caruana_half_sum_over_batch")


def test_the_mean_over_classes_equals_a_published_implementation(open_case: Open) -> None:
    case = open_case("logits-kdzoo")
    loss = mean_logit_regression_loss(case["in.s_logits"], case["in.t_logits"])
    case.check(loss)
    case.check_gradients(loss, "s_logits")


def test_the_gradient_is_the_difference_of_logits_per_sample() -> None:
    student, teacher = torch.randn(4, 10, requires_grad=True), torch.randn(4, 10)
    (gradient,) = torch.autograd.grad(logit_regression_loss(student, teacher), student)
    torch.testing.assert_close(gradient, (student.detach() - teacher) / 4)


def test_the_two_forms_differ_by_half_the_number_of_classes() -> None:
    step = make_step(student_logits=torch.randn(3, 10), teacher={"logits": torch.randn(3, 10)})
    paper, mean = (LogitRegression(classes=form).loss(step)["logit_regression"] for form in ("sum", "mean"))
    torch.testing.assert_close(paper, mean * 10 / 2)


def test_the_labels_are_used_only_if_they_have_a_weight() -> None:
    step = make_step(student_logits=torch.randn(3, 10), teacher={"logits": torch.randn(3, 10)})
    assert list(LogitRegression().loss(step)) == ["logit_regression"]
    terms = LogitRegression(label_weight=0.5).loss(step)
    torch.testing.assert_close(terms["cross_entropy"], 0.5 * F.cross_entropy(step.logits, step.labels))


def test_the_weight_scales_the_regression() -> None:
    step = make_step(student_logits=torch.zeros(1, 2), teacher={"logits": torch.tensor([[3.0, 4.0]])})
    assert float(LogitRegression(logit_weight=0.1).loss(step)["logit_regression"]) == pytest.approx(0.1 * 12.5)


def test_nan_outputs_of_the_teacher_make_the_loss_nan() -> None:
    step = make_step(student_logits=torch.zeros(2, 3), teacher={"logits": torch.full((2, 3), torch.nan)})
    assert bool(LogitRegression().loss(step)["logit_regression"].isnan())
