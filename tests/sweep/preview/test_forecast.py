"""What is known of a plan before it starts: the measured hours, and where it would run."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from stillhouse.cli import app
from stillhouse.sweep.cluster.placement import Placement
from stillhouse.sweep.preview import speed
from stillhouse.sweep.preview.forecast import Forecast

SPEC: dict[str, Any] = {
    "name": "measured",
    "dataset": {"name": "digits", "validation": 100, "options": {"limit": 500}},
    "views": {"policy": [{"crop": {"padding": 1}}], "count": 2},
    "teachers": {"big": {"model": "lenet", "train": {"epochs": 5}, "resources": {"gpu": 1}}},
    "students": [{"model": "mlp", "hidden": [16]}, {"model": "mlp", "hidden": [64], "name": "wide"}],
    "methods": {"scratch": {}, "kd": {"temperature": 4.0}},
    "search": {"trials_per_method": 4, "max_epochs": 3},
    "trial_resources": {"cpu": 1, "gpu": 0.25},
}


def write_spec(tmp_path: Path) -> None:
    (tmp_path / "measured.yaml").write_text(yaml.safe_dump(SPEC))


def test_the_command_measures_prints_and_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "SECONDS_EACH", 0.02)
    write_spec(tmp_path)
    done = CliRunner().invoke(
        app, ["sweep", str(tmp_path / "measured.yaml"), "--home", str(tmp_path / "home"), "--dry-run", "--measure"]
    )
    assert done.exit_code == 0, done.stderr
    assert "measured on 1 CPU threads: 2 of 2 students" in done.stdout
    assert "GPU-hours: " in done.stdout
    assert not (tmp_path / "home" / "sweeps").exists()


def test_measuring_without_a_dry_run_is_refused(tmp_path: Path) -> None:
    write_spec(tmp_path)
    done = CliRunner().invoke(app, ["sweep", str(tmp_path / "measured.yaml"), "--measure"])
    assert done.exit_code == 2
    assert "--measure needs --dry-run" in done.stderr


def test_a_plan_that_cannot_be_placed_is_impossible_unless_an_autoscaler_may_add_a_node() -> None:
    placement = Placement(
        trials=0, added={}, problems=("trial_resources.gpu must be <= 0, which is what the largest node has",)
    )
    sure = Forecast(estimate=None, address="auto", nodes=3, placement=placement)
    assert sure.impossible
    assert sure.lines() == [f"the cluster at auto (3 nodes now) has no node for it: {placement.problems[0]}"]
    unsure = Forecast(estimate=None, address="auto", nodes=3, placement=placement, undecided=True)
    assert not unsure.impossible
    assert "its autoscaler may add one" in unsure.lines()[0]
