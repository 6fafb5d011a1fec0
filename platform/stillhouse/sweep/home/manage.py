"""Commands that manage sweeps from another process: list all of them, stop one that runs, remove one."""

import os
import shlex
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from stillhouse.errors import InfrastructureError, UsageError
from stillhouse.sweep.home.status import StatusReader
from stillhouse.sweep.home.sweep_home import SweepHome, find_sweep, sweep_names
from stillhouse.sweep.progress import metric_of_state, render_status

_LOOK_S = 0.1
_WATCH_S = 1.0


def list_sweeps(home: Path) -> list[dict[str, Any]]:
    """Every sweep of the home with its state, its best student, its size on disk and its last use."""
    return [_listed(SweepHome(home, name)) for name in sweep_names(home)]


def _listed(sweep_home: SweepHome) -> dict[str, Any]:
    """One sweep of the list. What cannot be read, such as for its rights, is the entry's `problem` and does not hide others."""
    try:
        status = StatusReader(sweep_home).read()
        size, used = _size_on_disk(sweep_home.folder)
    except OSError as error:
        nothing = dict.fromkeys(("done", "finished", "stopped", "failed", "bytes"), 0)
        problem = f"cannot read {error.filename or sweep_home.folder}: {error.strerror or error}"
        unknown = {"planned": None, "best": None, "metric": None, "last_used": ""}
        return {"sweep": sweep_home.name, "state": "unreadable", **nothing, **unknown, "problem": problem}
    metric = metric_of_state(status)
    return {
        **{key: status[key] for key in ("sweep", "state", "planned", "done", "finished", "stopped", "failed")},
        "best": max(status["best"], key=lambda each: metric.sign * each[metric.column("validation")], default=None),
        "metric": status["metric"],
        "bytes": size,
        "last_used": datetime.fromtimestamp(used, UTC).isoformat(timespec="seconds"),
    }


def stop_sweep(home: Path, name: str, *, wait_s: float, tell: Callable[[str], None]) -> bool:
    """Requests the driver of a sweep to end gracefully, and waits for it.

    Returns:
        whether it has ended.

    Raises:
        UsageError: there is no such sweep, or it does not run.
        InfrastructureError: the request cannot be written.
    """
    sweep_home = find_sweep(home, name)
    if not sweep_home.is_running():
        raise UsageError(f"no process runs sweep '{name}' under {home}")
    try:
        sweep_home.stop_request.touch()
    except OSError as error:
        pid = StatusReader(sweep_home).read()["pid"]
        raise InfrastructureError(
            f"cannot write {sweep_home.stop_request}: {error.strerror}; end the sweep with: kill {pid or 'its process'}"
        ) from error
    tell(f"sweep '{name}' was requested to stop; running trials write a checkpoint")
    deadline = time.monotonic() + wait_s
    while sweep_home.is_running():
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_S)
    sweep_home.stop_request.unlink(missing_ok=True)
    return True


def remove_sweep(home: Path, name: str) -> dict[str, Any]:
    """Removes a sweep from the home: records, students, checkpoints, report. Teachers, knowledge and runs in MLflow remain.

    Returns:
        `removed`, its name; `bytes` that were freed; `kept`, the folder that remains where the sweep's folder was a link to it.

    Raises:
        UsageError: there is no such sweep.
        InfrastructureError: a process runs it, or its folder cannot be removed.
    """
    sweep_home = find_sweep(home, name)
    target = str(sweep_home.folder.resolve()) if sweep_home.folder.is_symlink() else None
    size = 0 if target else _size_on_disk(sweep_home.folder)[0]
    with sweep_home.locked():
        sweep_home.remove()
    return {"removed": name, "bytes": size, "kept": target}


def print_status(state: Mapping[str, Any], console: Console) -> None:
    """Prints the state of a sweep and the next command."""
    console.print(render_status(state))
    where = f"{state['sweep']} --home {shlex.quote(state['home'])}"
    next_step = {
        "running": f"running (process {state['pid']} on {state['host']}); stop it with: stillhouse stop {where}",
        "ending": f"ending (process {state['pid']} on {state['host']})",
        "unfinished": f"not running; continue with: stillhouse resume {where}",
        "finished": f"finished; the report: stillhouse report {where}",
    }
    console.print(Text(next_step[state["state"]]), soft_wrap=True, highlight=False)
    if state["failed"]:
        console.print(Text(f"run the failed trials again with: stillhouse retry {where}"), soft_wrap=True, highlight=False)


def watch_status(reader: StatusReader, console: Console) -> dict[str, Any]:
    """Shows the state, live on a terminal, until no process runs the sweep; returns the last state."""
    state = reader.read()
    with Live(render_status(state), console=console, transient=True, auto_refresh=False) as live:
        while state["state"] in ("running", "ending"):
            time.sleep(_WATCH_S)
            state = reader.read()
            if console.is_terminal:
                live.update(render_status(state), refresh=True)
    return state


def _size_on_disk(folder: Path) -> tuple[int, float]:
    """Bytes under the folder, and the time of its latest change in seconds since the epoch."""
    size, latest = 0, folder.stat().st_mtime
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                entry = (Path(root) / name).stat()
            except FileNotFoundError:
                continue
            size += entry.st_size
            latest = max(latest, entry.st_mtime)
    return size, latest
