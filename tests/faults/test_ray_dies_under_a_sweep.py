"""Ray's servers are killed under a running sweep, or the user ends it at once: one sentence, and no process is left."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from stillhouse.home_access.ray_process import NAMESPACE
from stillhouse.sweep.cluster.ray_internals import processes_of_raylet
from stillhouse.sweep.home.status import StatusReader
from stillhouse.sweep.home.sweep_home import SweepHome

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SPEC = {
    "name": "dying",
    "dataset": {"name": "digits", "validation": 80, "options": {"limit": 400}},
    "students": [{"model": "mlp", "hidden": [16]}],
    "methods": {"scratch": {}},
    # Longer than any of these tests.
    "search": {"trials_per_method": 2, "max_epochs": 100_000},
    "max_concurrent_trials": 1,
    "tracking": {"uri": "http://127.0.0.1:9"},
}
IN_A_NOTEBOOK = f"""
import sys
import ray
import stillhouse
from stillhouse.errors import InfrastructureError

sys.ps1 = "In: "
try:
    stillhouse.Sweep.from_yaml(sys.argv[1], home=sys.argv[2]).run()
except InfrastructureError as error:
    print(f"error: {{error}}", file=sys.stderr)
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, namespace={NAMESPACE!r})
print(ray.get(ray.remote(num_cpus=0)(lambda: "alive").remote()))
"""
Run = Callable[..., "subprocess.Popen[str]"]
CLI = ("-m", "stillhouse.cli", "sweep")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Run]:
    """Starts a sweep and waits until a trial runs."""
    processes = []

    def run(*program: str) -> "subprocess.Popen[str]":
        spec, home = tmp_path / "spec.yaml", tmp_path / "home"
        spec.write_text(yaml.safe_dump(SPEC))
        place = ["--home", str(home)] if program == CLI else [str(home)]
        process = subprocess.Popen(
            [sys.executable, *program, str(spec), *place],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A test run in the background of a shell is started with this signal ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        processes.append(process)
        reader = StatusReader(SweepHome(home, "dying"))
        deadline = time.monotonic() + 90
        while not any(trial["epoch"] > 0 for trial in reader.read()["running"]):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def child(parent: int, name: str) -> int:
    """The pid of the child of a process with this name."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "stat").read_text().rpartition(")")
            if words[0].partition("(")[2] == name and int(words[2].split()[1]) == parent:
                return int(folder.name)
        except OSError:
            continue
    raise AssertionError(f"{name} does not run")


def left_of(raylet: int, timeout_s: float = 30) -> list[int]:
    deadline = time.monotonic() + timeout_s
    while (left := processes_of_raylet(raylet)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def test_a_killed_control_service_is_exit_code_4_with_the_command_that_continues(start: Run) -> None:
    process = start(*CLI)
    raylet = child(process.pid, "raylet")
    assert processes_of_raylet(raylet)
    os.kill(child(process.pid, "gcs_server"), signal.SIGKILL)
    began = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 4, errors
    assert time.monotonic() - began < 20
    (sentence,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert "its process gcs_server ended" in sentence
    assert "finished trials are stored. Continue with: stillhouse resume dying --home " in sentence
    assert left_of(raylet) == []


def test_a_killed_raylet_is_an_exception_in_a_notebook_which_goes_on(start: Run) -> None:
    process = start("-c", IN_A_NOTEBOOK)
    raylet = child(process.pid, "raylet")
    os.kill(raylet, signal.SIGKILL)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "error: Ray has died: its process raylet ended" in errors
    assert output.splitlines()[-1] == "alive"
    assert left_of(raylet) == []


def test_two_ctrl_c_leave_no_process_of_ray(start: Run) -> None:
    process = start(*CLI)
    raylet = child(process.pid, "raylet")
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 130, errors
    assert "Continue with: stillhouse resume dying" in errors.splitlines()[-1]
    assert left_of(raylet) == []
