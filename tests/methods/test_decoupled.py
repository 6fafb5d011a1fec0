from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from stillhouse.methods.decoupled import Decoupled, other_classes_loss, target_class_loss
from stillhouse.methods.kd import kd_loss
from stillhouse.models.architecture import Architecture
from stillhouse.testing import ReferenceCase, make_step

NET = Architecture(name="net", num_classes=10, input_shape=(3, 8, 8), shapes={})


def test_both_terms_and_their_sum_equal_the_authors_implementation(open_case: Callable[[str], ReferenceCase]) -> None:
    case = open_case("dkd-mdistiller")
    given = case["in.s_logits"], case["in.t_logits"], case["in.labels"], case.number("T")
    target, others = target_class_loss(*given), other_classes_loss(*given)
    case.check(target, "out.tckd")
    case.check(others, "out.nckd")
    loss = case.number("alpha") * target + case.number("beta") * others
    case.check(loss)
    case.check_gradients(loss, "s_logits")


def test_after_the_warm_up_the_default_is_the_authors_sum() -> None:
    student, teacher, labels = torch.randn(4, 10), torch.randn(4, 10), torch.arange(4)
    step = make_step(student_logits=student, labels=labels, teacher={"logits": teacher}, progress=0.5)
    terms = Decoupled().loss(step)
    torch.testing.assert_close(terms["target_class"], target_class_loss(student, teacher, labels, 4.0))
    torch.testing.assert_close(terms["other_classes"], 8 * other_classes_loss(student, teacher, labels, 4.0))
    torch.testing.assert_close(terms["cross_entropy"], F.cross_entropy(student, labels))


def test_kd_is_the_target_term_plus_the_others_weighted_by_their_total_probability() -> None:
    # equation 7, an identity, with each sample's own weight
    student, teacher = torch.randn(6, 10, dtype=torch.float64), torch.randn(6, 10, dtype=torch.float64)
    labels, temperature = torch.arange(6), 3.0
    left = 1 - (teacher / temperature).softmax(1)[range(6), labels]
    for n in range(6):
        given = student[n : n + 1], teacher[n : n + 1]
        target, others = (loss(*given, labels[n : n + 1], temperature) for loss in (target_class_loss, other_classes_loss))
        torch.testing.assert_close(kd_loss(*given, temperature), target + left[n] * others)


@pytest.mark.parametrize("loss", [target_class_loss, other_classes_loss])
def test_equal_outputs_have_no_loss(loss: Callable[..., torch.Tensor]) -> None:
    logits = torch.randn(4, 10, dtype=torch.float64)
    assert float(loss(logits, logits, torch.arange(4), 4.0)) == pytest.approx(0, abs=1e-12)


def test_the_other_classes_do_not_depend_on_the_target_nor_the_target_term_on_their_order() -> None:
    student, teacher, labels = torch.randn(3, 5), torch.randn(3, 5), torch.zeros(3, dtype=torch.int64)
    louder, turned = student.clone(), student.clone()
    louder[:, 0] += 3
    turned[:, 1:] = student[:, 1:].flip(1)
    torch.testing.assert_close(
        other_classes_loss(louder, teacher, labels, 2.0), other_classes_loss(student, teacher, labels, 2.0)
    )
    torch.testing.assert_close(
        target_class_loss(turned, teacher, labels, 2.0), target_class_loss(student, teacher, labels, 2.0)
    )


def test_with_two_classes_the_term_of_the_others_is_0() -> None:
    assert float(other_classes_loss(torch.randn(4, 2), torch.randn(4, 2), torch.tensor([0, 1, 0, 1]), 4.0)) == 0.0


def test_a_teacher_that_is_certain_keeps_loss_and_gradient_finite() -> None:
    student = torch.tensor([[500.0, -500.0, 0.0]], requires_grad=True)
    given = student, torch.tensor([[-500.0, 500.0, 0.0]]), torch.tensor([0]), 1.0
    loss = target_class_loss(*given) + other_classes_loss(*given)
    (gradient,) = torch.autograd.grad(loss, student)
    assert bool(loss.isfinite())
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.0), (1 / 24, 0.5), (1 / 12, 1.0), (0.9, 1.0)])
def test_the_weights_rise_linearly_over_the_first_twelfth(progress: float, share: float) -> None:
    given: dict[str, Any] = {
        "student_logits": torch.randn(4, 10),
        "teacher": {"logits": torch.randn(4, 10)},
        "progress": progress,
    }
    warming, warm = (Decoupled(**fields).loss(make_step(**given)) for fields in ({}, {"warmup_fraction": 0.0}))
    for name in ("target_class", "other_classes"):
        torch.testing.assert_close(warming[name], share * warm[name])


def test_the_larger_share_of_a_mixed_sample_is_the_target() -> None:
    given: dict[str, Any] = {"student_logits": torch.randn(1, 3), "teacher": {"logits": torch.randn(1, 3)}, "progress": 0.5}
    mixed = Decoupled().loss(make_step(**given, targets=torch.tensor([[0.3, 0.0, 0.7]])))
    whole = Decoupled().loss(make_step(**given, labels=torch.tensor([2])))
    assert mixed["other_classes"] == whole["other_classes"]


def test_with_weights_of_0_no_teacher_is_needed() -> None:
    method = Decoupled(target_weight=0.0, others_weight=0.0)
    assert method.knowledge(NET, NET) == {}
    assert list(method.loss(make_step(student_logits=torch.randn(2, 10)))) == ["cross_entropy"]


def test_nan_outputs_of_the_teacher_make_the_loss_nan() -> None:
    step = make_step(student_logits=torch.zeros(2, 3), teacher={"logits": torch.full((2, 3), torch.nan)}, progress=0.5)
    terms = Decoupled().loss(step)
    assert bool(terms["target_class"].isnan())
    assert bool(terms["other_classes"].isnan())
