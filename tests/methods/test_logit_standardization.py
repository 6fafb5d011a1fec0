from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from stillhouse.methods.kd import kd_loss
from stillhouse.methods.logit_standardization import LogitStandardization, standardize
from stillhouse.models.architecture import Architecture
from stillhouse.testing import ReferenceCase, make_step

NET = Architecture(name="net", num_classes=10, input_shape=(3, 8, 8), shapes={})


def test_the_sample_form_equals_a_published_implementation(open_case: Callable[[str], ReferenceCase]) -> None:
    case = open_case("logitstd-torchdistill")
    method = LogitStandardization(
        temperature=case.number("T"), kd_weight=case.number("beta"), label_weight=case.number("alpha"), deviation="sample"
    )
    step = make_step(student_logits=case["in.s_logits"], labels=case["in.labels"], teacher={"logits": case["in.t_logits"]})
    loss = torch.stack(list(method.loss(step).values())).sum()
    case.check(loss)
    case.check_gradients(loss, "s_logits")


def test_standardised_logits_by_hand() -> None:
    # mean 3, squares 4 + 0 + 4: deviations sqrt(8/3) and sqrt(8/2) = 2
    logits = torch.tensor([[1.0, 3.0, 5.0]])
    scale = 2 / (8 / 3) ** 0.5
    torch.testing.assert_close(standardize(logits), torch.tensor([[-scale, 0.0, scale]]))
    torch.testing.assert_close(standardize(logits, "sample"), torch.tensor([[-1.0, 0.0, 1.0]]))


def test_scale_and_offset_of_the_students_logits_do_not_matter() -> None:
    teacher = torch.randn(4, 10, dtype=torch.float64)
    step = make_step(student_logits=0.2 * teacher + 5, teacher={"logits": teacher})
    assert float(LogitStandardization().loss(step)["kd"]) == pytest.approx(0, abs=1e-9)


def test_it_is_kd_with_a_temperature_for_each_sample_and_network() -> None:
    student, teacher = torch.randn(1, 10, dtype=torch.float64), torch.randn(1, 10, dtype=torch.float64)
    own = [2 * float(logits.std(correction=0)) for logits in (student, teacher)]
    step = make_step(student_logits=student, teacher={"logits": teacher})
    expected = 9 * 4 * kd_loss(student / own[0], teacher / own[1], 1.0)
    torch.testing.assert_close(LogitStandardization().loss(step)["kd"], expected, rtol=1e-6, atol=0)


def test_equal_logits_standardise_to_zeros_with_a_finite_gradient() -> None:
    student = torch.ones(2, 10, requires_grad=True)
    assert float(standardize(student).detach().abs().max()) == 0.0
    loss = LogitStandardization().loss(make_step(student_logits=student, teacher={"logits": torch.randn(2, 10)}))["kd"]
    (gradient,) = torch.autograd.grad(loss, student)
    assert bool(gradient.isfinite().all())


def test_with_kd_weight_0_only_the_labels_are_used() -> None:
    method = LogitStandardization(kd_weight=0.0)
    assert method.knowledge(NET, NET) == {}
    step = make_step(student_logits=torch.randn(3, 10))
    terms = method.loss(step)
    assert list(terms) == ["cross_entropy"]
    torch.testing.assert_close(terms["cross_entropy"], 0.1 * F.cross_entropy(step.logits, step.labels))


def test_two_weights_of_zero_are_rejected() -> None:
    with pytest.raises(ValueError, match="kd_weight and label_weight must not both be 0"):
        LogitStandardization(kd_weight=0.0, label_weight=0.0)


def test_nan_outputs_of_the_teacher_make_the_loss_nan() -> None:
    step = make_step(student_logits=torch.randn(2, 3), teacher={"logits": torch.full((2, 3), torch.nan)})
    assert bool(LogitStandardization().loss(step)["kd"].isnan())
