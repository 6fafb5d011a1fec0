"""`stillhouse ui`: MLflow's server on loopback, and the address of the saved view."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import webbrowser
from pathlib import Path
from types import FrameType
from typing import Any

from stillhouse.errors import InfrastructureError, UsageError
from stillhouse.tracking.locations import Location, locate
from stillhouse.tracking.store import RejectedError, UnreachableError, attempt, open_client, settings
from stillhouse.tracking.view import EXPERIMENT_VIEW_ID, sweep_view_id, view_address

START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 10.0
_HOST = "127.0.0.1"


def ui(uri: str | None, home: Path, port: int = 5000, open_view: str | None = None, *, browse: bool = False) -> int:
    """Serves the tracking store on loopback until Ctrl-C; for a store that is a server already, it only prints the address.

    The first line on stdout is the address of the saved view, printed when the page can be opened.

    Args:
        uri: the value of `tracking.uri`; None is the SQLite file under `home`.
        home: folder of `mlflow.db`.
        port: on 127.0.0.1.
        open_view: name of the sweep whose view to open; None opens the view of all trials.
        browse: also opens a browser with it.

    Returns:
        the exit code: 0 after Ctrl-C, that of the server when it ended by itself.

    Raises:
        UsageError: the port is taken, or the store has no such sweep.
        InfrastructureError: the store or the server does not answer.
    """
    location = locate(uri, home)
    with settings():
        experiment_id, view_id = _find_view(location, open_view)
    if location.is_server:
        _announce(view_address(location.shown, experiment_id, view_id), browse=browse)
        return 0
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            raise UsageError(f"port {port} is taken ({error.strerror}); choose another with --port") from error
    server = start_server(location, port)
    # A background job of a shell ignores Ctrl-C's signal; and when this process is terminated, the server must end too.
    handlers = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        wait_until_healthy(server, port, log_file(location))
        _announce(view_address(f"http://{_HOST}:{port}", experiment_id, view_id), browse=browse)
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        stop_server(server)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def start_server(location: Location, port: int) -> "subprocess.Popen[bytes]":
    """`mlflow server` on loopback in a separate process group; it logs to `mlflow-server.log` in the home."""
    environment = os.environ | {
        # In the environment: every user of the machine can read a command line.
        "MLFLOW_BACKEND_STORE_URI": location.uri,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        # Neither the server nor its workers import anything from their working folder.
        "PYTHONSAFEPATH": "1",
    }
    artifacts = location.artifacts or (location.home / "mlartifacts").as_uri()
    command = [sys.executable, "-P", "-m", "mlflow", "server", "--host", _HOST, "--port", str(port), "--workers", "1"]
    command += ["--artifacts-destination", artifacts, "--uvicorn-opts", "--log-level warning"]
    location.home.mkdir(parents=True, exist_ok=True)
    with log_file(location).open("wb") as log:
        return subprocess.Popen(  # noqa: S603
            command,
            env=environment,
            # Uvicorn imports from its working folder, and the home may hold a file called mlflow.py.
            cwd=os.sep,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def log_file(location: Location) -> Path:
    """The log of the server that `ui` starts."""
    return location.home / "mlflow-server.log"


def wait_until_healthy(server: "subprocess.Popen[bytes]", port: int, log: Path, timeout_s: float = START_TIMEOUT_S) -> None:
    """Waits until the server answers.

    Args:
        log: the file that the error message names.

    Raises:
        InfrastructureError: it ended, or does not answer in time.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise InfrastructureError(f"mlflow server ended with code {server.returncode}; see {log}")
        try:
            with urllib.request.urlopen(f"http://{_HOST}:{port}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise InfrastructureError(f"mlflow server does not answer on port {port} after {timeout_s:.0f} s; see {log}")


def stop_server(server: "subprocess.Popen[bytes]") -> None:
    """Ends the server and its workers."""
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, signal_number)
            server.wait(_STOP_TIMEOUT_S)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    server.wait()


def _find_view(location: Location, sweep: str | None) -> tuple[str, str]:
    """Experiment and id of the view: the newest experiment that has it."""
    view_id = sweep_view_id(sweep) if sweep else EXPERIMENT_VIEW_ID

    def search(client: Any) -> Any:
        condition = f"tags.`mlflow.sharedViewState.{view_id}` LIKE '%'"
        return client.search_experiments(filter_string=condition, order_by=["last_update_time DESC"], max_results=1)

    try:
        client = open_client(location)
        found = attempt(lambda: search(client))
    except (UnreachableError, RejectedError) as error:
        raise InfrastructureError(f"cannot open the tracking store {location.shown}: {error}") from error
    if not found:
        what = f"sweep {sweep!r}" if sweep else "sweep"
        raise UsageError(
            f"no {what} in the tracking store {location.shown}; run one with `stillhouse sweep`, or give its --home"
        )
    return str(found[0].experiment_id), view_id


def _announce(address: str, *, browse: bool) -> None:
    sys.stdout.write(f"{address}\n")
    sys.stdout.flush()
    if browse:
        webbrowser.open(address)
