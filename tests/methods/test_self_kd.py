import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stillhouse.distill.method import Method, Unsuitable
from stillhouse.methods.self_kd import SelfKD, other_class_scores, smoothed_target_loss, zipf_labels
from stillhouse.models.architecture import Architecture
from stillhouse.testing import MethodTrial, make_step


def logs(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def test_the_smoothed_target_by_hand() -> None:
    # s_y is 1/2 and 1/4, so its squares are 1/4 and 1/16, with mean 5/32: the targets are 1 + 3/32 and 1 - 3/32.
    logits = logs([1 / 2, 1 / 4, 1 / 4], [1 / 2, 1 / 4, 1 / 4])
    expected = (35 / 32 * math.log(2) + 29 / 32 * math.log(4)) / 2
    assert float(smoothed_target_loss(logits, torch.tensor([0, 1]))) == pytest.approx(expected)


def test_the_gradient_of_the_smoothed_target_is_that_of_weighted_cross_entropy() -> None:
    """d/dz of -p_y log s_y with p_y fixed is p_y (s - onehot(y))."""
    logits = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 3, 0])
    (gradient,) = torch.autograd.grad(smoothed_target_loss(logits, labels), logits)
    probabilities = logits.detach().softmax(1)
    squares = probabilities[torch.arange(5), labels] ** 2
    weights = 1 + squares - squares.mean()
    torch.testing.assert_close(gradient, weights[:, None] * (probabilities - F.one_hot(labels, 4)) / 5)


@pytest.mark.parametrize(
    ("ranks", "label", "expected"),
    [
        # The scores rank the classes 2, 0, 3, 1.
        ("others", 2, [6 / 11, 2 / 11, 3 / 11]),  # 0, 1, 3 with ranks 1, 3, 2: in proportion to 1, 1/3, 1/2
        ("all", 2, [6 / 13, 3 / 13, 4 / 13]),  # ranks 2, 4, 3: in proportion to 1/2, 1/4, 1/3
        ("all", 3, [6 / 21, 3 / 21, 12 / 21]),  # 0, 1, 2 with ranks 2, 4, 1: in proportion to 1/2, 1/4, 1
        ("others", 3, [3 / 11, 2 / 11, 6 / 11]),
    ],
)
def test_soft_labels_of_the_other_classes_follow_zipfs_law_by_hand(ranks: str, label: int, expected: list[float]) -> None:
    scores = torch.tensor([[0.3, 0.05, 0.5, 0.15]], dtype=torch.float64)
    made = zipf_labels(scores, torch.tensor([label]), ranks)
    torch.testing.assert_close(made, torch.tensor([expected], dtype=torch.float64))


def test_equal_scores_are_ranked_by_class_number() -> None:
    made = zipf_labels(torch.zeros(1, 4, dtype=torch.float64), torch.tensor([3]), "others")
    torch.testing.assert_close(made, torch.tensor([[6, 3, 2]], dtype=torch.float64) / 11)


def test_scores_are_probabilities_over_the_rest_and_survive_a_certain_student() -> None:
    probabilities = torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64)
    scores = other_class_scores(probabilities.log(), torch.tensor([1]))
    torch.testing.assert_close(scores, probabilities / 0.5)
    certain = other_class_scores(torch.tensor([[500.0, 1.0, 0.0]]), torch.tensor([0]))
    torch.testing.assert_close(certain[:, 1:], torch.tensor([[1.0, 0.0]]).softmax(1))
    assert bool(zipf_labels(certain, torch.tensor([0])).isfinite().all())


def test_the_terms_of_a_step_by_hand() -> None:
    """One sample of class 0; student and weak classifier disagree on the order of classes 1 and 2."""
    student, weak = logs([0.6, 0.3, 0.1]), logs([0.2, 0.1, 0.7])
    labels = torch.tensor([0])
    step = make_step(
        student_logits=student,
        labels=labels,
        student_features={"layer": weak[:, :, None, None].expand(1, 3, 2, 2)},
        modules={"weak_classifier": torch.nn.Identity()},
    )
    terms = SelfKD(target_weight=2.0, others_weight=3.0, weak_weight=4.0).loss(step)
    # Scores of 1: 0.3 / 0.4 + 0.1 / 0.8 = 0.875; of 2: 0.1 / 0.4 + 0.7 / 0.8 = 1.125; of 0: 1.75. Ranks 0, 2, 1.
    others = -(2 / 5 * math.log(0.75) + 3 / 5 * math.log(0.25))
    smoothed = -((0.9 + 0.1 / 3) * math.log(0.2) + 0.1 / 3 * (math.log(0.1) + math.log(0.7)))
    assert float(terms["cross_entropy"]) == pytest.approx(-math.log(0.6))
    assert float(terms["soft_target"]) == pytest.approx(-2 * math.log(0.6))
    assert float(terms["other_classes"]) == pytest.approx(3 * others)
    assert float(terms["weak"]) == pytest.approx(4 * smoothed)


def test_soft_labels_have_no_gradient() -> None:
    student = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    features = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    step = make_step(
        student_logits=student, student_features={"layer": features}, modules={"weak_classifier": torch.nn.Identity()}
    )
    loss = SelfKD().loss(step)["other_classes"]
    loss.backward()
    assert student.grad is not None
    assert features.grad is None


def test_the_weak_classifier_reads_the_last_stage_but_one_and_is_left_out_at_weight_0() -> None:
    student = Architecture(
        name="net", num_classes=3, input_shape=(1, 8, 8), shapes={"a": (4, 8, 8), "b": (6, 4, 4)}, stages=("a", "b")
    )
    assert SelfKD().student_layers(None, student) == ["a"]
    assert SelfKD(student_layer="b").student_layers(None, student) == ["b"]
    assert SelfKD(weak_weight=0).student_layers(None, student) == []
    flat = Architecture(name="mlp", num_classes=3, input_shape=(1, 8, 8), shapes={})
    with pytest.raises(Unsuitable, match="needs two feature maps of student mlp; set student_layer or weak_weight to 0"):
        SelfKD().student_layers(None, flat)


def test_it_needs_no_teacher_and_trains_the_weak_classifier() -> None:
    trial = MethodTrial(SelfKD(), epochs=1)
    assert trial.knowledge() == {}
    trainer = trial.trainer()
    before = trainer._modules["weak_classifier"].get_parameter("weight").clone()
    (entry,) = trainer.fit()
    assert not torch.equal(before, trainer._modules["weak_classifier"].get_parameter("weight"))
    assert entry["weak"] > 0
    plain = MethodTrial(Method(), epochs=1).trainer()
    plain.fit()
    assert {name: w.shape for name, w in plain.student.state_dict().items()} == {
        name: w.shape for name, w in trainer.student.state_dict().items()
    }
