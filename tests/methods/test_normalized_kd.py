import math

import pytest
import torch
import torch.nn.functional as F

from stillhouse.methods.decoupled import other_classes_loss
from stillhouse.methods.normalized_kd import NormalizedKD, normalized_others_loss, soft_target_loss
from stillhouse.models.architecture import Architecture
from stillhouse.testing import make_step

NET = Architecture(name="net", num_classes=3, input_shape=(1, 8, 8), shapes={})


def logs(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def test_both_terms_by_hand() -> None:
    # Class 0 is the label. The teacher has 1/2, 3/8, 1/8: among the others 3/4 and 1/4. The student has 1/4, 1/4, 1/2.
    student, teacher, labels = logs([1 / 4, 1 / 4, 1 / 2]), logs([1 / 2, 3 / 8, 1 / 8]), torch.tensor([0])
    assert float(soft_target_loss(student, teacher, labels)) == pytest.approx(math.log(4) / 2)
    expected = -(3 / 4 * math.log(1 / 3) + 1 / 4 * math.log(2 / 3))
    assert float(normalized_others_loss(student, teacher, labels, 1.0)) == pytest.approx(expected)


def test_the_other_classes_differ_from_the_decoupled_term_by_the_teachers_entropy() -> None:
    student, teacher = torch.randn(6, 10, dtype=torch.float64), torch.randn(6, 10, dtype=torch.float64)
    labels, temperature = torch.arange(6), 2.0
    kept = torch.stack([torch.cat([row[:label], row[label + 1 :]]) for label, row in enumerate(teacher)])
    entropy = torch.distributions.Categorical(logits=kept / temperature).entropy().mean()
    torch.testing.assert_close(
        normalized_others_loss(student, teacher, labels, temperature),
        other_classes_loss(student, teacher, labels, temperature) + temperature**2 * entropy,
    )


def test_equal_normalised_outputs_have_no_gradient_whatever_the_targets_logits() -> None:
    teacher = torch.randn(4, 10, dtype=torch.float64)
    student = teacher.clone()
    student[:, 3] += 5  # the label of all samples
    student.requires_grad_()
    loss = normalized_others_loss(student, teacher, torch.full((4,), 3), 2.0)
    (gradient,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-15, rtol=0)


def test_weights_scale_their_terms_and_mixed_samples_have_the_class_of_the_larger_share() -> None:
    student, teacher = torch.randn(2, 3), torch.randn(2, 3)
    targets = torch.tensor([[0.3, 0.0, 0.7], [0.6, 0.4, 0.0]])
    terms = NormalizedKD(target_weight=3.0, others_weight=2.0, temperature=3.0).loss(
        make_step(student_logits=student, targets=targets, teacher={"logits": teacher})
    )
    labels = torch.tensor([2, 0])
    torch.testing.assert_close(terms["soft_target"], 3 * soft_target_loss(student, teacher, labels))
    torch.testing.assert_close(terms["other_classes"], 2 * normalized_others_loss(student, teacher, labels, 3.0))
    torch.testing.assert_close(terms["cross_entropy"], F.cross_entropy(student, targets))
    assert "other_classes" not in NormalizedKD(others_weight=0).loss(
        make_step(student_logits=student, teacher={"logits": teacher})
    )
    assert list(NormalizedKD().knowledge(NET, NET)) == ["logits"]
    assert NormalizedKD(target_weight=0, others_weight=0).knowledge(NET, NET) == {}
