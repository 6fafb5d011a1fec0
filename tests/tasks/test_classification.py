"""Classification: cross-entropy, top-1 accuracy, targets of mixed samples. Expectations are worked out by hand."""

import math

import pytest
import torch

from stillhouse import tasks
from stillhouse.spec.metric import ACCURACY

TASK = tasks.find("classification")
LOGITS = torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])


def test_it_is_judged_by_accuracy_as_in_the_first_release() -> None:
    assert TASK.metric == ACCURACY
    assert TASK.metric.column("validation") == "validation_accuracy"


def test_the_accuracy_is_the_share_of_right_samples() -> None:
    evaluator = TASK.evaluator()
    evaluator.update(TASK.outputs(LOGITS), torch.tensor([0, 1, 2, 2]))
    assert evaluator.result() == 0.75


def test_batches_of_unlike_size_count_by_their_samples() -> None:
    """One wrong of one and three right of three: 3/4, not the mean of 0 and 1."""
    evaluator = TASK.evaluator()
    evaluator.update(TASK.outputs(LOGITS[3:]), torch.tensor([2]))
    evaluator.update(TASK.outputs(LOGITS[:3]), torch.tensor([0, 1, 2]))
    assert evaluator.result() == 0.75


def test_merging_adds_counts() -> None:
    one, other = TASK.evaluator(), TASK.evaluator()
    one.update(TASK.outputs(LOGITS[3:]), torch.tensor([2]))
    other.update(TASK.outputs(LOGITS[:3]), torch.tensor([0, 1, 2]))
    one.merge(other.state())
    assert one.result() == 0.75


def test_the_loss_of_even_logits_is_the_log_of_the_number_of_classes() -> None:
    losses = TASK.losses(TASK.outputs(torch.zeros(2, 3)), torch.tensor([0, 2]))
    assert list(losses) == ["cross_entropy"]
    assert losses["cross_entropy"].item() == pytest.approx(math.log(3))


def test_the_sum_is_over_the_samples_own_losses() -> None:
    losses = TASK.losses(TASK.outputs(torch.zeros(4, 3)), torch.tensor([0, 2, 1, 1]), "sum")
    assert losses["cross_entropy"].item() == pytest.approx(4 * math.log(3))


def test_the_targets_of_mixed_samples_are_the_shares_of_both_classes() -> None:
    mixed = TASK.mix(torch.tensor([0, 1]), torch.tensor([2, 1]), torch.tensor([0.25, 0.5]), 3)
    assert mixed.tolist() == [[0.25, 0.0, 0.75], [0.0, 1.0, 0.0]]


def test_a_teacher_provides_one_logit_for_each_class() -> None:
    assert TASK.output_shapes(7, (1, 8, 8)) == {"logits": (7,)}


def test_the_trivial_value_is_the_share_of_the_most_common_class() -> None:
    assert TASK.trivial_value(torch.tensor([2, 0, 2, 1, 2])) == 0.6
