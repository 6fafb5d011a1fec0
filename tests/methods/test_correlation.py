from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from stillhouse.distill.method import Setup
from stillhouse.methods.correlation import Correlation, consecutive_pairs_loss, correlation_loss, correlations
from stillhouse.models.architecture import Architecture
from stillhouse.testing import ReferenceCase, check_method, make_step

Open = Callable[[str], ReferenceCase]
NET = Architecture(name="net", num_classes=10, input_shape=(3, 8, 8), shapes={"pool": (8, 1, 1)}, pooled="pool")


def test_the_gaussian_form_equals_a_published_implementation(open_case: Open) -> None:
    case = open_case("cc-kdzoo")
    gamma, order = case.number("gamma"), int(case.number("P_order"))
    loss = correlation_loss(case["in.s_feat"], case["in.t_feat"], "gaussian", gamma, order)
    case.check(loss)
    case.check_gradients(loss, "s_feat")


@pytest.mark.parametrize("kernel", ["gaussian", "bilinear"])
def test_the_matrices_equal_a_published_implementation_that_takes_another_norm(open_case: Open, kernel: str) -> None:
    case = open_case(f"cc-torchdistill-{kernel}")
    gamma, order = case.number("gamma"), int(case.number("max_p"))
    student, teacher = (correlations(case[f"in.{who}_feat"], kernel, gamma, order) for who in "st")
    loss = torch.linalg.matrix_norm(student - teacher) / len(student) ** 2
    case.check(loss)
    case.check_gradients(loss, "s_feat")


def test_consecutive_pairs_equal_the_authors_implementation(open_case: Open) -> None:
    case = open_case("cc-repdistiller")
    student, teacher = (
        nn.functional.linear(case[f"in.{who}_feat"], case[f"w.embed_{who}.weight"], case[f"w.embed_{who}.bias"]) for who in "st"
    )
    loss = consecutive_pairs_loss(student, teacher)
    case.check(loss)
    case.check_gradients(loss, "s_feat")
    names = [f"embed_{who}.{part}" for who in "st" for part in ("weight", "bias")]
    gradients = torch.autograd.grad(loss, [case[f"w.{name}"] for name in names])
    for name, gradient in zip(names, gradients, strict=True):
        case.check(gradient, f"grad.w.{name}")


def test_the_series_tends_to_the_gaussian_kernel() -> None:
    vectors = torch.nn.functional.normalize(torch.randn(6, 4, dtype=torch.float64))
    expected = (-0.4 * torch.cdist(vectors, vectors).square()).exp()
    torch.testing.assert_close(correlations(vectors, "gaussian", 0.4, 12), expected)


@pytest.mark.parametrize("kernel", ["gaussian", "bilinear"])
def test_rotated_and_scaled_outputs_of_another_width_have_no_loss(kernel: str) -> None:
    teacher = torch.randn(6, 4, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(9, 9, dtype=torch.float64)).Q[:4]
    assert float(correlation_loss(3 * teacher @ turn, teacher, kernel, 0.4, 2)) == pytest.approx(0, abs=1e-12)


def test_consecutive_pairs_by_hand() -> None:
    # distances (1, 2), (3, 0), (1, 1): products 3 + 0 and 3 + 0, mean 3
    student = torch.tensor([[1.0, -2.0], [3.0, 0.0], [-1.0, 1.0]])
    assert float(consecutive_pairs_loss(student, torch.zeros(3, 2))) == 3.0


def test_a_batch_of_one_has_no_loss() -> None:
    student, teacher = torch.randn(1, 4), torch.randn(1, 4)
    assert float(correlation_loss(student, teacher, "gaussian", 0.4, 2)) == pytest.approx(0, abs=1e-12)
    assert float(consecutive_pairs_loss(student, teacher)) == 0.0


def test_a_sample_with_outputs_of_0_leaves_the_gradient_finite() -> None:
    student = torch.randn(3, 4)
    student[1] = 0
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(correlation_loss(student, torch.randn(3, 4), "gaussian", 0.4, 2), student)
    assert float(gradient.abs().max()) < 10


def given(student: Tensor, teacher: Tensor, method: Correlation) -> dict[str, Tensor]:
    setup = Setup(teacher=NET, student=NET, new_student=nn.Identity, num_samples=10, epochs=1)
    step = make_step(
        student_logits=torch.randn(len(student), 10),
        student_features={"pool": student},
        teacher={"embedding": teacher},
        modules={name: helper.module for name, helper in method.modules(setup).items()},
    )
    terms: dict[str, Tensor] = method.loss(step)
    return terms


def test_the_term_is_weighted_and_absent_with_weight_0() -> None:
    student, teacher = torch.randn(3, 8, 1, 1), torch.randn(3, 8, 1, 1)
    expected = 10 * correlation_loss(student.flatten(1), teacher.flatten(1), "gaussian", 0.4, 2)
    torch.testing.assert_close(given(student, teacher, Correlation(correlation_weight=10.0))["correlation"], expected)
    assert list(given(student, teacher, Correlation(correlation_weight=0.0))) == ["cross_entropy"]
    assert Correlation(correlation_weight=0.0).knowledge(NET, NET) == {}


def test_only_consecutive_pairs_have_helpers() -> None:
    setup = Setup(teacher=NET, student=NET, new_student=nn.Identity, num_samples=10, epochs=1)
    assert Correlation().modules(setup) == {}
    assert Correlation(kernel="consecutive_pairs", correlation_weight=0.0).modules(setup) == {}
    assert list(Correlation(kernel="consecutive_pairs").modules(setup)) == ["student_embedding", "teacher_embedding"]


def test_nan_outputs_of_the_teacher_make_the_loss_nan() -> None:
    student, teacher = torch.randn(3, 8, 1, 1), torch.full((3, 8, 1, 1), torch.nan)
    for method in (Correlation(), Correlation(kernel="bilinear"), Correlation(kernel="consecutive_pairs")):
        assert bool(given(student, teacher, method)["correlation"].isnan())


def test_consecutive_pairs_pass_every_check() -> None:
    check_method(Correlation(kernel="consecutive_pairs", correlation_weight=0.02))
