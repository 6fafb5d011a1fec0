"""The plan: which trials, under which keys, at what size and cost; and what is confirmed after the search."""

import copy
import importlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse import methods
from stillhouse.data.datasets import ImageData, load_dataset
from stillhouse.errors import SpecError
from stillhouse.knowledge.code import code_version
from stillhouse.models.registry import build_model
from stillhouse.models.weights import save_weights
from stillhouse.spec.load import spec_to_dict, validate
from stillhouse.spec.records import StudentChoice, Trial, TrialRecord
from stillhouse.spec.schema import SweepSpec
from stillhouse.sweep.execution.students import student_key
from stillhouse.sweep.planning.plan import Plan, make_plan

SPEC: dict[str, Any] = {
    "name": "s",
    "dataset": {"name": "digits"},
    "views": {"policy": ["crop"], "count": 4},
    "teachers": {"big": {"model": "lenet", "train": {"epochs": 5}}},
    "students": [{"model": "mlp", "name": "small", "hidden": [3]}, {"model": "lenet", "width": {"choice": [0.5, 1.0]}}],
    "methods": {"kd": {"temperature": {"uniform": [1, 10]}}, "mutual_learning": {}},
    "search": {"trials_per_method": 8, "max_epochs": 6, "confirm_seeds": 2},
}


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_dataset("digits")


def spec_with(path: str = "", value: Any = None) -> SweepSpec:
    """`SPEC` with one dotted key changed."""
    raw = copy.deepcopy(SPEC)
    *parents, last = path.split(".")
    section = raw
    for parent in parents:
        section = section.setdefault(parent, {})
    if path:
        section[last] = value
    return validate(raw)


def keys_of(plan: Plan) -> list[str]:
    return [trial.key for trial in plan.trials]


def test_the_same_spec_gives_the_same_trials_with_the_same_keys(data: ImageData) -> None:
    plan = make_plan(spec_with(), data)
    assert make_plan(spec_with(), data).trials == plan.trials
    assert len(set(keys_of(plan))) == len(plan.trials)
    assert all(len(key) == 16 and set(key) <= set("0123456789abcdef") for key in keys_of(plan))


def test_a_plan_of_the_printed_spec_is_the_plan_of_the_spec(data: ImageData) -> None:
    plan = make_plan(spec_with(), data)
    assert make_plan(validate(spec_to_dict(plan.spec)), data).trials == plan.trials


def test_another_process_with_another_home_makes_the_same_keys(data: ImageData, tmp_path: Path) -> None:
    program = (
        "import json, sys; from stillhouse.spec.load import validate; from stillhouse.sweep.planning.plan import make_plan\n"
        "from stillhouse.data.datasets import load_dataset\n"
        "print([trial.key for trial in make_plan(validate(json.loads(sys.argv[1])), load_dataset('digits')).trials])"
    )
    environment = {**os.environ, "HOME": str(tmp_path), "STILLHOUSE_HOME": str(tmp_path), "PYTHONHASHSEED": "7"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    printed = subprocess.run(
        [sys.executable, "-c", program, json.dumps(SPEC)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert printed.stdout.strip() == str(keys_of(make_plan(spec_with(), data)))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("name", "other"),
        ("teachers", {"renamed": {"model": "lenet", "width": 1, "train": {"epochs": 5}}}),
        ("search.confirm_seeds", 5),
        ("search.scheduler", "asha"),
        ("trial_resources.cpu", 2),
        ("knowledge.way", "inline"),
        ("tracking.uri", "https://me:hush@host"),
        ("objectives", {"validation_accuracy": "max", "macs": "min"}),
    ],
)
def test_what_does_not_decide_a_result_leaves_the_keys_alone(data: ImageData, path: str, value: Any) -> None:
    assert keys_of(make_plan(spec_with(path, value), data)) == keys_of(make_plan(spec_with(), data))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("search.seed", 1),
        ("search.max_epochs", 7),
        ("training.batch_size", 64),
        ("training.learning_rate", 0.1),
        ("views.count", 5),
        ("views.policy", [{"crop": {"padding": 3}}]),
    ],
)
def test_what_decides_every_result_changes_every_key(data: ImageData, path: str, value: Any) -> None:
    assert not set(keys_of(make_plan(spec_with(path, value), data))) & set(keys_of(make_plan(spec_with(), data)))


