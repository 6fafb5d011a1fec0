"""Tracking on a real PostgreSQL, started by the test."""

import importlib.util
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
from torch import nn

from stillhouse.errors import InfrastructureError
from stillhouse.models.checkpoint_files import read_checkpoint
from stillhouse.models.weights import state_hash
from stillhouse.spec.load import spec_to_dict, validate
from stillhouse.spec.records import SweepFacts, TrialRecord
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.tracking import (
    ModelAlias,
    Tracker,
    TrainedStudent,
    fetch_weights,
    locate,
    register_student,
    store_students,
    sync,
)
from stillhouse.tracking.server import log_file, start_server, stop_server, wait_until_healthy

RecordMaker = Callable[..., TrialRecord]
FactsMaker = Callable[..., SweepFacts]
RunReader = Callable[..., list[Any]]

_PASSWORD = "open-sesame"
# A process that does what the command does and says how it ended.
_COMMAND = "import sys; from stillhouse.cli import main; sys.exit(main())"


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


@pytest.fixture
def database(postgres: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """An empty database of the test's own, in which MLflow has made no table yet."""
    import sqlalchemy

    name = f"of_test_{zlib.crc32(request.node.name.encode())}"
    engine = sqlalchemy.create_engine(locate(postgres, tmp_path).uri, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return f"{postgres.rpartition('/')[0]}/{name}"


def _keep_sweep(home: Path, uri: str, facts: SweepFacts, records: list[TrialRecord]) -> None:
    """A finished sweep as it lies on disk when its store was down all the time."""
    place = SweepHome(home, facts.name)
    spec = validate(
        {
            "name": facts.name,
            "dataset": {"name": "digits"},
            "students": ["mlp"],
            "methods": {"scratch": {}},
            "tracking": {"uri": uri, "experiment": "tests"},
        }
    )
    place.write_spec(spec_to_dict(spec, secrets=True))
    place.write_facts(facts.model_copy(update={"spec": spec_to_dict(spec), "objectives": spec.objectives}))
    for record in records:
        place.ledger.write(record)


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


def test_two_processes_with_homes_of_their_own_write_to_one_cold_database_at_the_same_time(
    database: str, tmp_path: Path, make_record: RecordMaker, make_facts: FactsMaker, runs_in: RunReader
) -> None:
    names = ("left", "right")
    for name in names:
        _keep_sweep(tmp_path / name, database, make_facts(name), [make_record(number) for number in range(5)])

    def start(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", _COMMAND, "sync", name, "--home", str(tmp_path / name), "--json"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    for process in [start(name) for name in names]:
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        assert json.loads(out)["created"] == 5
        assert _PASSWORD not in out + err
    runs = runs_in(locate(database, tmp_path / "left"))
    assert sorted(run.data.tags["sweep"] for run in runs) == ["left"] * 5 + ["right"] * 5
    assert len(runs_in(locate(database, tmp_path / "left"), "sweep")) == 2


def test_students_are_stored_and_registered_through_a_server_on_postgresql(
    database: str, tmp_path: Path, make_record: RecordMaker, make_facts: FactsMaker, free_port: int
) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    weights = tmp_path / "student.safetensors"
    safetensors.torch.save_model(model, str(weights))
    record = make_record(weights=weights.name, weights_hash=state_hash(model.state_dict()))
    images = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 1, 2, 2)
    student = TrainedStudent(model=model, example=images, files={"student.safetensors": weights})
    location = locate(database, tmp_path / "server")
    server = start_server(location, free_port)
    uri = f"http://127.0.0.1:{free_port}"
    where: dict[str, Any] = {"home": tmp_path / "home", "experiment": "tests", "sweep": "tiny"}
    try:
        wait_until_healthy(server, free_port, log_file(location))
        assert sync(uri, tmp_path / "home", "tests", make_facts(), [record], {}).failed == 0
        counts = [store_students(uri, **where, records=[record], load=lambda _: student) for _ in range(2)]
        assert [(each.stored, each.skipped, each.reasons) for each in counts] == [(1, 0, ()), (0, 1, ())]
        done = register_student(ModelAlias("digits", "pareto"), uri, **where, record=record, student=student)
        assert (done.version, done.store) == ("1", uri)
        fetched = fetch_weights("models:/digits@pareto", uri, home=tmp_path / "home")
    finally:
        stop_server(server)
    assert state_hash(read_checkpoint(fetched)) == record.weights_hash
