"""`sweep` before anything runs, and how results are printed. Runs of real sweeps: tests/sweep/test_end_to_end.py."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from stillhouse.cli import app
from stillhouse.cli.sweeps import _print_results
from stillhouse.spec.metric import ACCURACY, Metric
from stillhouse.spec.records import StudentChoice, SweepFacts, Trial, TrialRecord
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.sweep.results.results import Results

SPEC: dict[str, Any] = {
    "name": "small",
    "dataset": {"name": "digits", "validation": 100},
    "teachers": {"big": {"model": "lenet", "train": {"epochs": 2}}},
    "students": [{"model": "mlp", "hidden": [8]}],
    "methods": {"kd": {"temperature": 4.0}},
    "search": {"trials_per_method": 2, "max_epochs": 3},
}
ERROR = Metric(name="mean_absolute_error", direction="min", label="mean absolute error")


def sweep(folder: Path, *arguments: str, **changes: Any) -> Result:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(SPEC | changes))
    return CliRunner().invoke(app, ["sweep", str(path), "--home", str(folder / "home"), *arguments])


def test_print_config_prints_the_spec_with_its_defaults_and_overrides(tmp_path: Path) -> None:
    done = sweep(tmp_path, "--print-config", "--set", "search.max_epochs=5")
    assert done.exit_code == 0, done.output
    printed = yaml.safe_load(done.stdout)
    assert (printed["search"]["max_epochs"], printed["search"]["algorithm"]) == (5, "random")
    assert json.loads(sweep(tmp_path, "--print-config", "--json").stdout)["name"] == "small"


def test_a_wrong_spec_is_exit_code_2_with_every_problem(tmp_path: Path) -> None:
    done = sweep(tmp_path, students=[{"model": "mlp", "hiden": [8]}], search={"trials_per_method": 0})
    assert done.exit_code == 2
    assert done.stderr.startswith("error: the spec has 2 problems:")
    assert "students[0].hiden" in done.stderr
    assert "search.trials_per_method" in done.stderr


def test_a_spec_that_does_not_exist_is_exit_code_2(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["sweep", str(tmp_path / "none.yaml")])
    assert done.exit_code == 2
    assert "none.yaml" in done.stderr


def test_measure_without_dry_run_is_wrong_usage(tmp_path: Path) -> None:
    done = sweep(tmp_path, "--measure")
    assert done.exit_code == 2
    assert done.stderr == "error: --measure needs --dry-run: it estimates a plan and starts nothing\n"


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path: Path) -> None:
    """Two trials of `kd`, whose other hyper-parameter is searched, and one of the control, which has none."""
    done = sweep(tmp_path, "--dry-run")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("small: 3 trials\n")
    assert not (tmp_path / "home" / "sweeps").exists()
    document = json.loads(sweep(tmp_path, "--dry-run", "--json").stdout)
    assert {"sweep", "planned", "trials", "students", "teachers", "skipped", "duplicates", "cost", "notes", "knowledge"} <= set(
        document
    )
    assert {trial["method"] for trial in document["trials"]} == {"kd", "scratch"}


@pytest.mark.parametrize("command", [["resume"], ["extend", "--trials", "3"], ["retry"], ["status"], ["stop"], ["rm", "--yes"]])
def test_an_unknown_sweep_is_wrong_usage_for_every_command(tmp_path: Path, command: list[str]) -> None:
    name, *options = command
    done = CliRunner().invoke(app, [name, "nothing", *options, "--home", str(tmp_path)])
    assert done.exit_code == 2
    assert "no sweep 'nothing'" in done.stderr


def results_of(home: Path, metric: Metric, values: Mapping[str, float]) -> Results:
    """Results of finished trials of one student, with one value of the metric each."""
    sweep_home = SweepHome(home, "made")
    sweep_home.folder.mkdir(parents=True)
    sweep_home.write_spec({"name": "made"})
    objectives = {metric.column("validation"): metric.direction, "parameters": "min"}
    facts = {"name": "made", "spec": {}, "dataset": {"name": "digits", "fingerprint": "f"}, "baseline": "scratch", "planned": 3}
    sweep_home.write_facts(SweepFacts.model_validate({**facts, "metric": metric, "objectives": objectives}))
    for key, value in values.items():
        settings = {"temperature": value}
        trial = Trial(key=key, student=StudentChoice(name="mlp", model="mlp"), method="kd", epochs=1, hyperparameters=settings)
        reached = {metric.column("validation"): value, metric.column("test"): value}
        sizes = {"parameters": 1000.0, "size_bytes": 4000.0, "macs": 1000.0, "latency_ms": 0.25}
        sweep_home.ledger.write(TrialRecord(trial=trial, status="finished", metrics={**sizes, **reached}))
    failed = Trial(key="f", student=StudentChoice(name="mlp", model="mlp"), method="kd", epochs=1)
    sweep_home.ledger.write(TrialRecord(trial=failed, status="failed", reason="the loss is not finite"))
    return Results.read(home, "made")


@pytest.mark.parametrize(("metric", "order"), [(ACCURACY, ["b", "c", "a"]), (ERROR, ["a", "c", "b"])])
def test_results_list_the_best_trial_of_a_size_first_in_the_direction_of_the_metric(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], metric: Metric, order: list[str]
) -> None:
    _print_results(results_of(tmp_path, metric, {"a": 0.25, "b": 0.75, "c": 0.5}))
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines[1:4]]
    assert [row[0] for row in rows] == order
    assert [row for row in rows if row[-1] == "pareto"] == rows[:1]
    assert "failed: f kd mlp: the loss is not finite" in lines
    assert any(line.startswith("4 trials: 3 finished, 1 failed") for line in lines)
