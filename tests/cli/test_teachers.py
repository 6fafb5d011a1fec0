"""Commands about teachers that need no cluster: what they refuse, and how they print a running teacher."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from stillhouse.cli import app

RUNNING: dict[str, Any] = {
    "actor": "teacher-0",
    "name": "big",
    "status": "serving",
    "device": "cuda:0",
    "node": "abcdef0123456789",
    "leases": [{"sweep": "mine", "host": "here", "pid": 7}],
}
IDLE: dict[str, Any] = {"actor": "teacher-1", "leases": []}


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A cluster with one teacher in use and one idle; returns the actors that were stopped."""
    stopped: list[str] = []

    @contextmanager
    def connected(_address: str) -> Iterator[None]:
        yield

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("stillhouse.sweep.cluster.connection.connected", connected)
    monkeypatch.setattr("stillhouse.teachers.actor_registry.running_teachers", lambda: [RUNNING, IDLE])
    monkeypatch.setattr("stillhouse.teachers.actor_registry.end_teachers", stopped.extend)
    return stopped


def test_running_teachers_are_listed_with_the_sweeps_that_use_them(ended: list[str], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["teachers", "ls", "--home", str(tmp_path), "--address", "auto"])
    assert done.stdout.splitlines()[1:] == [
        "running teacher-0: serving, on cuda:0 of node abcdef012345; used by sweep 'mine' (here, process 7)",
        "running teacher-1: starting; not in use",
    ]
    document = json.loads(
        CliRunner().invoke(app, ["teachers", "ls", "--home", str(tmp_path), "--address", "auto", "--json"]).stdout
    )
    assert document == {"kept": [], "running": [RUNNING, IDLE]}


def test_stop_leaves_teachers_that_a_sweep_is_using(ended: list[str]) -> None:
    done = CliRunner().invoke(app, ["teachers", "stop", "--address", "auto"])
    assert done.exit_code == 0
    assert ended == ["teacher-1"]
    assert done.stdout.splitlines() == [
        "stopped teacher-1: starting; not in use",
        "not stopped teacher-0: serving, on cuda:0 of node abcdef012345; used by sweep 'mine' (here, process 7); "
        "--force stops it",
    ]


def test_stop_with_force_ends_teachers_in_use_too(ended: list[str]) -> None:
    done = CliRunner().invoke(app, ["teachers", "stop", "big", "--force", "--address", "auto", "--json"])
    assert ended == ["teacher-0"]
    assert json.loads(done.stdout) == {"ended": [RUNNING], "in_use": []}


def test_stop_without_a_cluster_is_wrong_usage(ended: list[str]) -> None:
    done = CliRunner().invoke(app, ["teachers", "stop"])
    assert (done.exit_code, ended) == (2, [])
    assert "name the cluster with --address" in done.stderr


def test_stop_of_an_unknown_teacher_names_the_list_of_running_ones(ended: list[str]) -> None:
    done = CliRunner().invoke(app, ["teachers", "stop", "nobody", "--address", "auto"])
    assert (done.exit_code, ended) == (2, [])
    assert "no teacher 'nobody' runs at auto; list running teachers with: stillhouse teachers ls --address auto" in done.stderr


def test_verify_of_an_unknown_sweep_is_wrong_usage(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["teachers", "verify", "nothing", "--home", str(tmp_path)])
    assert done.exit_code == 2
    assert "no sweep 'nothing'" in done.stderr


def test_pruning_an_empty_home_removes_nothing(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["teachers", "prune", "--home", str(tmp_path)])
    assert done.stdout.strip() == "removed 0 views, 0 bytes; kept 0 views, 0 bytes"
