"""The studies of an adaptive search: their shares of the trials, their first draws, and what they may choose from."""

from typing import Any

import pytest

from stillhouse.data.datasets import ImageData, load_dataset
from stillhouse.spec.load import validate
from stillhouse.spec.schema import SearchBudget
from stillhouse.sweep.planning.plan import Plan, make_plan
from stillhouse.sweep.search.adaptive import AdaptiveSearch, plan_studies
from stillhouse.sweep.search.budget import BudgetTracker
from stillhouse.sweep.search.draws import Draw
from stillhouse.sweep.search.trial_queue import start_queue

SPEC: dict[str, Any] = {
    "name": "adaptive",
    "dataset": {"name": "digits"},
    "teachers": {"big": {"model": "lenet"}},
    "students": [{"model": "mlp", "hidden": {"choice": [[4], [8], [16]]}}, {"model": "lenet", "name": "net"}],
    "methods": {"kd": {"temperature": {"uniform": [1, 10]}, "kd_weight": 0.5}, "scratch": {"label_smoothing": 0.0}},
    "search": {"algorithm": "tpe", "trials_per_method": 11, "startup_trials": 3, "max_epochs": 2},
}


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_dataset("digits")


def planned(data: ImageData, **search: Any) -> tuple[Plan, AdaptiveSearch]:
    plan = make_plan(validate({**SPEC, "search": {**SPEC["search"], **search}}), data)
    assert plan.search is not None
    return plan, plan.search


def test_the_trials_of_a_method_are_shared_among_its_students(data: ImageData) -> None:
    """Eleven trials for two students; the control has one setting, so its studies list all points there are."""
    _, search = planned(data)
    shares = {(study.method, study.label): study.trials for study in search.studies}
    assert shares == {("kd", "mlp"): 6, ("kd", "net"): 5, ("scratch", "mlp"): 3, ("scratch", "net"): 1}
    assert search.num_trials == 15


def test_students_are_ordered_by_size_and_those_over_the_limit_are_left_out(data: ImageData) -> None:
    plan, search = planned(data)
    widths = [student.options["hidden"][0] for student in search.studies[0].students]
    assert widths == [4, 8, 16]
    largest = max(planned.size.parameters for planned in plan.students if planned.student.options.get("hidden") == [8])
    _, limited = planned(data, limits={"parameters": largest})
    of_mlp = next(study for study in limited.studies if (study.method, study.label) == ("kd", "mlp"))
    assert [student.options["hidden"][0] for student in of_mlp.students] == [4, 8]
    assert all(draw.student in of_mlp.students for draw in (*of_mlp.fixed, *of_mlp.reserve))


def test_only_trials_of_the_taught_method_keep_the_teacher_that_the_study_proposes(data: ImageData) -> None:
    _, search = planned(data)
    assert {study.method: study.teachers for study in search.studies} == {"kd": ("big",), "scratch": ("big",)}
    trials = start_queue(search.queue({}, BudgetTracker(SearchBudget())))
    assert {(trial.method, trial.teacher) for trial in trials} == {("kd", "big"), ("scratch", None)}


def test_refused_trials_do_not_start(data: ImageData) -> None:
    _, search = planned(data)
    queue = search.queue({}, BudgetTracker(SearchBudget()), refuse=lambda trial: trial.student.name == "net")
    assert {trial.student.name for trial in start_queue(queue)} == {"mlp"}


def test_a_method_that_fits_no_student_has_no_study(data: ImageData) -> None:
    plan, search = planned(data)
    suited = [Draw(study.method, study.students[0], study.teachers[0], {}) for study in search.studies if study.method == "kd"]
    studies = plan_studies(plan.spec, suited, allowed=lambda _student: True, size_of=lambda _student: 1.0)
    assert {study.method for study in studies} == {"kd"}
