import math

import pytest
import torch
import torch.nn.functional as F

from stillhouse.methods.decoupled import other_classes_loss, target_class_loss
from stillhouse.methods.refined_logits import RefinedLogits, confidence_loss, masked_correlation_loss
from stillhouse.models.architecture import Architecture
from stillhouse.testing import make_step

NET = Architecture(name="net", num_classes=4, input_shape=(1, 8, 8), shapes={})


def logs(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def test_a_wrong_teachers_confidence_is_applied_to_the_label_by_hand() -> None:
    # The teacher has 1/2 for class 1, the student 1/4 for the label, class 0.
    student, teacher = logs([1 / 4, 1 / 4, 1 / 4, 1 / 4]), logs([1 / 4, 1 / 2, 1 / 8, 1 / 8])
    expected = 1 / 2 * math.log((1 / 2) / (1 / 4)) + 1 / 2 * math.log((1 / 2) / (3 / 4))
    assert float(confidence_loss(student, teacher, torch.tensor([0]), 1.0)) == pytest.approx(expected)


def test_only_classes_that_the_teacher_ranks_below_the_label_are_compared_by_hand() -> None:
    # Classes 2 and 3 are below the label, class 0. The teacher has 3/4 and 1/4 among them, the student 1/3 and 2/3.
    student, teacher = logs([0.1, 0.6, 0.1, 0.2]), logs([0.2, 0.6, 0.15, 0.05])
    expected = 3 / 4 * math.log((3 / 4) / (1 / 3)) + 1 / 4 * math.log((1 / 4) / (2 / 3))
    assert float(masked_correlation_loss(student, teacher, torch.tensor([0]), 1.0)) == pytest.approx(expected)


def test_where_the_teacher_is_right_it_is_the_decoupled_loss() -> None:
    student, teacher = torch.randn(6, 10, dtype=torch.float64), torch.randn(6, 10, dtype=torch.float64)
    labels = teacher.argmax(dim=1)
    for temperature in (1.0, 4.0):
        given = student, teacher, labels, temperature
        torch.testing.assert_close(confidence_loss(*given), target_class_loss(*given))
        torch.testing.assert_close(masked_correlation_loss(*given), other_classes_loss(*given))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_label_that_the_teacher_ranks_last_leaves_nothing_to_compare(dtype: torch.dtype) -> None:
    student = torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[0.0, 1.0, 2.0], [5.0, 5.0, 5.0]], dtype=dtype)
    loss = masked_correlation_loss(student, teacher, torch.tensor([0, 1]), 4.0)
    (gradient,) = torch.autograd.grad(loss, student)
    assert float(loss.detach()) == 0.0
    assert not bool(gradient.any())


def test_extreme_outputs_keep_losses_and_gradients_finite() -> None:
    student = torch.tensor([[500.0, -500.0, 0.0, 3.0]], requires_grad=True)
    teacher = torch.tensor([[-500.0, 500.0, 0.0, -1000.0]])
    for label in range(4):
        given = student, teacher, torch.tensor([label]), 1.0
        loss = confidence_loss(*given) + masked_correlation_loss(*given)
        (gradient,) = torch.autograd.grad(loss, student)
        assert bool(loss.isfinite())
        assert bool(gradient.isfinite().all())


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.0), (1 / 24, 0.5), (1 / 12, 1.0), (0.9, 1.0)])
def test_both_weights_rise_and_scale_their_terms(progress: float, share: float) -> None:
    student, teacher, labels = torch.randn(4, 10), torch.randn(4, 10), torch.arange(4)
    step = make_step(student_logits=student, labels=labels, teacher={"logits": teacher}, progress=progress)
    terms = RefinedLogits().loss(step)
    torch.testing.assert_close(terms["confidence"], share * confidence_loss(student, teacher, labels, 1.0))
    torch.testing.assert_close(terms["correlation"], share * 8 * masked_correlation_loss(student, teacher, labels, 4.0))
    torch.testing.assert_close(terms["cross_entropy"], F.cross_entropy(student, labels))


def test_weights_of_0_need_no_teacher() -> None:
    method = RefinedLogits(confidence_weight=0, correlation_weight=0)
    assert method.knowledge(NET, NET) == {}
    assert list(method.loss(make_step(student_logits=torch.randn(2, 4)))) == ["cross_entropy"]
