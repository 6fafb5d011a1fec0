"""Trial keys and teacher keys are the ones that version 0.1.0 gave: a home of that version is continued, never trained again.

`recorded_keys.json` was recorded with version 0.1.0, commit b8eeec3, before any later change of the code. Each of its cases is
a spec with the keys of its trials and teachers, in their order. `confirmed` are the trials of the confirm phase when the search
trial at position i has the validation accuracy ((7 i) mod 11) / 11. A key that differs from its recorded value means that
finished trials of existing homes would run again: mend the code, not the file.

Trials of a shipped method that was revised since (`Method.revision`) must have other keys than the recorded ones, since their
results differ from those of 0.1.0.
"""

import base64
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from stillhouse import methods
from stillhouse.data.datasets import ImageData, load_dataset
from stillhouse.spec.load import validate_stored
from stillhouse.spec.records import Trial, TrialRecord
from stillhouse.spec.schema import SweepSpec
from stillhouse.spec.training import Training
from stillhouse.sweep.planning.plan import make_plan
from stillhouse.sweep.planning.trial_keys import make_views
from stillhouse.teachers.definition import TeacherDefinition

RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("recorded_keys.json").read_text())
CASES: list[dict[str, Any]] = RECORDED["cases"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder of the recorded specs: a teacher's weights, a user-defined method and a user-defined student."""
    for name, content in RECORDED["files"].items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(base64.b64decode(content))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(methods, "__path__", list(methods.__path__))
    yield tmp_path
    methods.find.cache_clear()


def data_of(spec: SweepSpec) -> ImageData:
    wanted = spec.dataset
    return load_dataset(wanted.name, validation=wanted.validation, size=wanted.size, options=wanted.options)


def line_of(trial: Trial) -> str:
    return f"{trial.key} {trial.method} {trial.student.name} {trial.teacher or '-'}"


def check(trials: Sequence[Trial], lines: Sequence[str], recorded: Sequence[str]) -> None:
    """Each trial's line, which begins with its key, is the recorded one; the key is another if a method was revised."""
    for trial, made, expected in zip(trials, lines, recorded, strict=True):
        assert made.split()[1:] == expected.split()[1:]
        parts = trial.hyperparameters["methods"] if trial.method == "combine" else ()
        revised = any(methods.find(name).revision > 1 for name in (trial.method, *parts))
        assert (made.split()[0] == expected.split()[0]) != revised, made


def with_accuracies(trials: Sequence[Trial]) -> list[TrialRecord]:
    return [
        TrialRecord(trial=trial, status="finished", metrics={"validation_accuracy": (7 * place % 11) / 11})
        for place, trial in enumerate(trials)
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["name"]))
def test_trials_have_the_keys_that_were_recorded(case: dict[str, Any], folder: Path) -> None:
    spec = validate_stored(case["spec"])
    data = data_of(spec)
    plan = make_plan(spec, data)
    check(plan.trials, [line_of(trial) for trial in plan.trials], case["trials"])
    confirmed = plan.trials_to_confirm(with_accuracies(plan.trials)) if spec.search.confirm_seeds else []
    check(confirmed, [f"{line_of(trial)} {trial.seed}" for trial in confirmed], case.get("confirmed", []))


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["name"]))
def test_teachers_have_the_keys_that_were_recorded(case: dict[str, Any], folder: Path) -> None:
    spec = validate_stored(case["spec"])
    data = data_of(spec)
    found = {}
    for name, teacher in spec.teachers.items():
        definition = TeacherDefinition(
            name=name,
            model=teacher.model,
            options=teacher.options,
            weights=teacher.weights,
            training=Training.model_validate(teacher.train.model_dump(exclude={"epochs", "seed"})),
            epochs=teacher.train.epochs,
            seed=teacher.train.seed,
            num_classes=data.num_classes,
            input_shape=data.input_shape,
        )
        found[name] = definition.key(data, make_views(spec, data))
    assert found == case["teachers"]


def test_the_recorded_cases_cover_the_35_methods_of_the_first_release_and_every_way_to_choose_trials() -> None:
    shipped = {name for name in methods.names() if methods.find(name).__module__.startswith(methods.__name__)}
    named = {line.split()[1] for case in CASES for line in case["trials"]}
    assert len(shipped & named) == 35
    assert sum(methods.find(name).revision == 1 for name in shipped) > len(shipped) / 2
    assert {case["spec"].get("search", {}).get("algorithm", "random") for case in CASES} == {"random", "grid", "tpe", "nsga2"}
    assert sum(len(case["trials"]) for case in CASES) > 500
