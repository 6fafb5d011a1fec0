import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stillhouse.methods.kd import kd_loss
from stillhouse.methods.multi_level_logits import (
    MultiLevelLogits,
    batch_loss,
    class_loss,
    instance_loss,
    log_probabilities,
    lower_half,
)
from stillhouse.models.architecture import Architecture
from stillhouse.testing import make_step

NET = Architecture(name="net", num_classes=2, input_shape=(1, 8, 8), shapes={})


def tensor(*rows: list[float]) -> Tensor:
    return torch.tensor([rows], dtype=torch.float64)


def test_all_three_levels_by_hand() -> None:
    # Two samples and two classes. P_t = [[1, 0], [0, 1]] and P_s = [[1/2, 1/2], [1/4, 3/4]].
    teacher, student = tensor([1.0, 0.0], [0.0, 1.0]), tensor([0.5, 0.5], [0.25, 0.75])
    # P_s P_s^T = [[1/2, 1/2], [1/2, 5/8]], P_s^T P_s = [[5/16, 7/16], [7/16, 13/16]]; the teacher's are the identity.
    between_samples = (1 / 4 + 1 / 4 + 1 / 4 + 9 / 64) / 2
    between_classes = (121 / 256 + 2 * 49 / 256 + 9 / 256) / 2
    assert float(batch_loss(student, teacher)) == pytest.approx(between_samples)
    assert float(class_loss(student, teacher)) == pytest.approx(between_classes)
    # KL(1 || 1/2) and KL(1 || 3/4) at temperature 3; the teacher's zeros have logarithms of -200.
    logs = tensor([0.0, -200.0], [-200.0, 0.0])
    expected = 9 * (math.log(2) + math.log(4 / 3)) / 2
    assert float(instance_loss(student.log(), logs, [3.0])) == pytest.approx(expected)


def test_the_instance_level_is_the_sum_of_kd_at_each_temperature() -> None:
    student, teacher = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
    temperatures = (2.0, 5.0)
    given = (log_probabilities(logits, temperatures) for logits in (student, teacher))
    expected = kd_loss(student, teacher, 2.0) + kd_loss(student, teacher, 5.0)
    torch.testing.assert_close(instance_loss(*given, temperatures), expected)


def test_relations_are_the_explicit_sums_over_pairs() -> None:
    student, teacher = torch.randn(2, 3, 4).softmax(2).double(), torch.randn(2, 3, 4).softmax(2).double()
    pairs = [
        sum(float(teacher[n, i] @ teacher[n, j] - student[n, i] @ student[n, j]) ** 2 for i in range(3) for j in range(3))
        for n in range(2)
    ]
    assert float(batch_loss(student, teacher)) == pytest.approx(sum(pairs) / 3)
    columns = [
        sum(
            float(teacher[n, :, i] @ teacher[n, :, j] - student[n, :, i] @ student[n, :, j]) ** 2
            for i in range(4)
            for j in range(4)
        )
        for n in range(2)
    ]
    assert float(class_loss(student, teacher)) == pytest.approx(sum(columns) / 4)


def test_equal_outputs_have_no_loss_and_no_gradient() -> None:
    teacher = torch.randn(6, 10, dtype=torch.float64)
    student = teacher.clone().requires_grad_()
    terms = MultiLevelLogits(label_weight=0).loss(make_step(student_logits=student, teacher={"logits": teacher}))
    loss = torch.stack(list(terms.values())).sum()
    (gradient,) = torch.autograd.grad(loss, student)
    assert sorted(terms) == ["batch", "class", "instance"]
    assert float(loss.detach()) == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.9, 0.2, 0.5, 0.4], [0, 1, 0, 1]), ([0.9, 0.2, 0.5], [0, 1, 1]), ([0.3], [1]), ([0.5, 0.5, 0.5, 0.5], [1, 1, 1, 1])],
)
def test_the_lower_half_ends_at_the_median(values: list[float], expected: list[int]) -> None:
    assert lower_half(torch.tensor(values)).tolist() == expected


def test_uncertain_samples_alone_have_a_gradient_at_the_instance_level() -> None:
    """The mean of the batch times the mask, as the authors' code has it, would reach all samples."""
    teacher = torch.tensor([[5.0, 0.0], [0.1, 0.0], [0.0, 4.0], [0.0, 0.2]])
    student = torch.zeros(4, 2, requires_grad=True)
    method = MultiLevelLogits(samples="uncertain", label_weight=0, batch_weight=0, class_weight=0)
    (loss,) = method.loss(make_step(student_logits=student, teacher={"logits": teacher})).values()
    (gradient,) = torch.autograd.grad(loss, student)
    assert gradient.any(dim=1).tolist() == [False, True, False, True]
    alone = MultiLevelLogits(label_weight=0, batch_weight=0, class_weight=0)
    (of_two,) = alone.loss(make_step(student_logits=student[1::2], teacher={"logits": teacher[1::2]})).values()
    torch.testing.assert_close(loss, of_two / 2)  # the mean is over the whole batch


def test_weights_scale_their_terms_and_decide_what_is_needed() -> None:
    student, teacher, labels = torch.randn(4, 10), torch.randn(4, 10), torch.arange(4)
    step = make_step(student_logits=student, labels=labels, teacher={"logits": teacher})
    ones = MultiLevelLogits(label_weight=1, instance_weight=1, batch_weight=1, class_weight=1).loss(step)
    terms = MultiLevelLogits(label_weight=0.5, instance_weight=2, batch_weight=3, class_weight=4).loss(step)
    for name, weight in (("cross_entropy", 0.5), ("instance", 2), ("batch", 3), ("class", 4)):
        torch.testing.assert_close(terms[name], weight * ones[name])
    torch.testing.assert_close(ones["cross_entropy"], F.cross_entropy(student, labels))
    assert MultiLevelLogits(instance_weight=0, batch_weight=0, class_weight=0).knowledge(NET, NET) == {}
    assert not MultiLevelLogits(batch_weight=0, class_weight=0).needs_whole_batch
    assert MultiLevelLogits(batch_weight=0, class_weight=0, samples="uncertain").needs_whole_batch
    for wrong in ({"temperatures": ()}, {"temperatures": (2.0, 0.0)}):
        with pytest.raises(ValueError, match="temperatures must list at least one number > 0"):
            MultiLevelLogits(**wrong)
    with pytest.raises(ValueError, match="nothing would be learned"):
        MultiLevelLogits(label_weight=0, instance_weight=0, batch_weight=0, class_weight=0)
