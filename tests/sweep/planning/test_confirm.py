"""The confirm phase: winners and their controls on fresh seeds."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from stillhouse import methods
from stillhouse.data.datasets import ImageData
from stillhouse.spec.metric import Metric
from stillhouse.spec.records import Trial, TrialRecord
from stillhouse.spec.schema import SweepSpec
from stillhouse.sweep.planning.knowledge_demand import plan_demand
from stillhouse.sweep.planning.plan import Plan, make_plan

MakeSpec = Callable[..., SweepSpec]


def record(trial: Trial, accuracy: float, status: Any = "finished") -> TrialRecord:
    return TrialRecord(trial=trial, status=status, metrics={"validation_accuracy": accuracy})


def test_the_best_trial_of_each_method_and_student_is_run_on_fresh_seeds(data: ImageData, spec_with: MakeSpec) -> None:
    spec = spec_with()
    plan = make_plan(spec, data)
    of_kd = [trial for trial in plan.trials if trial.method == "kd" and trial.student.name == "small"]
    records = [record(trial, accuracy) for trial, accuracy in zip(of_kd, [0.5, 0.9, 0.9, 0.7], strict=True)]
    confirmed = plan.trials_to_confirm(records[::-1])
    # Of two equals, the first of the plan; in whatever order the records come.
    assert [trial.seed for trial in confirmed] == [1, 2]
    assert {json.dumps(trial.hyperparameters) for trial in confirmed} == {json.dumps(of_kd[1].hyperparameters)}
    assert all(trial.phase == "confirm" and trial.teacher == "big" for trial in confirmed)
    assert not {trial.key for trial in confirmed} & {trial.key for trial in plan.trials}


def test_failed_and_stopped_trials_are_never_confirmed(data: ImageData, spec_with: MakeSpec) -> None:
    spec = spec_with()
    plan = make_plan(spec, data)
    records = [record(plan.trials[0], 0.9, "failed"), record(plan.trials[1], 0.9, "stopped")]
    assert plan.trials_to_confirm(records) == []


def test_the_baseline_is_confirmed_with_the_very_student_of_each_winner(data: ImageData, spec_with: MakeSpec) -> None:
    spec = spec_with()
    plan = make_plan(spec, data)
    baseline = methods.baseline()
    # The baseline is best at width 1, kd at width 0.5.
    best = {baseline: 1.0, "kd": 0.5, "mutual_learning": 1.0}
    records = [record(trial, 0.9 if trial.student.options.get("width") == best[trial.method] else 0.5) for trial in plan.trials]
    confirmed = plan.trials_to_confirm(records)
    of_lenet = [trial for trial in confirmed if trial.student.name == "lenet"]
    controls = {(trial.student.options["width"], trial.seed) for trial in of_lenet if trial.method == baseline}
    assert controls == {(0.5, 1), (0.5, 2), (1.0, 1), (1.0, 2)}
    assert {trial.student.options["width"] for trial in of_lenet if trial.method == "kd"} == {0.5}
    assert len({trial.key for trial in confirmed}) == len(confirmed) <= plan.confirm_trials


def test_nothing_is_confirmed_unless_requested(data: ImageData, spec_with: MakeSpec) -> None:
    spec = spec_with("search.confirm_seeds", 0)
    plan = make_plan(spec, data)
    assert plan.confirm_trials == 0
    assert plan.trials_to_confirm([record(trial, 0.5) for trial in plan.trials]) == []


def test_the_control_is_confirmed_with_the_student_that_a_search_chose(data: ImageData, searched: MakeSpec) -> None:
    plan = make_plan(searched(trials_per_method=4), data)
    control = next(trial for trial in plan.trials if trial.method == "scratch" and trial.student.name == "lenet")
    other = next(
        planned.student for planned in plan.students if planned.student.model == "lenet" and planned.student != control.student
    )
    winner = next(trial for trial in plan.trials if trial.method == "kd" and trial.student.name == "lenet")
    winner = winner.model_copy(update={"key": "w", "student": other})
    records = [TrialRecord(trial=trial, status="finished", metrics={"validation_accuracy": 0.5}) for trial in (control, winner)]
    confirmed = plan.trials_to_confirm(records, [control, winner])
    assert ("scratch", other) in [(trial.method, trial.student) for trial in confirmed]


def test_where_lower_is_better_the_lowest_wins(data: ImageData, spec_with: MakeSpec) -> None:
    """The same ledger once with a value to maximise and once mirrored, with its negative to minimise."""
    spec = spec_with()
    plan = make_plan(spec, data)
    error = Metric(name="error", direction="min", label="error")
    values = {trial.key: (number * 7 % 11) / 11 for number, trial in enumerate(plan.trials)}
    highest = [record(trial, values[trial.key]) for trial in plan.trials]
    lowest = [
        TrialRecord(trial=trial, status="finished", metrics={"validation_error": -values[trial.key]}) for trial in plan.trials
    ]
    confirmed = replace(plan, metric=error).trials_to_confirm(lowest)
    assert confirmed == plan.trials_to_confirm(highest) != []


def controls_of(plan: Plan, records: list[TrialRecord]) -> list[Trial]:
    return [trial for trial in plan.trials_to_confirm(records) if trial.is_control]


def test_each_winner_with_a_teacher_runs_again_with_an_untrained_one_and_nothing_else_changed(
    data: ImageData, spec_with: MakeSpec
) -> None:
    plan = make_plan(spec_with("controls", ["scratch", "random_teacher"]), data)
    records = [record(trial, 0.5 + 0.01 * place) for place, trial in enumerate(plan.trials)]
    confirmed = [trial for trial in plan.trials_to_confirm(records) if trial.phase == "confirm" and trial.teacher]
    controls = controls_of(plan, records)
    assert {trial.teacher for trial in controls} == {"big.untrained"}
    assert {trial.method for trial in controls} == {"kd"}, "mutual_learning and the baseline use no teacher"

    def settings(trial: Trial) -> tuple[Any, ...]:
        return trial.method, trial.student.variant, json.dumps(trial.hyperparameters), trial.seed, trial.epochs

    assert sorted(map(settings, controls)) == sorted(map(settings, confirmed)), "on the seeds that are reported"
    assert not {trial.key for trial in controls} & {trial.key for trial in (*confirmed, *plan.trials)}
    assert len(controls) == plan.control_trials == 4
    assert plan.to_dict()["control_trials"] == 4


def test_without_a_confirm_phase_the_control_has_the_seed_of_the_search(data: ImageData, spec_with: MakeSpec) -> None:
    spec = spec_with("controls", ["scratch", "random_teacher"])
    plan = make_plan(spec.model_copy(update={"search": spec.search.model_copy(update={"confirm_seeds": 0, "seed": 3})}), data)
    records = [record(trial, 0.5) for trial in plan.trials]
    assert [trial.seed for trial in controls_of(plan, records)] == [3, 3]
    assert plan.control_trials == len(plan.trials_to_confirm(records)) == 2


def test_a_control_is_never_a_winner(data: ImageData, spec_with: MakeSpec) -> None:
    plan = make_plan(spec_with("controls", ["scratch", "random_teacher"]), data)
    records = [record(trial, 0.5) for trial in plan.trials]
    before = plan.trials_to_confirm(records)
    records += [record(trial, 0.99) for trial in before if trial.is_control]
    assert plan.trials_to_confirm(records) == before


def test_the_control_changes_no_other_trial(data: ImageData, spec_with: MakeSpec) -> None:
    plain, controlled = make_plan(spec_with(), data), make_plan(spec_with("controls", ["scratch", "random_teacher"]), data)
    records = [record(trial, 0.5) for trial in plain.trials]
    assert plain.trials == controlled.trials
    assert plain.trials_to_confirm(records) == [
        trial for trial in controlled.trials_to_confirm(records) if not trial.is_control
    ]
    assert plain.control_trials == 0


def test_an_untrained_teacher_is_another_one_by_its_seed_and_not_by_its_training(data: ImageData, spec_with: MakeSpec) -> None:
    def key(**train: Any) -> str:
        spec = spec_with("controls", ["scratch", "random_teacher"])
        big = spec.teachers["big"]
        changed = big.model_copy(update={"train": big.train.model_copy(update=train)})
        plan = make_plan(spec.model_copy(update={"teachers": {"big": changed}}), data)
        return controls_of(plan, [record(plan.trials[1], 0.5)])[0].key

    assert key(epochs=5) == key(epochs=50)
    assert key(seed=0) != key(seed=1)


def test_the_plan_names_what_the_control_costs_and_who_has_none(data: ImageData, spec_with: MakeSpec) -> None:
    plan = make_plan(spec_with("controls", ["random_teacher"]), data)
    (note,) = [note for note in plan.notes if note.startswith("random_teacher")]
    assert "up to 4 trials follow" in note
    assert note.endswith("none for scratch, mutual_learning, which use no teacher")
    demand = plan_demand(plan, data)
    assert demand["big"].keys() == demand["big.untrained"].keys() != set()
