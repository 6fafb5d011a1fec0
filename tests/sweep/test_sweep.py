"""The public face of a sweep: where its spec, its data and its plan come from, and how a run ends early."""

import time
from pathlib import Path
from typing import Any

import pytest

from stillhouse.errors import Interrupted, UsageError
from stillhouse.spec.load import spec_to_dict, validate
from stillhouse.spec.metric import ACCURACY
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.sweep.planning.spec_check import check
from stillhouse.sweep.sweep import Sweep

SPEC: dict[str, Any] = {
    "name": "face",
    "dataset": {"name": "digits", "validation": 80, "options": {"limit": 240}},
    "students": ["mlp"],
    "methods": {"scratch": {"label_smoothing": {"uniform": [0, 0.3]}}},
    "search": {"trials_per_method": 2, "max_epochs": 1},
}


def stored(home: Path) -> SweepHome:
    """The sweep as an earlier run left it."""
    sweep_home = SweepHome(home, "face")
    with sweep_home.locked():
        sweep_home.write_spec(spec_to_dict(check(SPEC), secrets=True))
    return sweep_home


def test_the_plan_and_the_data_are_made_once_and_leave_the_spec_alone(tmp_path: Path) -> None:
    spec = validate(SPEC)
    sweep = Sweep(spec, home=tmp_path)
    assert sweep.plan() is sweep.plan()
    assert sweep.data() is sweep.data()
    assert sweep.spec == spec
    assert len(sweep.plan().trials) == 2
    assert sweep.metric == ACCURACY


def test_a_yaml_file_and_overrides_make_a_sweep(tmp_path: Path) -> None:
    path = tmp_path / "face.yaml"
    path.write_text("name: face\ndataset: {name: digits}\nstudents: [mlp]\nmethods: [scratch]\n")
    sweep = Sweep.from_yaml(path, ["search.trials_per_method=3"], home=tmp_path / "home")
    assert sweep.spec.search.trials_per_method == 3
    assert sweep.sweep_home.folder == tmp_path / "home" / "sweeps" / "face"


def test_a_sweep_is_found_again_by_its_name(tmp_path: Path) -> None:
    stored(tmp_path)
    assert Sweep.named("face", home=tmp_path).spec == check(SPEC)
    with pytest.raises(UsageError, match=r"no sweep 'fase' under .*; did you mean 'face'"):
        Sweep.named("fase", home=tmp_path)


def test_more_trials_begin_with_the_trials_it_has(tmp_path: Path) -> None:
    stored(tmp_path)
    before = [trial.key for trial in Sweep.named("face", home=tmp_path).plan().trials]
    after = [trial.key for trial in Sweep.extended("face", 5, home=tmp_path).plan().trials]
    assert after[:2] == before
    assert len(after) == 5
    with pytest.raises(UsageError, match="--trials must be >= 2"):
        Sweep.extended("face", 1, home=tmp_path)


def test_a_fork_has_another_name_and_the_same_trials(tmp_path: Path) -> None:
    stored(tmp_path)
    fork = Sweep.forked(check(SPEC), "other", home=tmp_path)
    assert fork.spec.name == "other"
    assert fork.plan().trials == Sweep.named("face", home=tmp_path).plan().trials
    with pytest.raises(UsageError, match="--fork must be another name than that of the sweep, got 'face'"):
        Sweep.forked(check(SPEC), "face", home=tmp_path)


def test_teachers_can_be_trained_only_where_there_are_some(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the spec has no teachers; name one under teachers"):
        Sweep(check(SPEC), home=tmp_path).train_teachers()


def test_where_nothing_is_sealed_there_is_nothing_to_verify(tmp_path: Path) -> None:
    assert Sweep(check(SPEC), home=tmp_path).verify() == {"compared": 0, "differences": []}


def test_a_request_to_end_that_comes_before_the_first_trial_is_heeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = Sweep(check(SPEC), home=tmp_path)
    monkeypatch.setattr(sweep.sweep_home, "write_spec", lambda *_spec, **_options: sweep.sweep_home.stop_request.touch())
    monkeypatch.setattr("stillhouse.sweep.run.run_sweep", lambda *_arguments, **_options: time.sleep(60))
    with pytest.raises(Interrupted):
        sweep.run()
