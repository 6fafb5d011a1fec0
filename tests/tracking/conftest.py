"""Records to write, an embedded store that is ready, and real servers."""

import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stillhouse.spec.records import StudentChoice, SweepFacts, TeacherFacts, Trial, TrialRecord
from stillhouse.tracking.locations import Location, locate
from stillhouse.tracking.server import log_file, start_server, stop_server, wait_until_healthy
from stillhouse.tracking.store import open_client, settings

RecordMaker = Callable[..., TrialRecord]
FactsMaker = Callable[..., SweepFacts]


@pytest.fixture
def make_record() -> RecordMaker:
    def make(number: int = 0, *, epochs: int = 3, status: str = "finished", **changes: Any) -> TrialRecord:
        trial = Trial(
            key=f"{number:08x}cafe",
            student=StudentChoice(name="small", model="mlp", options={"width": 0.5}),
            method="kd",
            hyperparameters={"temperature": 4.0, "kd_weight": 0.9},
            teacher="big",
            seed=number,
            epochs=epochs,
        )
        fields: dict[str, Any] = {
            "status": status,
            "epochs_run": epochs,
            "metrics": {
                "validation_accuracy": 0.5,
                **({"test_accuracy": 0.75} if status == "finished" else {}),
                "parameters": 1000 + number,
                "size_bytes": 4096,
                "macs": 2000,
                "latency_ms": 0.25,
            },
            "curve": [
                {"epoch": epoch, "stage": "distil", "train_loss": 1 / epoch, "validation_accuracy": epoch / 10}
                for epoch in range(1, epochs + 1)
            ],
            "teaching": {"way": "cached", "samples_gathered": 100},
            "started": "2026-03-01T12:00:00+00:00",
            "finished": "2026-03-01T12:01:00+00:00",
        }
        return TrialRecord(**{"trial": trial, **fields, **changes})

    return make


@pytest.fixture
def make_facts() -> FactsMaker:
    def make(name: str = "tiny", **changes: Any) -> SweepFacts:
        teacher = TeacherFacts(
            name="big", model="resnet20", key="t1", parameters=10_000, size_bytes=40_000, macs=9, test_accuracy=0.875
        )
        fields: dict[str, Any] = {
            "spec": {"name": name, "students": ["mlp"]},
            "dataset": {"name": "digits", "fingerprint": "0123456789abcdef"},
            "baseline": "scratch",
            "planned": 2,
            "teachers": [teacher],
            "started": "2026-03-01T11:00:00+00:00",
        }
        return SweepFacts(name=name, **{**fields, **changes})

    return make


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database whose schema is in place: making one takes seconds."""
    home = tmp_path_factory.mktemp("empty-store")
    with settings():
        open_client(locate(None, home))
    return home / "mlflow.db"


@pytest.fixture
def home(tmp_path: Path, empty_store: Path) -> Path:
    """A home with an embedded store in which nothing stands yet."""
    folder = tmp_path / "home"
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    return folder


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def free_port() -> int:
    return _free_port()


class Server:
    """A real MLflow server of its own store."""

    def __init__(self, home: Path, port: int) -> None:
        self.location: Location = locate(None, home)
        self.port = port
        self.uri = f"http://127.0.0.1:{port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = start_server(self.location, self.port)
        wait_until_healthy(self._process, self.port, log_file(self.location))

    def stop(self) -> None:
        if self._process is not None:
            stop_server(self._process)
            self._process = None


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[Server]:
    """One server for all tests, each in an experiment of its own; a test that stops it starts it again."""
    home = tmp_path_factory.mktemp("server")
    shutil.copy(empty_store, home / "mlflow.db")
    running = Server(home, _free_port())
    running.start()
    yield running
    running.stop()


@pytest.fixture
def runs_in() -> Callable[..., list[Any]]:
    """All active runs of an experiment, of one role: read by MLflow's own client."""

    def read(location: Location, role: str = "trial", experiment: str = "tests") -> list[Any]:
        with settings():
            client = open_client(location)
            found = client.get_experiment_by_name(experiment)
            return list(client.search_runs([found.experiment_id], filter_string=f"tags.role = '{role}'"))

    return read
