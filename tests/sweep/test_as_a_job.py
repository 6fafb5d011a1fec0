"""Sweeps that `ray job submit` sends to a cluster, with the commands of docs/on-a-cluster.md."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.cluster_utils import Cluster as Nodes

import stillhouse
from stillhouse.spec.records import TrialRecord
from stillhouse.sweep.home.sweep_home import SweepHome

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("aiohttp_cors") is None, reason='jobs need pip install "ray[default]"'),
]

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OWN_METHOD = """
from dataclasses import dataclass
from stillhouse.distill.method import Card, Method

@dataclass(frozen=True, kw_only=True)
class Plain(Method):
    card = Card(title="Plain training", arxiv=None, family="control")
"""
OWN_NET = """
from math import prod
from torch import nn

def tiny(num_classes, input_shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(prod(input_shape), num_classes))
"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a cluster's job server; `stillhouse` is on the path of its nodes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        patch.setenv("OMP_NUM_THREADS", "1")
        nodes = Nodes()
        try:
            nodes.add_node(num_cpus=2, include_dashboard=True, dashboard_port=port, dashboard_agent_listen_port=None)
            yield f"http://127.0.0.1:{port}"
        finally:
            nodes.shutdown()


def submit(server: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`ray job submit` from this folder, which goes along."""
    command = [str(Path(sys.executable).with_name("ray")), "job", "submit", "--address", server, "--working-dir", "."]
    return subprocess.run([*command, *arguments], cwd=folder, capture_output=True, text=True, timeout=280, check=False)


def write_spec(folder: Path, **changes: Any) -> None:
    spec = {
        "name": "job",
        "dataset": {"name": "digits", "validation": 80, "options": {"limit": 240}},
        "students": [{"model": "mlp", "hidden": [8]}],
        "methods": ["scratch"],
        "search": {"trials_per_method": 1, "max_epochs": 1},
        # Nobody listens there, which costs a sweep nothing.
        "tracking": {"uri": "http://127.0.0.1:9"},
    }
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec | changes))


def records_of(home: Path) -> Mapping[str, TrialRecord]:
    return {record.trial.method: record for record in SweepHome(home, "job").read_records()}


def test_an_installed_package_runs_a_spec_with_the_methods_and_models_that_lie_beside_it(server: str, tmp_path: Path) -> None:
    folder, home = tmp_path / "work", tmp_path / "home"
    (folder / "methods").mkdir(parents=True)
    (folder / "methods" / "plain.py").write_text(OWN_METHOD)
    (folder / "own_nets.py").write_text(OWN_NET)
    write_spec(folder, students=[{"model": "own_nets:tiny"}], methods=["scratch", "plain"], method_paths=["methods"])
    done = submit(server, folder, "--", "stillhouse", "sweep", "spec.yaml", "--home", str(home))
    assert done.returncode == 0, done.stdout + done.stderr
    records = records_of(home)
    assert {method: record.status for method, record in records.items()} == {"scratch": "finished", "plain": "finished"}
    assert {record.code["version"] for record in records.values()} == {stillhouse.__version__}
    assert "2 trials: 2 finished" in done.stdout, "the driver's words come back"


def test_a_checkout_runs_its_own_code_and_tells_its_commit(server: str, tmp_path: Path) -> None:
    folder, home = tmp_path / "checkout", tmp_path / "home"
    for part in ("platform", "methods", "search_spaces"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    write_spec(folder)
    environment = f'{{"env_vars": {{"PYTHONPATH": "platform", "STILLHOUSE_COMMIT": "{COMMIT}"}}}}'
    run = ["python", "-m", "stillhouse.cli", "sweep", "spec.yaml", "--home", str(home)]
    done = submit(server, folder, "--runtime-env-json", environment, "--", *run)
    assert done.returncode == 0, done.stdout + done.stderr
    (record,) = records_of(home).values()
    assert record.code["commit"] == COMMIT
    assert "runtime_resources" in str(record.code["package_path"]), "the code that came along ran"


def test_a_job_that_cannot_run_says_why_in_one_sentence(server: str, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    write_spec(folder, trial_resources={"cpu": 64})
    done = submit(server, folder, "--", "stillhouse", "sweep", "spec.yaml", "--home", str(tmp_path / "home"))
    assert done.returncode != 0
    assert "error: trial_resources.cpu must be <= 2, which is what the largest node has, got 64" in done.stdout
