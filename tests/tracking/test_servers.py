"""Real MLflow servers, dead servers, and servers that answer nonsense."""

import contextlib
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from stillhouse.errors import InfrastructureError, UsageError
from stillhouse.spec.records import SweepFacts, TrialRecord
from stillhouse.tracking import Tracker, locate, sync, ui

RecordMaker = Callable[..., TrialRecord]
FactsMaker = Callable[..., SweepFacts]
RunReader = Callable[..., list[Any]]


class _Broken(BaseHTTPRequestHandler):
    """Answers every request with 500."""

    def _fail(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(length)
        self.send_response(500)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._fail
        raise AttributeError(name)

    def log_message(self, *_arguments: Any) -> None:
        return


@pytest.fixture
def broken_server() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Broken)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


class _Forwarder(socketserver.BaseRequestHandler):
    """Passes one connection on to a real server, byte for byte."""

    target: ClassVar[int]

    def handle(self) -> None:
        with socket.create_connection(("127.0.0.1", self.target)) as onward:
            back = threading.Thread(target=_pump, args=(onward, self.request))
            back.start()
            _pump(self.request, onward)
            back.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while chunk := source.recv(65536):
            sink.sendall(chunk)
    except OSError:
        pass
    finally:
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)


class Line:
    """A way to a server that can be cut and mended: cut, nobody listens at its address."""

    def __init__(self, target: int) -> None:
        self._handler = type("Handler", (_Forwarder,), {"target": target})
        self._server: socketserver.ThreadingTCPServer | None = None
        self._port = 0
        self.mend()
        self.uri = f"http://127.0.0.1:{self._port}"

    def mend(self) -> None:
        server = socketserver.ThreadingTCPServer(("127.0.0.1", self._port), self._handler, bind_and_activate=False)
        server.allow_reuse_address = True
        server.daemon_threads = True
        server.server_bind()
        server.server_activate()
        self._port = server.server_address[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self._server = server

    def cut(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


def test_a_server_that_is_down_costs_a_warning_and_no_time(
    tmp_path: Path, free_port: int, make_record: RecordMaker, make_facts: FactsMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    started = time.monotonic()
    tracker = Tracker(f"http://me:hush@127.0.0.1:{free_port}", home=tmp_path, experiment="tests")
    assert tracker.start_sweep(make_facts()) is None
    tracker.log_trial(make_record(0))
    assert not tracker.finish(make_facts(), {})
    tracker.close()
    assert time.monotonic() - started < 20  # MLflow's own retries take 4 minutes
    error = capsys.readouterr().err
    assert "stillhouse sync" in error
    assert "hush" not in error


def test_a_server_that_answers_500_costs_a_warning_and_no_time(
    tmp_path: Path, broken_server: str, make_facts: FactsMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    started = time.monotonic()
    tracker = Tracker(broken_server, home=tmp_path, experiment="tests")
    assert tracker.start_sweep(make_facts()) is None
    assert not tracker.finish(make_facts(), {})
    tracker.close()
    assert time.monotonic() - started < 20
    assert "500" in capsys.readouterr().err


def test_a_name_that_does_not_resolve_is_an_infrastructure_error(tmp_path: Path, make_facts: FactsMaker) -> None:
    with pytest.raises(InfrastructureError):
        sync("http://nowhere.invalid:5000", tmp_path, "tests", make_facts(), [], {})


@pytest.mark.slow
def test_a_sweep_stands_on_a_real_server_with_its_report(
    server: Any,
    tmp_path: Path,
    make_record: RecordMaker,
    make_facts: FactsMaker,
    runs_in: RunReader,
    capfd: pytest.CaptureFixture[str],
) -> None:
    page = tmp_path / "report.html"
    page.write_text("<p>hello</p>")
    tracker = Tracker(server.uri, home=tmp_path, experiment="whole")
    run_id = tracker.start_sweep(make_facts())
    for number in range(3):
        tracker.log_trial(make_record(number))
    assert tracker.finish(make_facts(), {"page": page})
    tracker.close()
    assert capfd.readouterr().out == ""
    children = runs_in(locate(server.uri, tmp_path), experiment="whole")
    assert len(children) == 3
    assert {run.data.metrics["test_accuracy"] for run in children} == {0.75}
    fetched = f"{server.uri}/get-artifact?path=report.html&run_uuid={run_id}"
    with urllib.request.urlopen(fetched, timeout=30) as answer:
        assert answer.read() == b"<p>hello</p>"


@pytest.mark.slow
def test_a_sync_after_a_tracked_sweep_on_a_server_changes_nothing(
    server: Any, tmp_path: Path, make_record: RecordMaker, make_facts: FactsMaker
) -> None:
    records = [make_record(number) for number in range(3)]
    first = sync(server.uri, tmp_path, "again", make_facts(), records, {})
    second = sync(server.uri, tmp_path, "again", make_facts(), records, {})
    assert (first.created, second.created, second.skipped) == (3, 0, 3)
    assert first.run_id == second.run_id


@pytest.mark.slow
def test_two_sweeps_write_to_one_server_at_the_same_time(
    server: Any, tmp_path: Path, make_record: RecordMaker, make_facts: FactsMaker, runs_in: RunReader
) -> None:
    names = ("left", "right")
    trackers = [Tracker(server.uri, home=tmp_path, experiment="both") for _ in names]
    for tracker, name in zip(trackers, names, strict=True):
        tracker.start_sweep(make_facts(name))
    for number in range(4):
        for tracker in trackers:
            tracker.log_trial(make_record(number))
    for tracker, name in zip(trackers, names, strict=True):
        assert tracker.finish(make_facts(name), {})
        tracker.close()
    runs = runs_in(locate(server.uri, tmp_path), experiment="both")
    assert sorted(run.data.tags["sweep"] for run in runs) == ["left"] * 4 + ["right"] * 4


@pytest.mark.slow
def test_a_server_killed_in_the_middle_and_a_sync_lose_nothing(
    server: Any, tmp_path: Path, make_record: RecordMaker, make_facts: FactsMaker, runs_in: RunReader
) -> None:
    records = [make_record(number) for number in range(5)]
    tracker = Tracker(server.uri, home=tmp_path, experiment="killed")
    run_id = tracker.start_sweep(make_facts())
    tracker.log_trial(records[0])
    deadline = time.monotonic() + 30
    while not runs_in(server.location, experiment="killed") and time.monotonic() < deadline:
        time.sleep(0.1)
    server.stop()
    for record in records[1:]:
        tracker.log_trial(record)
    assert not tracker.finish(make_facts(), {}, timeout_s=20)
    tracker.close()
    server.start()
    result = sync(server.uri, tmp_path, "killed", make_facts(), records, {})
    keys = sorted(run.data.tags["trial_key"] for run in runs_in(server.location, experiment="killed"))
    assert (result.failed, result.run_id) == (0, run_id)
    assert keys == [record.trial.key for record in records]


@pytest.mark.slow
def test_an_outage_that_ends_during_the_sweep_needs_no_sync(
    server: Any, tmp_path: Path, make_record: RecordMaker, make_facts: FactsMaker, runs_in: RunReader
) -> None:
    line = Line(server.port)
    tracker = Tracker(line.uri, home=tmp_path, experiment="outage")
    tracker.start_sweep(make_facts())
    line.cut()
    tracker.log_trial(make_record(0))
    time.sleep(1)
    line.mend()
    assert tracker.finish(make_facts(), {})
    tracker.close()
    line.cut()
    assert len(runs_in(server.location, experiment="outage")) == 1


_UI = """
import sys
from pathlib import Path
from stillhouse.tracking import ui

sys.exit(ui(None, Path(sys.argv[1]), int(sys.argv[2])))
"""


@pytest.mark.slow
def test_ui_prints_the_views_address_serves_it_and_stops_cleanly(home: Path, free_port: int, make_facts: FactsMaker) -> None:
    sync(None, home, "tests", make_facts(), [], {})
    process = subprocess.Popen(
        [sys.executable, "-c", _UI, str(home), str(free_port)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    with urllib.request.urlopen(address.partition("#")[0], timeout=30) as answer:
        assert "<title>MLflow</title>" in answer.read().decode()
    process.send_signal(signal.SIGINT)
    with process:
        assert process.wait(30) == 0
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(address.partition("#")[0], timeout=5)
    assert "viewStateShareKey=stillhouse" in address


def test_ui_says_when_there_is_nothing_to_see(home: Path, free_port: int) -> None:
    with pytest.raises(UsageError, match="no sweep in the tracking store"):
        ui(None, home, free_port)


def test_ui_says_when_the_port_is_taken(home: Path, broken_server: str, make_facts: FactsMaker) -> None:
    sync(None, home, "tests", make_facts(), [], {})
    with pytest.raises(UsageError, match="is taken"):
        ui(None, home, int(broken_server.rpartition(":")[2]))


@pytest.mark.slow
def test_ui_points_to_a_server_that_runs_already(
    server: Any, tmp_path: Path, make_facts: FactsMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    sync(server.uri, tmp_path, "seen", make_facts("seen"), [], {})
    assert ui(server.uri, tmp_path, open_view="seen") == 0
    assert capsys.readouterr().out.startswith(f"{server.uri}/#/experiments/")
