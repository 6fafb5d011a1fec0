"""A sweep's state as other processes see it: the driver writes it every second, `status` and `ls` read it."""

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from stillhouse.durable import Damaged, move_into_place, read_json
from stillhouse.spec.collapse import trivial_value
from stillhouse.spec.metric import Metric
from stillhouse.spec.records import TrialRecord
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.sweep.progress import Progress, Tally, metric_of_state

_INTERVAL_S = 1.0


@contextmanager
def publish_status(progress: Progress, sweep_home: SweepHome) -> Iterator[None]:
    """Writes the sweep's state into its folder every second while the block runs.

    The state is not durable: it is not fsynced, and a full disk is ignored.
    """
    over = threading.Event()

    def follow() -> None:
        while not over.wait(_INTERVAL_S):
            _write(sweep_home, {**progress.snapshot(), "complete": False})

    _write(sweep_home, {**progress.snapshot(), "complete": False})
    thread = threading.Thread(target=follow, name="stillhouse-state", daemon=True)
    thread.start()
    complete = False
    try:
        yield
        complete = True
    finally:
        over.set()
        thread.join()
        _write(sweep_home, {**progress.snapshot(), "running": [], "eta_seconds": None, "complete": complete})


class StatusReader:
    """Reads the state of one sweep from its home. A second reading reads only new records."""

    def __init__(self, sweep_home: SweepHome) -> None:
        self.sweep_home = sweep_home
        self._records: dict[str, TrialRecord] = {}

    def read(self) -> dict[str, Any]:
        """What `render_status` shows, and: `state` (`running`, `ending`, `finished` or `unfinished`), `home`, `updated`."""
        running = self.sweep_home.is_running()
        keys = set(self.sweep_home.ledger.keys())
        self._records = {key: record for key, record in self._records.items() if key in keys}
        for key in keys - self._records.keys():
            if (record := self.sweep_home.ledger.read(key)) is not None:
                self._records[key] = record
        written = _read(self.sweep_home)
        known = self.sweep_home.read_facts()
        facts = known if "planned" not in written else None
        metric = metric_of_state(written) if facts is None else facts.metric
        # The controls of a stored spec begin with the baseline; the first release stored none.
        controls = known.spec.get("controls") if known is not None else None
        trivial = None if known is None else trivial_value(known, "validation")
        tally = Tally(metric, trivial, controls[0] if controls else None)
        for key in sorted(self._records):
            tally.add(self._records[key])
        planned = facts.planned if facts is not None else written.get("planned")
        if running:
            state = "ending" if self.sweep_home.stop_request.exists() else "running"
        elif planned is None or len(tally) < planned or not written.get("complete", facts is not None):
            state = "unfinished"
        else:
            state = "finished"
        return {
            "sweep": self.sweep_home.name,
            "home": str(self.sweep_home.home),
            "state": state,
            "planned": planned,
            "done": len(tally),
            **tally.counts,
            "collapsed": tally.collapsed,
            "running": written.get("running", []) if running else [],
            "best": tally.best(),
            "metric": metric.model_dump(mode="json"),
            "teachers": written.get("teachers", []),
            "elapsed_seconds": written.get("elapsed_seconds") if running else None,
            "eta_seconds": written.get("eta_seconds") if running else None,
            **{kind: written.get(kind, 0.0) for kind in ("cpu_hours", "gpu_hours")},
            "updated": written.get("updated"),
            "host": written.get("host") if running else None,
            "pid": written.get("pid") if running else None,
        }


def _write(sweep_home: SweepHome, state: dict[str, Any]) -> None:
    state |= {
        "updated": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }
    path = _path(sweep_home)
    beside = path.with_name(f".{path.name}.part")
    with contextlib.suppress(OSError):
        beside.write_text(json.dumps(state), encoding="utf-8")
        move_into_place(beside, path)


class _Running(BaseModel, extra="allow"):
    trial: str
    method: str
    student: str
    epoch: int
    epochs: int


class _State(BaseModel, extra="allow"):
    """The shape of the file, as far as readers rely on it."""

    planned: int | None = None
    running: list[_Running] = []
    teachers: list[str] = []
    metric: Metric | None = None
    complete: bool = False
    elapsed_seconds: float | None = None
    eta_seconds: float | None = None
    cpu_hours: float = 0.0
    gpu_hours: float = 0.0
    updated: str | None = None
    host: str | None = None
    pid: int | None = None


def _read(sweep_home: SweepHome) -> dict[str, Any]:
    """The state as its driver wrote it; empty when it is missing or damaged."""
    try:
        state = _State.model_validate(read_json(_path(sweep_home)))
    except (OSError, Damaged, ValidationError):
        return {}
    return state.model_dump(mode="json", exclude_unset=True)


def _path(sweep_home: SweepHome) -> Path:
    return sweep_home.folder / "state.json"
