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


@pytest.fixture
def spec_file(measured_spec: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "measured.yaml"
    path.write_text(yaml.safe_dump(measured_spec))
    return path


def test_the_command_measures_prints_and_starts_nothing(
    spec_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "SECONDS_EACH", 0.02)
    done = CliRunner().invoke(app, ["sweep", str(spec_file), "--home", str(tmp_path / "home"), "--dry-run", "--measure"])
    assert done.exit_code == 0, done.stderr
    assert "measured on 1 CPU threads: 2 of 2 students" in done.stdout
    assert "GPU-hours: " in done.stdout
    assert not (tmp_path / "home" / "sweeps").exists()


def test_measuring_without_a_dry_run_is_refused(spec_file: Path) -> None:
    done = CliRunner().invoke(app, ["sweep", str(spec_file), "--measure"])
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
