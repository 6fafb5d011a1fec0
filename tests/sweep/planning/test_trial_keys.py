"""Trial keys: which settings of a spec change them, and which do not."""

import copy
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse import methods
from stillhouse.data.datasets import ImageData, load_dataset
from stillhouse.knowledge.code_version import code_version
from stillhouse.models.registry import build_model
from stillhouse.models.weights import save_weights
from stillhouse.spec.load import validate
from stillhouse.spec.records import StudentChoice
from stillhouse.spec.schema import SweepSpec
from stillhouse.sweep.execution.students import student_key
from stillhouse.sweep.planning.plan import Plan, make_plan

MakeSpec = Callable[..., SweepSpec]


def keys_of(plan: Plan) -> list[str]:
    return [trial.key for trial in plan.trials]


def test_the_same_spec_gives_the_same_trials_with_the_same_keys(data: ImageData, spec_with: MakeSpec) -> None:
    plan = make_plan(spec_with(), data)
    assert make_plan(spec_with(), data).trials == plan.trials
    assert len(set(keys_of(plan))) == len(plan.trials)
    assert all(len(key) == 16 and set(key) <= set("0123456789abcdef") for key in keys_of(plan))


def test_another_process_with_another_home_makes_the_same_keys(
    data: ImageData, tmp_path: Path, raw_spec: dict[str, Any], spec_with: MakeSpec
) -> None:
    program = (
        "import json, sys; from stillhouse.spec.load import validate; from stillhouse.sweep.planning.plan import make_plan\n"
        "from stillhouse.data.datasets import load_dataset\n"
        "print([trial.key for trial in make_plan(validate(json.loads(sys.argv[1])), load_dataset('digits')).trials])"
    )
    environment = {**os.environ, "HOME": str(tmp_path), "STILLHOUSE_HOME": str(tmp_path), "PYTHONHASHSEED": "7"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    printed = subprocess.run(
        [sys.executable, "-c", program, json.dumps(raw_spec)],
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
def test_what_does_not_decide_a_result_leaves_the_keys_alone(
    data: ImageData, path: str, value: Any, spec_with: MakeSpec
) -> None:
    assert keys_of(make_plan(spec_with(path, value), data)) == keys_of(make_plan(spec_with(), data))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("search.seed", 1),
        ("search.max_epochs", 7),
        ("training.batch_size", 32),
        ("training.learning_rate", 0.1),
        ("views.count", 5),
        ("views.policy", [{"crop": {"padding": 3}}]),
    ],
)
def test_what_decides_every_result_changes_every_key(data: ImageData, path: str, value: Any, spec_with: MakeSpec) -> None:
    assert not set(keys_of(make_plan(spec_with(path, value), data))) & set(keys_of(make_plan(spec_with(), data)))


@pytest.mark.parametrize(
    ("path", "value"),
    [("knowledge.dtype", "float16"), ("teachers.big.train.epochs", 6), ("teachers.big.width", 2.0)],
)
def test_what_decides_only_what_a_teacher_says_changes_the_keys_of_those_that_listen(
    data: ImageData, path: str, value: Any, spec_with: MakeSpec
) -> None:
    before, after = make_plan(spec_with(), data).trials, make_plan(spec_with(path, value), data).trials
    changed = [first.key != second.key for first, second in zip(before, after, strict=True)]
    assert changed == [trial.teacher is not None for trial in before]


def test_another_validation_split_changes_every_key(data: ImageData, spec_with: MakeSpec) -> None:
    other = load_dataset("digits", validation=100)
    assert not set(keys_of(make_plan(spec_with(), other))) & set(keys_of(make_plan(spec_with(), data)))


def test_options_at_their_defaults_do_not_change_a_key(data: ImageData, spec_with: MakeSpec) -> None:
    plain = make_plan(spec_with("students", ["mlp"]), data)
    for width in (1, 1.0):
        assert keys_of(make_plan(spec_with("students", [{"model": "mlp", "width": width}]), data)) == keys_of(plain)


def test_weights_from_a_file_count_by_their_content(data: ImageData, tmp_path: Path, spec_with: MakeSpec) -> None:
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
        "methods": {"scratch": {}, "own_keyed": {"weight": 1.0}, "combine": {"methods": ["own_keyed"]}},
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
    assert set(before) == {(method, model) for method in ("scratch", own, "combine") for model in ("mlp", student)}
    assert keys() == before
    measured = student_key(StudentChoice(name="own", model=student))
    changes = {
        "method": {(method, model) for method in (own, "combine") for model in ("mlp", student)},
        "its helper": {(method, model) for method in (own, "combine") for model in ("mlp", student)},
        "student": {(method, student) for method in ("scratch", own, "combine")},
        "another method": set(),
    }
    for name, (path, text) in files.items():
        path.write_text(text.replace("0.5", "0.25").replace("Own.", "My own.").replace("Flatten()", "Flatten(1)"))
        after = keys()
        assert {place for place in before if after[place] != before[place]} == changes[name], name
        # What was measured of the student is known by the same text.
        assert (student_key(StudentChoice(name="own", model=student)) != measured) == (name == "student")
        path.write_text(text)


def test_weights_of_a_student_count_by_their_content_and_use(data: ImageData, tmp_path: Path, spec_with: MakeSpec) -> None:
    torch.manual_seed(0)
    model = build_model("lenet", num_classes=10, input_shape=(1, 8, 8))
    for name in ("a", "b"):
        save_weights(model, tmp_path / name)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    save_weights(model, tmp_path / "c")

    def keys(name: str, **more: Any) -> list[str]:
        student = {"model": "lenet", "weights": str(tmp_path / name), **more}
        return keys_of(make_plan(spec_with("students", [student]), data))

    plain = keys_of(make_plan(spec_with("students", ["lenet"]), data))
    assert keys("a") == keys("b")
    assert len({tuple(each) for each in (plain, keys("a"), keys("c"), keys("a", head="new"))}) == 4
