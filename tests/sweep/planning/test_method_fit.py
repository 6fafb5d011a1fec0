"""A trial has a teacher exactly when its method needs one: every method, under every search algorithm."""

from collections.abc import Sequence
from typing import Any

import pytest

from stillhouse import methods
from stillhouse.data.datasets import ImageData, load_dataset
from stillhouse.distill.hyperparameters import make_method
from stillhouse.errors import Problem
from stillhouse.models.architecture import Architecture
from stillhouse.models.blueprint import blueprint
from stillhouse.spec.load import validate
from stillhouse.spec.records import StudentChoice
from stillhouse.spec.schema import SweepSpec
from stillhouse.sweep.planning.method_fit import NeedsTeacherError, fit_method, runnable_draw, settle
from stillhouse.sweep.planning.plan import Plan, make_plan
from stillhouse.sweep.planning.spec_check import survey
from stillhouse.sweep.search.budget import BudgetTracker
from stillhouse.sweep.search.draws import Draw
from stillhouse.sweep.search.trial_queue import start_queue
from stillhouse.tasks import default

UNTAUGHT = {"scratch", "label_smoothing", "mutual_learning", "self_kd"}
"""By their papers: controls without a teacher, students that learn from each other, and one that learns from itself."""
SMALL = (10, (1, 8, 8))


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_dataset("digits")


def spec_for(algorithm: str, **sections: Any) -> SweepSpec:
    """Every known method on one pair of networks and with an optimizer that all of them fit."""
    return validate(
        {
            "name": "families",
            "dataset": {"name": "digits"},
            "training": {"optimizer": "sgd"},
            "teachers": {"big": {"model": "resnet14"}},
            "students": ["resnet8"],
            "search": {"algorithm": algorithm, "trials_per_method": 4, "startup_trials": 2, "max_epochs": 6},
            **sections,
        }
    )


def architecture(model: str) -> Architecture:
    return blueprint(model, {}, *SMALL).architecture


def needs_teacher(name: str, hyperparameters: Any) -> bool:
    """By the method's own hooks."""
    method = make_method(name, hyperparameters)
    return method.calls_teacher or bool(method.knowledge(architecture("resnet14"), architecture("resnet8")))


def planned(plan: Plan) -> list[tuple[str, str | None, bool]]:
    """Method, teacher and whether it needs one: of the first trials and of all that stand for the later ones."""
    first = start_queue(plan.queue({}, BudgetTracker(plan.spec.search.budget)))
    trials = {trial.key: trial for trial in (*first, *plan.trials, *plan.representative_trials)}
    return [(trial.method, trial.teacher, needs_teacher(trial.method, trial.hyperparameters)) for trial in trials.values()]


@pytest.mark.parametrize("algorithm", ["random", "grid", "tpe", "nsga2"])
def test_each_trial_has_a_teacher_exactly_when_its_method_needs_one(data: ImageData, algorithm: str) -> None:
    found = planned(make_plan(spec_for(algorithm), data))
    serving = {name for name in methods.names() if methods.find(name)().serves(default())}
    assert {method for method, _, _ in found} == serving
    assert not {method for method, teacher, needed in found if (teacher == "big") != needed}
    assert {method for method, teacher, _ in found if teacher is None} >= UNTAUGHT
    families = {methods.find(method).card.family for method, teacher, _ in found if teacher}
    assert families == {methods.find(name).card.family for name in serving if needs_teacher(name, {})}


@pytest.mark.parametrize("algorithm", ["random", "grid", "tpe", "nsga2"])
def test_a_method_that_only_calls_the_teacher_keeps_it(data: ImageData, algorithm: str) -> None:
    chosen: dict[str, Any] = {"scratch": {}, "data_free_adversarial": {}}
    found = planned(make_plan(spec_for(algorithm, methods=chosen), data))
    assert {(method, teacher) for method, teacher, _ in found} == {("scratch", None), ("data_free_adversarial", "big")}


@pytest.mark.parametrize("algorithm", ["random", "tpe"])
def test_without_teachers_the_methods_that_need_none_are_left(data: ImageData, algorithm: str) -> None:
    spec = spec_for(algorithm, teachers={}, methods=sorted(UNTAUGHT))
    assert {(method, teacher) for method, teacher, _ in planned(make_plan(spec, data))} == {(name, None) for name in UNTAUGHT}


def draw_of(method: str, teacher: str | None = "big", **hyperparameters: Any) -> Draw:
    return Draw(method, StudentChoice(name="resnet8", model="resnet8"), teacher, hyperparameters)


def describe(network: StudentChoice, teachers: Sequence[str]) -> Architecture:
    return blueprint(network.model, network.options, *SMALL).architecture


def test_a_draw_keeps_its_teacher_only_where_it_is_needed_and_gets_typed_values() -> None:
    settled = settle(draw_of("kd", temperature=4, kd_weight=1), spec_for("tpe"), describe)
    assert settled == draw_of("kd", temperature=4.0, kd_weight=1.0)
    assert isinstance(settled.hyperparameters["temperature"], float)
    assert settle(draw_of("scratch"), spec_for("tpe"), describe) == draw_of("scratch", None)
    assert settle(draw_of("data_free_adversarial"), spec_for("tpe"), describe) == draw_of("data_free_adversarial")


@pytest.mark.parametrize("method", ["kd", "data_free_adversarial"])
def test_a_draw_without_the_teacher_that_its_method_needs_cannot_run(method: str) -> None:
    assert settle(draw_of(method, None), spec_for("tpe"), describe) is None
    with pytest.raises(NeedsTeacherError):
        fit_method(make_method(method, {}), architecture("resnet8"), [])


def test_a_draw_with_an_impossible_value_cannot_run() -> None:
    assert settle(draw_of("kd", temperature=-1.0), spec_for("tpe"), describe) is None


def test_each_teacher_of_a_trial_is_read_for_itself() -> None:
    fit = fit_method(make_method("kd", {}), architecture("resnet8"), [architecture("resnet14"), architecture("lenet")])
    assert len(fit.knowledge) == 2
    assert fit.needs_teacher
    assert runnable_draw(draw_of("kd", "big+small"), fit).teacher == "big+small"


def test_calls_on_generated_inputs_cannot_be_cached() -> None:
    spec = spec_for("random", methods={"data_free_adversarial": {}}, knowledge={"way": "cached"})
    (problem,) = survey(spec).problems
    assert problem == Problem(
        "knowledge.way",
        "must be auto, served or inline for data_free_adversarial, which calls the teacher on inputs that it generates, "
        "got 'cached'",
    )


def test_a_method_that_the_recipe_does_not_suit_is_named_and_never_drawn() -> None:
    spec = spec_for("random", methods={"distillation_oriented": {}, "kd": {}}, training={"optimizer": "adamw"})
    (problem,) = survey(spec).problems
    reason = "needs training.optimizer sgd, whose momentum it splits, got adamw"
    assert problem == Problem(
        "methods.distillation_oriented", f"fits no student: for resnet8 with big it {reason}; remove distillation_oriented"
    )
    assert settle(draw_of("distillation_oriented"), spec, describe) is None
    assert settle(draw_of("distillation_oriented"), spec_for("random"), describe) == draw_of("distillation_oriented")
    assert settle(draw_of("distillation_oriented", momentum_shift=0.2), spec_for("random"), describe) is None
