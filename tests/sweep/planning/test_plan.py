"""The plan: which trials, in which order, and what is left out and why."""

import json
from collections.abc import Callable

import pytest

from stillhouse import methods
from stillhouse.data.datasets import ImageData
from stillhouse.errors import SpecError
from stillhouse.spec.load import spec_to_dict, validate
from stillhouse.spec.records import Trial
from stillhouse.spec.schema import SweepSpec
from stillhouse.sweep.planning.plan import Plan, make_plan

MakeSpec = Callable[..., SweepSpec]


def keys_of(plan: Plan) -> list[str]:
    return [trial.key for trial in plan.trials]


def test_a_plan_of_the_printed_spec_is_the_plan_of_the_spec(data: ImageData, spec_with: MakeSpec) -> None:
    plan = make_plan(spec_with(), data)
    assert make_plan(validate(spec_to_dict(plan.spec)), data).trials == plan.trials


def test_the_baseline_is_always_there_and_runs_once_for_each_student(data: ImageData, spec_with: MakeSpec) -> None:
    plan = make_plan(spec_with(), data)
    baseline = methods.baseline()
    controls = [trial for trial in plan.trials if trial.method == baseline]
    students = {trial.student.model_dump_json() for trial in plan.trials}
    assert {trial.student.model_dump_json() for trial in controls} == students
    assert len(controls) == len(students) == 3
    assert plan.duplicates[baseline] == 8 - 3
    assert any(note.startswith(f"{baseline}: 5 trials dropped") for note in plan.notes)


def test_a_method_that_asks_nothing_has_no_teacher_and_the_others_have_one(data: ImageData, spec_with: MakeSpec) -> None:
    teachers = {trial.method: trial.teacher for trial in make_plan(spec_with(), data).trials}
    assert teachers == {methods.baseline(): None, "mutual_learning": None, "kd": "big"}


def test_trials_carry_all_hyperparameters_and_the_seed_of_the_search(data: ImageData, spec_with: MakeSpec) -> None:
    plan = make_plan(spec_with("search.seed", 3), data)
    for trial in plan.trials:
        assert set(trial.hyperparameters) == set(methods.find(trial.method).hyperparameters())
        assert (trial.seed, trial.epochs, trial.phase) == (3, 6, "search")


def test_methods_take_turns_in_the_order_of_the_trials(data: ImageData, spec_with: MakeSpec) -> None:
    plan = make_plan(spec_with(), data)
    assert [trial.method for trial in plan.trials[:3]] == [methods.baseline(), "kd", "mutual_learning"]


def test_the_plan_is_plain_data(data: ImageData, spec_with: MakeSpec) -> None:
    plan = make_plan(spec_with(), data)
    document = json.loads(json.dumps(plan.to_dict(), allow_nan=False))
    assert document["planned"] == len(plan.trials)
    assert [Trial.model_validate(trial) for trial in document["trials"]] == list(plan.trials)
    assert document["students"][0]["parameters"] == 64 * 3 + 3 + 3 * 10 + 10


def test_pairs_that_do_not_suit_are_left_out_with_the_reason(data: ImageData, spec_with: MakeSpec) -> None:
    plan = make_plan(spec_with("methods", {"attention_transfer": {}}), data)
    (skipped,) = plan.skipped
    assert (skipped.method, skipped.student, skipped.teacher, skipped.trials) == ("attention_transfer", "small", "big", 4)
    assert "feature maps" in skipped.reason
    assert all(trial.student.name != "small" for trial in plan.trials if trial.method == "attention_transfer")


def test_a_plan_of_a_wrong_spec_is_refused(data: ImageData, spec_with: MakeSpec) -> None:
    with pytest.raises(SpecError, match=r"methods.kd.temperature must be > 0"):
        make_plan(spec_with("methods.kd.temperature", 0), data)


def test_an_adaptive_search_begins_with_the_trials_of_a_random_one(
    data: ImageData, spec_with: MakeSpec, searched: MakeSpec
) -> None:
    random, adaptive = make_plan(spec_with(), data), make_plan(searched(), data)
    assert set(keys_of(adaptive)) <= set(keys_of(random)) | {trial.key for trial in adaptive.representative_trials}
    first = [trial.key for trial in random.trials if trial.method == "kd"][:6]
    assert set(first) <= set(keys_of(adaptive)), "three of each of two students"


def test_every_method_has_its_trials_whatever_the_others_have(data: ImageData, searched: MakeSpec) -> None:
    plan = make_plan(searched(trials_per_method=20), data)
    counts = plan.trials_per_method
    assert counts["kd"] == 20
    assert counts["scratch"] == 1 + 2, "every student there is, and nothing else to search"
    assert len(plan.trials) < plan.num_trials == sum(counts.values())
    (note,) = [note for note in plan.notes if "studies" in note]
    assert note.startswith("tpe searches in 6 studies, one for each method and student")
    document = plan.to_dict()
    assert document["planned"] == plan.num_trials
    assert {"method": "kd", "student": "lenet", "trials": 10} in document["studies"]


def test_extending_an_adaptive_search_keeps_its_trials(data: ImageData, searched: MakeSpec) -> None:
    short, long = make_plan(searched(trials_per_method=8), data), make_plan(searched(trials_per_method=80), data)
    assert [trial.key for trial in short.trials if trial.method == "kd"] == [
        trial.key for trial in long.trials if trial.method == "kd"
    ]


@pytest.mark.parametrize("algorithm", ["random", "tpe"])
def test_no_student_over_a_limit_is_planned(algorithm: str, data: ImageData, searched: MakeSpec) -> None:
    whole = make_plan(searched(algorithm=algorithm), data)
    largest = max(planned.size.parameters for planned in whole.students)
    plan = make_plan(searched(algorithm=algorithm, limits={"parameters": largest - 1, "latency_ms": 1}), data)
    assert max(planned.size.parameters for planned in plan.students) < largest
    assert all(plan.size_of(trial).parameters < largest for trial in plan.trials)
    (note,) = [note for note in plan.notes if "search.limits" in note]
    assert note.endswith(f"parameters = {largest:,} is over the limit of {largest - 1:,}")


def test_the_number_of_trials_that_a_limit_drops_is_said(data: ImageData, spec_with: MakeSpec) -> None:
    whole, plan = make_plan(spec_with(), data), make_plan(spec_with("search.limits", {"parameters": "1k"}), data)
    dropped = len(whole.trials) + sum(whole.duplicates.values()) - len(plan.trials) - sum(plan.duplicates.values())
    assert dropped > 0
    assert any(f"lenet: {dropped} trials dropped by search.limits" in note for note in plan.notes)


def test_limits_that_leave_no_student_are_a_problem(data: ImageData, spec_with: MakeSpec) -> None:
    with pytest.raises(SpecError, match=r"search\.limits must leave a student: macs = .* is over the limit of 1"):
        make_plan(spec_with("search.limits", {"macs": 1}), data)


def test_the_plan_says_what_may_be_spent(data: ImageData, spec_with: MakeSpec) -> None:
    plan = make_plan(spec_with("search.budget", {"hours": 2, "gpu_hours": None, "epochs": 500}), data)
    assert plan.notes[-1] == "search.budget: no trial starts beyond 500 epochs or 2 hours in all"
    assert not any("search.budget" in note for note in make_plan(spec_with(), data).notes)
