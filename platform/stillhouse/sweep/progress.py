"""What a person sees while a sweep runs: a live table on a terminal, one line per event otherwise. All on stderr."""

import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from stillhouse.spec.records import Trial, TrialRecord

_SHOWN_RUNNING = 8
_SHOWN_NOTES = 4


@contextmanager
def native_stderr_in(log: Path) -> Iterator[None]:
    """Sends what C++ code writes to the terminal into a file, away from the progress table; Python's stderr stays.

    Ray's core, started inside, inherits the file.
    """
    sys.stderr.flush()
    before, terminal = sys.stderr, os.dup(2)
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        target = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError:
        target = os.open(os.devnull, os.O_WRONLY)
    os.dup2(target, 2)
    os.close(target)
    sys.stderr = os.fdopen(terminal, "w", buffering=1)
    try:
        yield
    finally:
        shown, sys.stderr = sys.stderr, before
        shown.flush()
        os.dup2(terminal, 2)
        shown.close()


class Progress:
    """Events of a sweep, shown. Safe to call from several threads.

    Args:
        planned: trials of the whole sweep as far as they are known.
        quiet: whether nothing is shown at all.
    """

    def __init__(self, name: str, *, console: Console | None = None, quiet: bool = False) -> None:
        self._name = name
        self._console = Console(stderr=True) if console is None else console
        self._quiet = quiet
        self._planned = 0
        self._reused = 0
        self._started = time.monotonic()
        self._trials_started: float | None = None
        self._running: dict[str, dict[str, Any]] = {}
        self._records: list[TrialRecord] = []
        self._notes: list[str] = []
        self._teachers: dict[str, str] = {}
        self._lock = threading.RLock()
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._quiet:
            self._live = Live(
                console=self._console, get_renderable=self._render, refresh_per_second=4, transient=True, redirect_stdout=False
            )
            self._live.start()
        return self

    def __exit__(self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def note(self, text: str) -> None:
        """A sentence about the sweep as a whole."""
        with self._lock:
            self._notes = [*self._notes, text][-_SHOWN_NOTES:]
        self._line(text)

    def teacher(self, name: str, text: str) -> None:
        """The latest about a teacher; repeated texts are shown once."""
        with self._lock:
            if not text or self._teachers.get(name) == text:
                return
            self._teachers[name] = text
        if self._live is None:
            self._line(text)

    def plan(self, planned: int, reused: Iterable[TrialRecord] = ()) -> None:
        """How many trials there are, and which of them were finished before this run."""
        with self._lock:
            self._planned = planned
            known = {record.trial.key for record in self._records}
            earlier = [record for record in reused if record.trial.key not in known]
            self._records += earlier
            self._reused += len(earlier)
            self._trials_started = self._trials_started or time.monotonic()

    def trial_started(self, trial: Trial) -> None:
        with self._lock:
            self._running[trial.key] = {"trial": trial, "epoch": 0, "accuracy": None}

    def trial_epoch(self, key: str, epoch: int, accuracy: float) -> None:
        with self._lock:
            if key in self._running:
                self._running[key] |= {"epoch": epoch, "accuracy": accuracy}

    def trial_done(self, record: TrialRecord) -> None:
        with self._lock:
            self._running.pop(record.trial.key, None)
            self._records.append(record)
            done = len(self._records)
        self._line(f"[{done}/{max(self._planned, done)}] {describe_record(record)}")

    def _line(self, text: str) -> None:
        if self._quiet:
            return
        if self._live is not None:
            self._live.console.print(Text(text), highlight=False)
        else:
            self._console.print(Text(text), highlight=False, soft_wrap=True)

    def _render(self) -> RenderableType:
        with self._lock:
            statuses = [record.status for record in self._records]
            elapsed = time.monotonic() - self._started
            head = Text.assemble(
                (self._name, "bold"),
                f"  {len(statuses)}/{self._planned} trials",
                f"  {len(self._running)} running",
                f"  {statuses.count('stopped')} stopped early",
                (f"  {statuses.count('failed')} failed", "red" if "failed" in statuses else ""),
                f"  {format_seconds(elapsed)}",
                f"  {self._eta()}",
            )
            bar = Table.grid()
            bar.add_row(ProgressBar(total=max(1, self._planned), completed=len(statuses), width=60))
            parts: list[RenderableType] = [head, bar]
            if len(statuses) < max(1, self._planned):
                parts += [Text(text, style="dim") for text in self._teachers.values()]
            parts += [table for table in (self._running_table(), self._best_table()) if table is not None]
            return Group(*parts)

    def _eta(self) -> str:
        fresh = len(self._records) - self._reused
        if not fresh or self._trials_started is None:
            return ""
        left = (self._planned - len(self._records)) * (time.monotonic() - self._trials_started) / fresh
        return f"about {format_seconds(left)} left"

    def _running_table(self) -> Table | None:
        if not self._running:
            return None
        table = Table(box=None, pad_edge=False)
        for column in ("running", "method", "student", "epoch", "accuracy"):
            table.add_column(column, justify="right" if column in ("epoch", "accuracy") else "left")
        for key, state in list(self._running.items())[:_SHOWN_RUNNING]:
            trial = state["trial"]
            accuracy = "" if state["accuracy"] is None else f"{state['accuracy']:.4f}"
            table.add_row(key[:8], trial.method, trial.student.name, f"{state['epoch']}/{trial.epochs}", accuracy)
        return table

    def _best_table(self) -> Table | None:
        best = best_per_student(self._records)
        if not best:
            return None
        table = Table(box=None, pad_edge=False)
        for column in ("best so far", "method", "parameters", "validation"):
            table.add_column(column, justify="right" if column in ("parameters", "validation") else "left")
        for record in best:
            metrics = record.metrics
            table.add_row(
                record.trial.student.name,
                record.trial.method,
                f"{metrics['parameters']:,.0f}",
                f"{metrics['validation_accuracy']:.4f}",
            )
        return table


def best_per_student(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """The finished record with the best validation accuracy for each student label, smallest student first."""
    best: dict[str, TrialRecord] = {}
    for record in records:
        if record.status != "finished":
            continue
        holder = best.get(record.trial.student.name)
        if holder is None or record.metrics["validation_accuracy"] > holder.metrics["validation_accuracy"]:
            best[record.trial.student.name] = record
    return sorted(best.values(), key=lambda record: record.metrics["parameters"])


def describe_record(record: TrialRecord) -> str:
    """One line: which trial, how it ended."""
    trial = record.trial
    settings = " ".join(f"{name}={_short(value)}" for name, value in trial.hyperparameters.items() if value is not None)
    who = f"{trial.key} {trial.method} {trial.student.name} seed {trial.seed}" + (f" ({settings})" if settings else "")
    if record.status == "failed":
        return f"{who} FAILED: {record.reason}"
    accuracy = record.metrics.get("validation_accuracy")
    reached = "" if accuracy is None else f", validation accuracy {accuracy:.4f}"
    return f"{who} {record.status} after {record.epochs_run} epochs{reached}"


def format_seconds(seconds: float) -> str:
    """`42 s`, `3 min 05 s` or `2 h 10 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
