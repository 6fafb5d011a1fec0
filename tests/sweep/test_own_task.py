"""The page docs/your-own-task.md as it is written: its files are taken out of it, planned, checked and swept."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from stillhouse.errors import SpecError
from stillhouse.sweep.home.ledger import Ledger
from stillhouse.sweep.planning.spec_check import check

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "your-own-task.md").read_text()
FILES = dict(re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", PAGE, re.DOTALL))
SMALL = [
    *("dataset.options.count=400", "dataset.validation=100", "teachers.big.train.epochs=1"),
    *("search.max_epochs=2", "search.trials_per_method=2", "search.confirm_seeds=1"),
    "tracking.uri=http://127.0.0.1:9",  # nobody listens there, which costs a sweep nothing
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the page's files."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def run(folder: Path, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Python in the folder; user-defined modules must not stay in this process."""
    path = os.pathsep.join([str(folder), str(ROOT / "platform")])
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def sweep(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    settings = [word for setting in SMALL for word in ("--set", setting)]
    return run(folder, "-m", "stillhouse.cli", "sweep", "angles.yaml", "--home", str(folder / "home"), *settings, *arguments)


def planned(folder: Path) -> dict[str, Any]:
    done = sweep(folder, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    plan: dict[str, Any] = json.loads(done.stdout)
    return plan


def test_the_page_has_the_files_that_it_names() -> None:
    assert set(FILES) == {"angles.py", "my_methods/angle_kd.py", "angles.yaml", "check_angles.py"}
    assert yaml.safe_load(FILES["angles.yaml"])["task"] == "angles:Angles"


def test_the_sweep_is_planned_with_every_method_of_the_page(folder: Path) -> None:
    plan = planned(folder)
    assert {trial["method"] for trial in plan["trials"]} == {"scratch", "attention_transfer", "angle_kd"}
    assert plan["skipped"] == []


def test_an_edited_task_makes_new_trials_and_equal_text_does_not(folder: Path) -> None:
    keys = [trial["key"] for trial in planned(folder)["trials"]]
    assert [trial["key"] for trial in planned(folder)["trials"]] == keys
    text = FILES["angles.py"].replace("errors.square().mean()", "errors.abs().mean()")
    assert text != FILES["angles.py"]
    (folder / "angles.py").write_text(text)
    assert not {trial["key"] for trial in planned(folder)["trials"]} & set(keys)


def test_a_method_that_does_not_serve_the_task_is_refused_with_those_that_do(folder: Path) -> None:
    spec = yaml.safe_load(FILES["angles.yaml"])
    (folder / "angles.yaml").write_text(yaml.safe_dump(spec | {"methods": {"kd": {}}}))
    done = sweep(folder, "--dry-run")
    assert done.returncode == 2
    said = " ".join(done.stderr.split())
    assert re.search(r"methods\.kd does not serve task angles:Angles; these do: angle_kd, attention_transfer, .*scratch", said)


def test_the_data_set_can_declare_the_task(folder: Path) -> None:
    """As the page says: the plan is the same with the task in either place."""
    keys = {trial["key"] for trial in planned(folder)["trials"]}
    (folder / "angles.py").write_text(FILES["angles.py"] + '\n\nload.task = "angles:Angles"\n')
    spec = yaml.safe_load(FILES["angles.yaml"])
    del spec["task"]
    (folder / "angles.yaml").write_text(yaml.safe_dump(spec))
    assert {trial["key"] for trial in planned(folder)["trials"]} == keys


def test_views_that_mix_samples_are_refused(folder: Path) -> None:
    spec = yaml.safe_load(FILES["angles.yaml"])
    (folder / "angles.yaml").write_text(yaml.safe_dump(spec | {"views": {"policy": ["mixup"], "count": 2}}))
    done = sweep(folder, "--dry-run")
    assert done.returncode == 2
    assert "views.policy must not mix samples: task angles:Angles cannot mix targets" in " ".join(done.stderr.split())


def test_the_accuracy_is_no_objective_of_the_task(folder: Path) -> None:
    spec = yaml.safe_load(FILES["angles.yaml"])
    objectives = {"validation_accuracy": "max", "macs": "min"}
    (folder / "angles.yaml").write_text(yaml.safe_dump(spec | {"objectives": objectives}))
    done = sweep(folder, "--dry-run")
    assert done.returncode == 2
    assert "objectives.validation_accuracy is not an objective" in " ".join(done.stderr.split())


def test_a_task_that_is_not_there_is_a_problem_of_its_key() -> None:
    spec = {"name": "x", "task": "nowhere:Task", "dataset": {"name": "digits"}, "students": ["mlp"], "methods": ["scratch"]}
    with pytest.raises(SpecError, match="task nowhere:Task cannot be imported"):
        check(spec)


def test_the_check_of_the_page_passes(folder: Path) -> None:
    done = run(folder, "check_angles.py")
    assert done.returncode == 0, done.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_the_sweep_of_the_page_runs_and_is_judged_by_its_error(folder: Path) -> None:
    done = sweep(folder, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["trials"]["failed"] == 0
    (place,) = (folder / "home" / "sweeps").iterdir()
    ledger = Ledger(place / "ledger")
    records = [ledger.read(key) for key in ledger.keys()]  # noqa: SIM118  # a ledger is no mapping
    assert records
    for record in records:
        assert record is not None
        assert record.status == "finished", record.reason
        assert record.metrics["test_error"] > 0
        assert not [name for name in record.metrics if "accuracy" in name]
