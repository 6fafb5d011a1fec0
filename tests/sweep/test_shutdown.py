"""How a sweep is requested to end. Each case is a process of its own: signals belong to processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stillhouse.sweep.shutdown import ShutdownRequest

PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from stillhouse.sweep.shutdown import ShutdownRequest

def say(word):
    # In one go: two threads say something.
    os.write(1, f"{word}\\n".encode())

# A test run in the background of a shell is started with this signal ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
shutdown = ShutdownRequest(Path(sys.argv[1]) / "stop", last_words="go on with: resume", tell=say)
try:
    with shutdown:
        if sys.argv[2] == "stolen":
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
            shutdown.listen()
        if sys.argv[2] == "patient":
            with shutdown.deferred():
                say("ready")
                while not shutdown.requested:
                    time.sleep(0.01)
                # Work under way that does not come to its end.
                while Path(sys.argv[1], "hang").exists():
                    time.sleep(0.01)
            say("graceful")
        else:
            say("ready")
            while True:
                time.sleep(0.01)
except KeyboardInterrupt:
    say("interrupted")
say(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""


def start(folder: Path, kind: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), kind],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_left_to_the_work_under_way(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path, "patient")
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert {"graceful", "True"} <= set(output.splitlines()), "and the handlers are what they were before"
    assert errors == ""


def test_the_second_signal_ends_the_process_at_once_with_the_last_words(tmp_path: Path) -> None:
    (tmp_path / "hang").touch()
    process = start(tmp_path, "patient")
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert "stopping: running trials" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "go on with: resume\n"
    assert "graceful" not in output


def test_where_nothing_is_under_way_the_first_signal_ends_it(tmp_path: Path) -> None:
    process = start(tmp_path, "impatient")
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60) == ("interrupted\nTrue\n", "")


def test_a_signal_that_a_library_took_is_taken_back(tmp_path: Path) -> None:
    process = start(tmp_path, "stolen")
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60) == ("interrupted\nTrue\n", "")


@pytest.mark.parametrize(("kind", "word"), [("patient", "graceful"), ("impatient", "interrupted")])
def test_a_request_in_the_folder_is_a_first_signal(tmp_path: Path, kind: str, word: str) -> None:
    process = start(tmp_path, kind)
    (tmp_path / "stop").touch()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert output.endswith(f"{word}\nTrue\n")
    assert not (tmp_path / "stop").exists(), "it does not wait for the next driver"


def test_a_request_to_an_earlier_driver_is_forgotten(tmp_path: Path) -> None:
    (tmp_path / "stop").touch()
    with ShutdownRequest(tmp_path / "stop") as shutdown:
        assert not (tmp_path / "stop").exists()
        assert not shutdown.requested
