import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from stillhouse.distill.method import MethodError
from stillhouse.knowledge.kinds import logits
from stillhouse.methods.ensemble import Ensemble, label_loss, labels_of, mean_labels, soft_labels, stream_teachers
from stillhouse.models.architecture import Architecture
from stillhouse.sweep.planning.spec_check import check
from stillhouse.sweep.search.draws import draw_trials
from stillhouse.testing import ReferenceCase, make_step

Open = Callable[[str], ReferenceCase]
NAME = "multiteacher-fukuda-formula"
NET = Architecture(name="net", num_classes=10, input_shape=(1, 8, 8), shapes={})


def teachers_of(case: ReferenceCase) -> dict[str, torch.Tensor]:
    return {f"{number}/logits": case[f"in.t_logits{number}"] for number in case.numbers("in.t_logits")}


def test_the_weighted_mean_equals_the_formula(open_case: Open) -> None:
    case = open_case(NAME)
    labels = soft_labels(torch.stack(list(teachers_of(case).values())), case.number("T"))
    case.check(mean_labels(labels, case["hp.weights"]), "aux.avg_target")
    method = Ensemble(variant="weighted_mean", weights=tuple(case["hp.weights"].tolist()))
    loss = method.loss(make_step(student_logits=case["in.s_logits"], teacher=teachers_of(case)))["soft_cross_entropy"]
    case.check(loss)
    case.check_gradients(loss, "s_logits")


@pytest.mark.parametrize("number", [0, 1, 2])
def test_one_teacher_for_a_batch_equals_the_formula(open_case: Open, number: int) -> None:
    case = open_case(NAME)
    weights = tuple(float(number == other) for other in case.numbers("in.t_logits"))
    method = Ensemble(variant="drawn", weights=weights)
    loss = method.loss(make_step(student_logits=case["in.s_logits"], teacher=teachers_of(case)))["soft_cross_entropy"]
    case.check(loss, f"out.loss_switch{number}")


def test_the_streams_equal_the_formula_over_as_many_epochs_as_teachers(open_case: Open) -> None:
    case = open_case(NAME)
    teachers = teachers_of(case)
    steps = [make_step(student_logits=case["in.s_logits"], teacher=teachers, epoch=epoch) for epoch in range(len(teachers))]
    losses = torch.stack([Ensemble(variant="streams").loss(step)["soft_cross_entropy"] for step in steps])
    case.check(losses.mean(), "out.loss_streams_mean")
    assert len(set(losses.tolist())) == len(teachers)


@pytest.mark.parametrize(("num_views", "num_teachers"), [(4, 2), (2, 4), (6, 4), (3, 2), (1, 3), (8, 8), (5, 1)])
def test_in_streams_each_view_of_a_sample_has_each_teacher_equally_often(num_views: int, num_teachers: int) -> None:
    indices = torch.arange(5)
    epochs = num_teachers * math.lcm(num_views, num_teachers)
    teachers = torch.stack([stream_teachers(indices, epoch, num_views, num_teachers) for epoch in range(epochs)])
    for sample in indices.tolist():
        # Each teacher once before the first one comes again.
        for start in range(0, epochs, num_teachers):
            assert sorted(teachers[start : start + num_teachers, sample].tolist()) == list(range(num_teachers))
        for view in range(num_views):
            counts = torch.bincount(teachers[view::num_views, sample], minlength=num_teachers)
            assert counts.tolist() == num_teachers * [epochs // num_views // num_teachers]


def test_the_default_draws_one_teacher_for_each_batch() -> None:
    assert Ensemble().variant == "drawn"


def test_each_sample_has_its_own_teacher() -> None:
    labels = torch.arange(2 * 3 * 4.0).reshape(2, 3, 4)
    expected = torch.stack([labels[1, 0], labels[0, 1], labels[1, 2]])
    assert torch.equal(labels_of(labels, torch.tensor([1, 0, 1])), expected)


def test_for_equal_outputs_the_loss_is_the_entropy_and_has_no_gradient() -> None:
    student = torch.randn(4, 10, dtype=torch.float64, requires_grad=True)
    labels = student.detach().softmax(1)
    loss = label_loss(student, labels)
    torch.testing.assert_close(loss.detach(), -(labels * labels.log()).sum(1).mean())
    (gradient,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))


def test_teachers_are_drawn_with_their_weights_as_probabilities() -> None:
    teachers = {"a/logits": torch.tensor([[9.0, 0.0]]), "b/logits": torch.tensor([[0.0, 9.0]])}
    method = Ensemble(variant="drawn", weights=(3.0, 1.0))
    student = torch.tensor([[4.0, 0.0]])
    losses = [
        float(method.loss(make_step(student_logits=student, teacher=teachers, seed=seed))["soft_cross_entropy"])
        for seed in range(1000)
    ]
    assert sum(loss < 1 for loss in losses) == pytest.approx(750, abs=60)


def test_with_equal_weights_the_order_of_the_teachers_does_not_matter() -> None:
    a, b, student = (torch.randn(4, 10, dtype=torch.float64) for _ in range(3))
    first, second = (
        Ensemble(variant="weighted_mean").loss(make_step(student_logits=student, teacher=teachers))["soft_cross_entropy"]
        for teachers in ({"a/logits": a, "b/logits": b}, {"b/logits": b, "a/logits": a})
    )
    torch.testing.assert_close(first, second)


def test_the_labels_have_the_remaining_weight() -> None:
    student, teacher = torch.randn(4, 10), {"logits": torch.randn(4, 10)}
    terms = Ensemble(kd_weight=0.75).loss(make_step(student_logits=student, teacher=teacher))
    torch.testing.assert_close(terms["cross_entropy"], 0.25 * F.cross_entropy(student, torch.zeros(4, dtype=torch.int64)))
    torch.testing.assert_close(terms["soft_cross_entropy"], 0.75 * label_loss(student, teacher["logits"].softmax(1)))


def test_a_weight_of_0_needs_nothing() -> None:
    assert Ensemble().knowledge(NET, NET) == {"logits": logits()}
    assert Ensemble(kd_weight=0.0).knowledge(NET, NET) == {}
    assert list(Ensemble(kd_weight=0.0).loss(make_step(student_logits=torch.randn(4, 10)))) == ["cross_entropy"]


def test_a_wrong_number_of_weights_is_rejected() -> None:
    step = make_step(student_logits=torch.randn(4, 10), teacher={"a/logits": torch.randn(4, 10)})
    with pytest.raises(MethodError, match="one entry for each of the 1 teachers, got 2"):
        Ensemble(weights=(0.5, 0.5)).loss(step)


@pytest.mark.parametrize("weights", [(-1.0, 2.0), (0.0, 0.0), (float("nan"), 1.0)])
def test_negative_and_zero_weights_are_rejected(weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="weights must be >= 0 and not all 0"):
        Ensemble(weights=weights)


def test_weights_are_rejected_in_streams() -> None:
    with pytest.raises(ValueError, match="must be left out with variant='streams'"):
        Ensemble(variant="streams", weights=(0.5, 0.5))


def test_a_trial_has_all_teachers_of_the_sweep() -> None:
    spec = check(
        {
            "name": "s",
            "dataset": {"name": "digits"},
            "teachers": {"big": {"model": "resnet8"}, "other": {"model": "lenet"}},
            "students": ["mlp"],
            "methods": {"ensemble": {}},
            "search": {"trials_per_method": 2},
        }
    )
    assert {draw.teacher for draw in draw_trials(spec) if draw.method == "ensemble"} == {"big+other"}
