"""A command that only lists or reads something does not wait for libraries that it does not need."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SPEC = """
name: quick
dataset: {name: digits}
teachers: {big: {model: resnet8}}
students: [mlp]
methods: {kd: {}}
search: {trials_per_method: 1, max_epochs: 1}
"""
_RUN = """
import json, sys
from stillhouse.cli import main
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""
HEAVY = {"torch", "ray", "mlflow", "pandas", "scipy", "sklearn", "optuna", "torchvision", "matplotlib", "plotly"}
OF_A_RUN = {"ray", "mlflow", "torchvision", "matplotlib", "plotly"}


def imported(tmp_path: Path, *arguments: str) -> set[str]:
    """The modules that a command has imported when it ends."""
    (tmp_path / "spec.yaml").write_text(SPEC)
    environment = {**os.environ, "STILLHOUSE_HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", _RUN, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize("command", [["--help"], ["ls"], ["spec", "search"], ["teachers", "ls"]], ids=" ".join)
def test_a_list_needs_no_torch(tmp_path: Path, command: list[str]) -> None:
    assert not imported(tmp_path, *command) & HEAVY


def test_methods_that_were_listed_before_need_no_torch(tmp_path: Path) -> None:
    imported(tmp_path, "methods")
    assert not imported(tmp_path, "methods") & HEAVY


def test_a_spec_is_printed_without_building_a_model(tmp_path: Path) -> None:
    found = imported(tmp_path, "sweep", "spec.yaml", "--print-config")
    assert not found & (OF_A_RUN | {"torch._dynamo", "scipy", "sklearn"})


def test_a_plan_is_shown_without_the_libraries_of_its_run(tmp_path: Path) -> None:
    assert not imported(tmp_path, "sweep", "spec.yaml", "--dry-run") & OF_A_RUN
