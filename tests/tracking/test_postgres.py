"""Tracking on a real PostgreSQL, started by the test."""

import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stillhouse.errors import InfrastructureError
from stillhouse.spec.records import SweepFacts, TrialRecord
from stillhouse.tracking import Tracker, locate, sync

RecordMaker = Callable[..., TrialRecord]
FactsMaker = Callable[..., SweepFacts]
RunReader = Callable[..., list[Any]]

_PASSWORD = "open-sesame"


def _program(name: str) -> str | None:
    """PATH, or where Debian puts the programs of its package `postgresql`."""
    found = shutil.which(name) or next(iter(sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)), None)
    return str(found) if found else None


def _account() -> str | None:
    """PostgreSQL does not run as root: the account to run it under, None for our own."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in known), None)


def _missing() -> str | None:
    for name in ("initdb", "pg_ctl", "postgres"):
        if _program(name) is None:
            return f"PostgreSQL's {name} is not installed (apt-get install postgresql)"
    if importlib.util.find_spec("psycopg2") is None:
        return "psycopg2 is not installed (pip install psycopg2-binary)"
    return None


pytestmark = [pytest.mark.slow, pytest.mark.skipif(_missing() is not None, reason=str(_missing()))]


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """The address of an empty database, with its password."""
    account = _account()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="stillhouse-postgres-"))
    (folder / "password").write_text(_PASSWORD)
    if account:
        for path in (folder, folder / "password"):
            shutil.chown(path, account)

    def run(program: str, *arguments: str) -> None:
        command = [_program(program) or program, "-D", str(folder / "data"), *arguments]
        subprocess.run(command, check=True, user=account, cwd=folder, stdout=subprocess.DEVNULL, timeout=120)

    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    run("initdb", "-U", "me", "--auth=scram-sha-256", f"--pwfile={folder / 'password'}")
    run("pg_ctl", "-w", "-l", str(folder / "log"), "-o", options, "start")
    yield f"postgresql://me:{_PASSWORD}@127.0.0.1:{port}/postgres"
    run("pg_ctl", "-w", "-m", "immediate", "stop")
    shutil.rmtree(folder)


def test_two_sweeps_write_to_one_cold_database_at_the_same_time(
    postgres: str,
    tmp_path: Path,
    make_record: RecordMaker,
    make_facts: FactsMaker,
    runs_in: RunReader,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = ("left", "right")
    trackers = [Tracker(postgres, home=tmp_path, experiment="tests") for _ in names]
    for tracker, name in zip(trackers, names, strict=True):
        tracker.start_sweep(make_facts(name))
        for number in range(3):
            tracker.log_trial(make_record(number))
    for tracker, name in zip(trackers, names, strict=True):
        assert tracker.finish(make_facts(name), {}, timeout_s=120)
        assert tracker.uri.startswith("postgresql://***@127.0.0.1:")
        tracker.close()
    location = locate(postgres, tmp_path)
    runs = runs_in(location)
    again = sync(postgres, tmp_path, "tests", make_facts("left"), [make_record(number) for number in range(3)], {})
    assert sorted(run.data.tags["sweep"] for run in runs) == ["left"] * 3 + ["right"] * 3
    assert (again.created, again.skipped) == (0, 3)
    assert (tmp_path / "mlartifacts").is_dir()
    assert _PASSWORD not in str([run.to_dictionary() for run in runs + runs_in(location, "sweep")])
    assert _PASSWORD not in capsys.readouterr().err


def test_a_wrong_password_is_said_at_once_and_not_repeated(postgres: str, tmp_path: Path, make_facts: FactsMaker) -> None:
    wrong = postgres.replace(_PASSWORD, "hush-hush")
    with pytest.raises(InfrastructureError, match="password authentication failed") as caught:
        sync(wrong, tmp_path, "tests", make_facts(), [], {})
    assert "hush-hush" not in str(caught.value)
