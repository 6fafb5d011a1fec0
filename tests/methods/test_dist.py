from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stillhouse.methods.dist import Dist, inter_class_loss, intra_class_loss, pearson_distance
from stillhouse.models.architecture import Architecture
from stillhouse.testing import ReferenceCase, make_step

Open = Callable[[str], ReferenceCase]
NET = Architecture(name="net", num_classes=10, input_shape=(3, 8, 8), shapes={})


def test_both_terms_and_their_sum_equal_the_authors_implementation(open_case: Open) -> None:
    case = open_case("dist-hunto")
    given = case["in.s_logits"], case["in.t_logits"], case.number("tau")
    inter, intra = inter_class_loss(*given), intra_class_loss(*given)
    case.check(inter, "out.inter")
    case.check(intra, "out.intra")
    loss = case.number("beta") * inter + case.number("gamma") * intra
    case.check(loss)
    case.check_gradients(loss, "s_logits")


def test_the_pixels_of_a_segmentation_are_samples_too(open_case: Open) -> None:
    case = open_case("dist-hunto-seg4d")
    given = [case[f"in.{who}_logits"].transpose(1, 3).flatten(0, 2) for who in "st"]
    loss = inter_class_loss(*given, 1.0) + intra_class_loss(*given, 1.0)
    case.check(loss)
    case.check_gradients(loss, "s_logits")


def test_the_distance_is_one_minus_the_correlation_coefficient() -> None:
    student, teacher = torch.randn(7, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    expected = 1 - np.corrcoef(student.numpy(), teacher.numpy())[0, 1]
    assert float(pearson_distance(student, teacher, dim=0)) == pytest.approx(expected)


def test_scale_and_offset_do_not_matter_and_opposites_are_two_apart() -> None:
    values = torch.rand(3, 5, dtype=torch.float64)
    assert float(pearson_distance(3 * values + 2, values, dim=1)) == pytest.approx(0, abs=1e-6)
    assert float(pearson_distance(-values, values, dim=1)) == pytest.approx(2, abs=1e-6)


def test_equal_outputs_have_no_loss() -> None:
    logits = 5 * torch.eye(10, dtype=torch.float64)
    assert float(inter_class_loss(logits, logits, 1.0)) == pytest.approx(0, abs=1e-6)
    assert float(intra_class_loss(logits, logits, 1.0)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("loss", [inter_class_loss, intra_class_loss])
def test_the_temperature_softens_and_its_square_scales(loss: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    student, teacher = torch.randn(4, 10), torch.randn(4, 10)
    torch.testing.assert_close(loss(student, teacher, 4.0), 16 * loss(student / 4, teacher / 4, 1.0))


def test_a_batch_of_one_correlates_with_nothing_and_has_no_gradient_from_it() -> None:
    student = torch.randn(1, 10, requires_grad=True)
    loss = intra_class_loss(student, torch.randn(1, 10), 1.0)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.item() == 1.0
    assert float(gradient.abs().max()) == 0.0


def test_a_class_of_probability_0_leaves_the_loss_finite() -> None:
    teacher = torch.randn(4, 10)
    teacher[:, 3] = -1e4
    student = torch.randn(4, 10, requires_grad=True)
    loss = intra_class_loss(student, teacher, 1.0) + inter_class_loss(student, teacher, 1.0)
    (gradient,) = torch.autograd.grad(loss, student)
    assert bool(loss.isfinite())
    assert bool(gradient.isfinite().all())


def test_weights_scale_their_terms() -> None:
    student, teacher = torch.randn(4, 10), torch.randn(4, 10)
    terms = Dist(inter_weight=2.0, intra_weight=0.5, temperature=1.0).loss(
        make_step(student_logits=student, teacher={"logits": teacher})
    )
    torch.testing.assert_close(terms["inter_class"], 2 * inter_class_loss(student, teacher, 1.0))
    torch.testing.assert_close(terms["intra_class"], 0.5 * intra_class_loss(student, teacher, 1.0))
    torch.testing.assert_close(terms["cross_entropy"], F.cross_entropy(student, torch.zeros(4, dtype=torch.int64)))


def test_with_weights_of_0_no_teacher_is_needed() -> None:
    method = Dist(inter_weight=0.0, intra_weight=0.0)
    assert method.knowledge(NET, NET) == {}
    assert list(method.loss(make_step(student_logits=torch.randn(2, 10)))) == ["cross_entropy"]


def test_nan_outputs_of_the_teacher_make_the_loss_nan() -> None:
    step = make_step(student_logits=torch.randn(2, 3), teacher={"logits": torch.full((2, 3), torch.nan)})
    terms = Dist().loss(step)
    assert bool(terms["inter_class"].isnan())
    assert bool(terms["intra_class"].isnan())
