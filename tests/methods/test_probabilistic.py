from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from stillhouse.methods.probabilistic import (
    Probabilistic,
    neighbour_probabilities,
    probabilistic_loss,
    probability_divergence,
)
from stillhouse.testing import ReferenceCase, make_step

Open = Callable[[str], ReferenceCase]


def test_the_loss_equals_the_authors_implementation(open_case: Open) -> None:
    case = open_case("pkt-official")
    loss = probabilistic_loss(case["in.s_feat"], case["in.t_feat"])
    case.check(loss)
    case.check_gradients(loss, "s_feat")


def test_another_epsilon_equals_another_published_implementation(open_case: Open) -> None:
    case = open_case("pkt-kdzoo")
    epsilon = case.number("eps")
    student, teacher = (neighbour_probabilities(case[f"in.{who}_feat"], epsilon) for who in "st")
    loss = probability_divergence(student, teacher, epsilon)
    case.check(loss)
    case.check_gradients(loss, "s_feat")


def test_labels_as_the_teacher_equal_the_authors_supervised_form(open_case: Open) -> None:
    case = open_case("pkt-official-supervised")
    labels = case["in.labels"]
    same = (labels.unsqueeze(0) == labels.unsqueeze(1)).float()  # float32 in both runs, as there
    loss = probability_divergence(neighbour_probabilities(case["in.s_feat"]), same / same.sum(1, keepdim=True))
    case.check(loss)
    case.check_gradients(loss, "s_feat")


def test_probabilities_by_hand() -> None:
    # cosines 1, 0 and -1 are similarities 1, 1/2 and 0
    embeddings = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-5.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([[2 / 3, 1 / 3, 0], [1 / 4, 1 / 2, 1 / 4], [0, 1 / 3, 2 / 3]], dtype=torch.float64)
    torch.testing.assert_close(neighbour_probabilities(embeddings), expected, rtol=0, atol=1e-6)


def test_rotated_and_scaled_embeddings_of_another_width_have_no_loss() -> None:
    teacher = torch.randn(6, 4, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(9, 9, dtype=torch.float64)).Q[:4]
    assert float(probabilistic_loss(3 * teacher @ turn, teacher)) == pytest.approx(0, abs=1e-7)


def test_the_loss_is_the_divergence_of_the_rows_over_the_square_of_the_batch() -> None:
    student, teacher = (neighbour_probabilities(torch.randn(5, 3, dtype=torch.float64)) for _ in range(2))
    expected = F.kl_div(student.log(), teacher, reduction="sum") / 25
    torch.testing.assert_close(probability_divergence(student, teacher), expected, rtol=1e-4, atol=0)


def test_a_batch_of_one_has_no_loss() -> None:
    assert float(probabilistic_loss(torch.randn(1, 4), torch.randn(1, 7))) == 0.0


def test_a_sample_with_outputs_of_0_leaves_the_gradient_finite() -> None:
    student = torch.randn(3, 4)
    student[1] = 0
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(probabilistic_loss(student, torch.randn(3, 4)), student)
    assert float(gradient.abs().max()) < 10


def test_the_term_is_weighted_and_absent_with_weight_0() -> None:
    student, teacher = torch.randn(3, 4), torch.randn(3, 7)
    step = make_step(student_logits=torch.randn(3, 10), student_features={"a": student}, teacher={"embedding": teacher})
    term = Probabilistic(transfer_weight=10.0).loss(step)["probabilistic_transfer"]
    torch.testing.assert_close(term, 10 * probabilistic_loss(student, teacher))
    assert list(Probabilistic(transfer_weight=0.0).loss(step)) == ["cross_entropy"]


def test_nan_outputs_of_the_teacher_make_the_loss_nan() -> None:
    assert bool(probabilistic_loss(torch.randn(3, 4), torch.full((3, 4), torch.nan)).isnan())