@pytest.mark.parametrize(
    ("path", "value"),
    [("knowledge.dtype", "float16"), ("teachers.big.train.epochs", 6), ("teachers.big.width", 2.0)],
)
def test_what_decides_only_what_a_teacher_says_changes_the_keys_of_those_that_listen(
    data: ImageData, path: str, value: Any
) -> None:
    before, after = make_plan(spec_with(), data).trials, make_plan(spec_with(path, value), data).trials
    changed = [first.key != second.key for first, second in zip(before, after, strict=True)]
    assert changed == [trial.teacher is not None for trial in before]


def test_another_validation_split_changes_every_key(data: ImageData) -> None:
    other = load_dataset("digits", validation=100)
    assert not set(keys_of(make_plan(spec_with(), other))) & set(keys_of(make_plan(spec_with(), data)))


def test_options_at_their_defaults_do_not_change_a_key(data: ImageData) -> None:
    plain = make_plan(spec_with("students", ["mlp"]), data)
    for width in (1, 1.0):
        assert keys_of(make_plan(spec_with("students", [{"model": "mlp", "width": width}]), data)) == keys_of(plain)


def test_weights_from_a_file_count_by_their_content(data: ImageData, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model("lenet", num_classes=10, input_shape=(1, 8, 8))
    for name in ("a", "b"):
        save_weights(model, tmp_path / name)
    a, b = (
        make_plan(spec_with("teachers", {"big": {"model": "lenet", "weights": str(tmp_path / name)}}), data) for name in "ab"
    )
    assert keys_of(a) == keys_of(b)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    save_weights(model, tmp_path / "b")
    c = make_plan(spec_with("teachers", {"big": {"model": "lenet", "weights": str(tmp_path / "b")}}), data)
    assert keys_of(c) != keys_of(b)


OWN_METHOD = '''
from dataclasses import dataclass
from typing import ClassVar

from stillhouse.distill.method import Card, Method, hyperparameter
from stillhouse.methods._slope import SLOPE


@dataclass(frozen=True, kw_only=True)
class Own(Method):
    """Own."""

    card: ClassVar[Card] = Card(title="Own", equations="none")
    weight: float = hyperparameter(SLOPE, minimum=0, help="a weight")
'''
OWN_STUDENT = """
from torch import nn


def small(*, num_classes, input_shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
"""


def test_the_text_of_ones_own_method_and_student_decides_the_keys_of_their_trials(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "own_methods"
    folder.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    files = {
        "method": (folder / "own_keyed.py", OWN_METHOD),
        "its helper": (folder / "_slope.py", "SLOPE = 0.5\n"),
        "student": (tmp_path / "own_keyed_students.py", OWN_STUDENT),
        "another method": (folder / "own_other.py", OWN_METHOD),
    }
    for path, text in files.values():
        path.write_text(text)
    methods.add_folder(folder)
    spec = {
        "name": "own",
        "dataset": {"name": "digits", "validation": 250},
        "students": [{"model": "mlp"}, {"model": "own_keyed_students:small"}],
        "methods": {"scratch": {}, "own_keyed": {"weight": 1.0}},
        "search": {"trials_per_method": 2},
    }

    def keys() -> dict[tuple[str, str], str]:
        """As a new process makes them, which reads the files."""
        methods.find.cache_clear()
        code_version.cache_clear()
        for name in ("own_keyed_students", *(f"stillhouse.methods.{each}" for each in ("own_keyed", "own_other", "_slope"))):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        plan = make_plan(validate(copy.deepcopy(spec)), data)
        return {(trial.method, trial.student.model): trial.key for trial in plan.trials}

    before = keys()
    own, student = "own_keyed", "own_keyed_students:small"
    assert set(before) == {(method, model) for method in ("scratch", own) for model in ("mlp", student)}
    assert keys() == before
    measured = student_key(StudentChoice(name="own", model=student))
    changes = {
        "method": {(own, "mlp"), (own, student)},
        "its helper": {(own, "mlp"), (own, student)},
        "student": {("scratch", student), (own, student)},
        "another method": set(),
    }
    for name, (path, text) in files.items():
        path.write_text(text.replace("0.5", "0.25").replace("Own.", "My own.").replace("Flatten()", "Flatten(1)"))
        after = keys()
        assert {place for place in before if after[place] != before[place]} == changes[name], name
        # What was measured of the student is known by the same text.
        assert (student_key(StudentChoice(name="own", model=student)) != measured) == (name == "student")
        path.write_text(text)


def test_the_baseline_is_always_there_and_runs_once_for_each_student(data: ImageData) -> None:
    plan = make_plan(spec_with(), data)
    baseline = methods.baseline()
    controls = [trial for trial in plan.trials if trial.method == baseline]
    students = {trial.student.model_dump_json() for trial in plan.trials}
    assert {trial.student.model_dump_json() for trial in controls} == students
    assert len(controls) == len(students) == 3
    assert plan.duplicates[baseline] == 8 - 3
    assert any(note.startswith(f"{baseline}: 5 trials dropped") for note in plan.notes)


def test_a_method_that_asks_nothing_has_no_teacher_and_the_others_have_one(data: ImageData) -> None:
    teachers = {trial.method: trial.teacher for trial in make_plan(spec_with(), data).trials}
    assert teachers == {methods.baseline(): None, "mutual_learning": None, "kd": "big"}


def test_trials_carry_all_hyperparameters_and_the_seed_of_the_search(data: ImageData) -> None:
    plan = make_plan(spec_with("search.seed", 3), data)
    for trial in plan.trials:
        assert set(trial.hyperparameters) == set(methods.find(trial.method).hyperparameters())
        assert (trial.seed, trial.epochs, trial.phase) == (3, 6, "search")


def test_methods_take_turns_in_the_order_of_the_trials(data: ImageData) -> None:
    plan = make_plan(spec_with(), data)
    assert [trial.method for trial in plan.trials[:3]] == [methods.baseline(), "kd", "mutual_learning"]


def test_the_size_of_a_student_is_known_before_training(data: ImageData) -> None:
    plan = make_plan(spec_with(), data)
    trial = next(trial for trial in plan.trials if trial.student.name == "small")
    size = plan.size_of(trial)
    # 64 pixels, 3 hidden units, 10 classes
    assert size.parameters == 64 * 3 + 3 + 3 * 10 + 10
    assert size.macs == 64 * 3 + 3 * 10


def test_the_cost_is_that_of_a_hand_count(data: ImageData) -> None:
    plan = make_plan(spec_with("students", [{"model": "mlp", "name": "small", "hidden": [3]}]), data)
    samples, epochs, views = len(data.train.labels), 6, 4
    counts = Counter(trial.method for trial in plan.trials)
    teacher = plan.teachers[0].size.macs
    assert plan.cost.students == 3 * (64 * 3 + 3 * 10) * samples * epochs * sum(counts.values())
    assert plan.cost.teacher_shared == teacher * samples * views
    assert plan.cost.teacher_inside == teacher * samples * epochs * counts["kd"]
    assert plan.cost.teacher_training == 3 * teacher * samples * 5
    assert plan.cost.samples_forwarded == samples * views
    assert plan.cost.ratio_shared == pytest.approx(1 + plan.cost.teacher_shared / plan.cost.students)


def test_the_plan_is_plain_data(data: ImageData) -> None:
    plan = make_plan(spec_with(), data)
    document = json.loads(json.dumps(plan.to_dict(), allow_nan=False))
    assert document["planned"] == len(plan.trials)
    assert [Trial.model_validate(trial) for trial in document["trials"]] == list(plan.trials)
    assert document["students"][0]["parameters"] == 64 * 3 + 3 + 3 * 10 + 10


def test_pairs_that_do_not_suit_are_left_out_with_the_reason(data: ImageData) -> None:
    plan = make_plan(spec_with("methods", {"attention_transfer": {}}), data)
    (skipped,) = plan.skipped
    assert (skipped.method, skipped.student, skipped.teacher, skipped.trials) == ("attention_transfer", "small", "big", 4)
    assert "feature maps" in skipped.reason
    assert all(trial.student.name != "small" for trial in plan.trials if trial.method == "attention_transfer")


def test_a_plan_of_a_wrong_spec_is_refused(data: ImageData) -> None:
    with pytest.raises(SpecError, match=r"methods.kd.temperature must be > 0"):
        make_plan(spec_with("methods.kd.temperature", 0), data)


def record(trial: Trial, accuracy: float, status: Any = "finished") -> TrialRecord:
    return TrialRecord(trial=trial, status=status, metrics={"validation_accuracy": accuracy})


def test_the_best_trial_of_each_method_and_student_is_run_on_fresh_seeds(data: ImageData) -> None:
    spec = spec_with()
    plan = make_plan(spec, data)
    of_kd = [trial for trial in plan.trials if trial.method == "kd" and trial.student.name == "small"]
    records = [record(trial, accuracy) for trial, accuracy in zip(of_kd, [0.5, 0.9, 0.9, 0.7], strict=True)]
    confirmed = plan.trials_to_confirm(records[::-1])
    # Of two equals, the first of the plan; in whatever order the records come.
    assert [trial.seed for trial in confirmed] == [1, 2]
    assert {json.dumps(trial.hyperparameters) for trial in confirmed} == {json.dumps(of_kd[1].hyperparameters)}
    assert all(trial.phase == "confirm" and trial.teacher == "big" for trial in confirmed)
    assert not {trial.key for trial in confirmed} & set(keys_of(plan))


def test_failed_and_stopped_trials_are_never_confirmed(data: ImageData) -> None:
    spec = spec_with()
    plan = make_plan(spec, data)
    records = [record(plan.trials[0], 0.9, "failed"), record(plan.trials[1], 0.9, "stopped")]
    assert plan.trials_to_confirm(records) == []


def test_the_baseline_is_confirmed_with_the_very_student_of_each_winner(data: ImageData) -> None:
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


def test_nothing_is_confirmed_unless_asked(data: ImageData) -> None:
    spec = spec_with("search.confirm_seeds", 0)
    plan = make_plan(spec, data)
    assert plan.confirm_trials == 0
    assert plan.trials_to_confirm([record(trial, 0.5) for trial in plan.trials]) == []


# Adaptive search and limits


def searched(**search: Any) -> SweepSpec:
    return spec_with("search", {**SPEC["search"], "algorithm": "tpe", "startup_trials": 3, **search})


def test_an_adaptive_search_begins_with_the_trials_of_a_random_one(data: ImageData) -> None:
    random, adaptive = make_plan(spec_with(), data), make_plan(searched(), data)
    assert set(keys_of(adaptive)) <= set(keys_of(random)) | {trial.key for trial in adaptive.representative_trials}
    first = [trial.key for trial in random.trials if trial.method == "kd"][:6]
    assert set(first) <= set(keys_of(adaptive)), "three of each of two students"


def test_every_method_has_its_trials_whatever_the_others_have(data: ImageData) -> None:
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


def test_extending_an_adaptive_search_keeps_its_trials(data: ImageData) -> None:
    short, long = make_plan(searched(trials_per_method=8), data), make_plan(searched(trials_per_method=80), data)
    assert [trial.key for trial in short.trials if trial.method == "kd"] == [
        trial.key for trial in long.trials if trial.method == "kd"
    ]


def test_sizes_of_all_students_that_may_be_chosen_are_known(data: ImageData) -> None:
    plan = make_plan(searched(), data)
    assert plan.search is not None
    for study in plan.search.studies:
        sizes = [next(planned.size for planned in plan.students if planned.student == choice) for choice in study.students]
        assert sizes == sorted(sizes, key=lambda size: size.parameters)


@pytest.mark.parametrize("algorithm", ["random", "tpe"])
def test_no_student_over_a_limit_is_planned(algorithm: str, data: ImageData) -> None:
    whole = make_plan(searched(algorithm=algorithm), data)
    largest = max(planned.size.parameters for planned in whole.students)
    plan = make_plan(searched(algorithm=algorithm, limits={"parameters": largest - 1, "latency_ms": 1}), data)
    assert max(planned.size.parameters for planned in plan.students) < largest
    assert all(plan.size_of(trial).parameters < largest for trial in plan.trials)
    (note,) = [note for note in plan.notes if "search.limits" in note]
    assert note.endswith(f"parameters = {largest:,} is over the limit of {largest - 1:,}")


def test_the_number_of_trials_that_a_limit_drops_is_said(data: ImageData) -> None:
    whole, plan = make_plan(spec_with(), data), make_plan(spec_with("search.limits", {"parameters": "1k"}), data)
    dropped = len(whole.trials) + sum(whole.duplicates.values()) - len(plan.trials) - sum(plan.duplicates.values())
    assert dropped > 0
    assert any(f"lenet: {dropped} trials dropped by search.limits" in note for note in plan.notes)


def test_limits_that_leave_no_student_are_a_problem(data: ImageData) -> None:
    with pytest.raises(SpecError, match=r"search\.limits must leave a student: macs = .* is over the limit of 1"):
        make_plan(spec_with("search.limits", {"macs": 1}), data)


def test_the_control_is_confirmed_with_the_student_that_a_search_chose(data: ImageData) -> None:
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


def test_the_plan_says_what_may_be_spent(data: ImageData) -> None:
    plan = make_plan(spec_with("search.budget", {"hours": 2, "gpu_hours": None, "epochs": 500}), data)
    assert plan.notes[-1] == "search.budget: no trial starts beyond 500 epochs or 2 hours in all"
    assert not any("search.budget" in note for note in make_plan(spec_with(), data).notes)
