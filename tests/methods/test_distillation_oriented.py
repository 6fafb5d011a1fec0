from typing import Any

import pytest
import torch

from stillhouse.distill.method import MethodError
from stillhouse.methods.decoupled import Decoupled
from stillhouse.methods.distillation_oriented import DOT
from stillhouse.methods.kd import KD
from stillhouse.spec.training import Training
from stillhouse.testing import CHECKS, MethodTrial, make_step


class Recorder:
    """An update that only notes what is minimised."""

    def __init__(self) -> None:
        self.plain: list[float] = []
        self.separate: list[dict[str, float]] = []
        self.shifts: list[dict[str, float]] = []

    def minimise(self, loss: torch.Tensor, *groups: str) -> None:
        self.plain.append(float(loss.detach()))

    def minimise_separately(self, losses: Any, momentum_shifts: Any) -> None:
        self.separate.append({name: float(loss.detach()) for name, loss in losses.items()})
        self.shifts.append(dict(momentum_shifts))


def step_of(method: DOT) -> tuple[Recorder, dict[str, torch.Tensor]]:
    """What one step minimises, and the terms that it logs."""
    torch.manual_seed(0)
    step = make_step(student_logits=torch.randn(4, 10), labels=torch.arange(4), teacher={"logits": torch.randn(4, 10)})
    recorder = Recorder()
    return recorder, method.step(step, recorder)


def test_labels_and_teacher_are_minimised_with_opposite_shifts() -> None:
    recorder, terms = step_of(DOT(momentum_shift=0.05, method="refined_logits", settings=("refined_logits.warmup_fraction=0",)))
    (losses,) = recorder.separate
    assert losses["task"] == pytest.approx(float(terms["cross_entropy"]))
    assert losses["distillation"] == pytest.approx(float(terms["confidence"] + terms["correlation"]))
    assert recorder.shifts == [{"task": -0.05, "distillation": 0.05}]
    assert recorder.plain == []


@pytest.mark.parametrize(("setting", "term"), [("kd_weight=0", "cross_entropy"), ('variant="soft_only"', "kd")])
def test_a_loss_of_only_one_kind_takes_a_plain_step(setting: str, term: str) -> None:
    recorder, terms = step_of(DOT(settings=(f"kd.{setting}",)))
    assert list(terms) == [term]
    assert recorder.plain == pytest.approx([float(terms[term])])
    assert recorder.separate == []


def test_without_a_shift_it_trains_the_student_of_the_method_itself() -> None:
    plain, ours = (MethodTrial(method, epochs=2).trainer() for method in (KD(), DOT(momentum_shift=0.0)))
    plain.fit()
    ours.fit()
    for name, expected in plain.student.state_dict().items():
        torch.testing.assert_close(ours.student.state_dict()[name], expected, rtol=1e-3, atol=1e-5)


def test_a_shift_changes_the_student() -> None:
    plain, ours = (MethodTrial(DOT(momentum_shift=shift), epochs=3).trainer() for shift in (0.0, 0.075))
    plain.fit()
    ours.fit()
    moved = (ours.student.state_dict()["classifier.bias"] - plain.student.state_dict()["classifier.bias"]).abs().max()
    assert float(moved) > 3e-4  # 7e-4 was measured; rounding alone gives 1e-7


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        ({"optimizer": "adamw"}, "needs training.optimizer sgd, whose momentum it splits, got adamw"),
        ({"momentum": 0.05}, "of at least 0.075 and below 0.925 with momentum_shift 0.075, got 0.05"),
        ({"momentum": 0.95}, "of at least 0.075 and below 0.925 with momentum_shift 0.075, got 0.95"),
        ({"mixed_precision": "float16"}, "needs training.mixed_precision off or bfloat16, got float16"),
    ],
)
def test_recipes_whose_momentum_cannot_be_split_are_named(recipe: dict[str, Any], reason: str) -> None:
    assert reason in (DOT().recipe_problem(Training(**recipe)) or "")


def test_sgd_with_the_usual_momentum_suits() -> None:
    assert DOT().recipe_problem(Training()) is None
    assert KD().recipe_problem(Training(optimizer="adamw")) is None


def test_a_staged_method_and_a_sum_of_methods_can_be_trained() -> None:
    assert DOT(method="decoupled").inner == Decoupled()
    sums = DOT(method="combine", settings=('combine.methods=["kd","fitnets"]',))
    assert DOT.other_methods({"method": "combine", "settings": sums.settings}) == ["combine", "kd", "fitnets"]
    for check in ("losses_and_gradients_are_finite", "a_resumed_training_ends_with_the_same_weights"):
        CHECKS[check](MethodTrial(sums))


def test_a_method_with_its_own_step_is_rejected() -> None:
    with pytest.raises(MethodError, match="cannot change 'mutual_learning': it changes more than the loss"):
        DOT(method="mutual_learning")
