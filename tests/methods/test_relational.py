from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from stillhouse.methods.relational import Relational, angle_cosines, angle_loss, distance_loss, relative_distances
from stillhouse.models.architecture import Architecture
from stillhouse.testing import ReferenceCase, make_step

Open = Callable[[str], ReferenceCase]
NET = Architecture(name="net", num_classes=10, input_shape=(3, 8, 8), shapes={"pool": (8,)}, pooled="pool")
LOSSES = pytest.mark.parametrize("loss", [distance_loss, angle_loss])


@pytest.mark.parametrize(("name", "loss"), [("distance", distance_loss), ("angle", angle_loss)])
def test_each_term_equals_the_authors_implementation(
    open_case: Open, name: str, loss: Callable[[Tensor, Tensor], Tensor]
) -> None:
    case = open_case(f"rkd-official-{name}")
    value = loss(case["in.s_feat"], case["in.t_feat"])
    case.check(value)
    case.check_gradients(value, "s_feat")


def test_the_default_weights_give_the_numbers_of_a_published_implementation(open_case: Open) -> None:
    case = open_case("rkd-repdistiller")
    step = make_step(
        student_logits=torch.zeros(len(case["in.s_feat"]), 10),
        student_features={"a": case["in.s_feat"]},
        teacher={"embedding": case["in.t_feat"].detach()},
    )
    terms = Relational().loss(step)
    loss = terms["distance"] + terms["angle"]
    case.check(loss)
    case.check_gradients(loss, "s_feat")


def test_distances_and_angles_of_a_right_triangle_by_hand() -> None:
    corners = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    # sides 3, 4 and 5, whose mean is 4
    expected = torch.tensor([[0, 3, 4], [3, 0, 5], [4, 5, 0]], dtype=torch.float64) / 4
    torch.testing.assert_close(relative_distances(corners), expected)
    cosines = angle_cosines(corners)
    assert float(cosines[0, 1, 2]) == pytest.approx(0)
    assert float(cosines[1, 0, 2]) == pytest.approx(3 / 5)
    assert float(cosines[2, 0, 1]) == pytest.approx(4 / 5)


@LOSSES
def test_moved_rotated_and_scaled_embeddings_of_another_width_have_no_loss(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    teacher = torch.randn(6, 4, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(9, 9, dtype=torch.float64)).Q[:4]
    assert float(loss(3 * teacher @ turn + 2, teacher)) == pytest.approx(0, abs=1e-12)


@LOSSES
def test_a_batch_of_one_has_no_relations(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    student = torch.randn(1, 4, requires_grad=True)
    value = loss(student, torch.randn(1, 7))
    (gradient,) = torch.autograd.grad(value, student)
    assert value.item() == 0.0
    assert float(gradient.abs().max()) == 0.0


@LOSSES
def test_equal_samples_leave_the_gradient_finite(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    student = torch.randn(4, 3)
    student[1] = student[0]
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(student, torch.randn(4, 3)), student)
    assert float(gradient.abs().max()) < 10


@LOSSES
def test_a_student_that_maps_all_samples_to_one_point_has_a_finite_loss(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    student = torch.zeros(4, 3, requires_grad=True)
    value = loss(student, torch.randn(4, 3))
    (gradient,) = torch.autograd.grad(value, student)
    assert bool(value.isfinite())
    assert bool(gradient.isfinite().all())


def test_a_term_of_weight_0_is_not_computed_and_without_terms_nothing_is_needed() -> None:
    step = make_step(
        student_logits=torch.randn(3, 10),
        student_features={"a": torch.randn(3, 4)},
        teacher={"embedding": torch.randn(3, 7)},
    )
    assert list(Relational(angle_weight=0.0).loss(step)) == ["cross_entropy", "distance"]
    assert Relational(angle_weight=0.0).knowledge(NET, NET)["embedding"].layers == ("pool",)
    assert Relational(angle_weight=0.0, distance_weight=0.0).knowledge(NET, NET) == {}


@LOSSES
def test_nan_outputs_of_the_teacher_make_the_loss_nan(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert bool(loss(torch.randn(3, 4), torch.full((3, 4), torch.nan)).isnan())
