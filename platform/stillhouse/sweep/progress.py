"""What a person sees while a sweep runs: a live table on a terminal, one line per event otherwise. All on stderr."""

import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from stillhouse.models.size_brackets import bracket_name, size_bracket
from stillhouse.spec.display import show_seconds
from stillhouse.spec.records import Trial, TrialRecord

_SHOWN_RUNNING = 8


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


class Tally:
    """Records counted as they come: how trials ended, the best of each size bracket, how long they trained."""

    def __init__(self) -> None:
        self.counts = {"finished": 0, "stopped": 0, "failed": 0}
        self.train_seconds = 0.0
        self._best: dict[int, TrialRecord] = {}
        self._keys: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, record: TrialRecord) -> None:
        """Counts the record; one of a trial that is counted already is left out."""
        if record.trial.key in self._keys:
            return
        self._keys.add(record.trial.key)
        self.counts[record.status] += 1
        self.train_seconds += record.metrics.get("train_seconds", sum(entry.get("seconds", 0.0) for entry in record.curve))
        if record.status != "finished":
            return
        bracket = size_bracket(record.metrics["parameters"])
        holder = self._best.get(bracket)
        if holder is None or record.metrics["validation_accuracy"] > holder.metrics["validation_accuracy"]:
            self._best[bracket] = record

    def best(self) -> list[dict[str, Any]]:
        """The finished trial with the best validation accuracy of each size bracket, small ones first."""
        return [
            {
                "parameters_within": bracket_name(bracket),
                "trial": record.trial.key,
                "student": record.trial.student.name,
                "method": record.trial.method,
                "parameters": record.metrics["parameters"],
                "validation_accuracy": record.metrics["validation_accuracy"],
            }
            for bracket, record in sorted(self._best.items())
        ]


class Progress:
    """Events of a sweep, shown. Safe to call from several threads.

    Args:
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
        self._tally = Tally()
        self._teachers: dict[str, str] = {}
        self._claims = {"cpu": 1.0, "gpu": 0.0}
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
        self._line(text)

    def teacher(self, name: str, text: str) -> None:
        """The latest about a teacher; repeated texts are shown once."""
        with self._lock:
            if not text or self._teachers.get(name) == text:
                return
            self._teachers[name] = text
        if self._live is None:
            self._line(text)

    def claims(self, *, cpu: float, gpu: float) -> None:
        """What one trial holds of the cluster, for the hours that the sweep has taken."""
        with self._lock:
            self._claims = {"cpu": cpu, "gpu": gpu}

    def plan(self, planned: int, reused: Iterable[TrialRecord] = ()) -> None:
        """How many trials there are, and which of them were finished before this run."""
        with self._lock:
            self._planned = planned
            for record in reused:
                self._reused += record.trial.key not in self._tally
                self._tally.add(record)
            self._trials_started = self._trials_started or time.monotonic()

    def trial_started(self, trial: Trial) -> None:
        with self._lock:
            self._running[trial.key] = {"trial": trial, "since": time.monotonic(), "epoch": 0, "accuracy": None}

    def trial_epoch(self, key: str, epoch: int, accuracy: float) -> None:
        with self._lock:
            if key in self._running:
                self._running[key] |= {"epoch": epoch, "accuracy": accuracy}

    def trial_done(self, record: TrialRecord) -> None:
        with self._lock:
            self._running.pop(record.trial.key, None)
            self._tally.add(record)
            done = len(self._tally)
        self._line(f"[{done}/{max(self._planned, done)}] {describe_record(record)}")

    def snapshot(self) -> dict[str, Any]:
        """The sweep as it stands, as plain data: what `render_status` shows."""
        with self._lock:
            now = time.monotonic()
            seconds = self._tally.train_seconds + sum(now - state["since"] for state in self._running.values())
            return {
                "sweep": self._name,
                "planned": self._planned,
                "done": len(self._tally),
                **self._tally.counts,
                "running": [
                    {
                        "trial": key,
                        "method": state["trial"].method,
                        "student": state["trial"].student.name,
                        "epoch": state["epoch"],
                        "epochs": state["trial"].epochs,
                        "validation_accuracy": state["accuracy"],
                    }
                    for key, state in self._running.items()
                ],
                "best": self._tally.best(),
                "teachers": list(self._teachers.values()),
                "elapsed_seconds": now - self._started,
                "eta_seconds": self._eta(now),
                **{f"{kind}_hours": share * seconds / 3600 for kind, share in self._claims.items()},
            }

    def _eta(self, now: float) -> float | None:
        """Seconds left if trials go on as in this run, epochs of those under way counted."""
        under_way = sum(float(state["epoch"] / state["trial"].epochs) for state in self._running.values())
        ran = len(self._tally) - self._reused + under_way
        if not ran or self._trials_started is None:
            return None
        return max(0.0, self._planned - len(self._tally) - under_way) * (now - self._trials_started) / ran

    def _line(self, text: str) -> None:
        if self._quiet:
            return
        if self._live is not None:
            self._live.console.print(Text(text), highlight=False)
        else:
            self._console.print(Text(text), highlight=False, soft_wrap=True)

    def _render(self) -> RenderableType:
        return render_status(self.snapshot())


def render_status(state: Mapping[str, Any]) -> RenderableType:
    """A sweep's state, as `Progress.snapshot` gives it, for a terminal."""
    planned = max(state["planned"] or 0, state["done"])
    counts = Text.assemble(
        (state["sweep"], "bold"),
        f"  {state['done']}/{planned} trials",
        f"  {len(state['running'])} running",
        f"  {state['stopped']} stopped early",
        (f"  {state['failed']} failed", "red" if state["failed"] else ""),
    )
    times = [] if state["elapsed_seconds"] is None else [show_seconds(max(0, round(state["elapsed_seconds"])))]
    if state["eta_seconds"] is not None and state["done"] < planned:
        times.append(f"about {show_seconds(max(0, round(state['eta_seconds'])))} left")
    # On a machine without a GPU nobody asks for GPU-hours.
    kind = "gpu" if state["gpu_hours"] else "cpu"
    times.append(f"{state[f'{kind}_hours']:.2f} {kind.upper()}-hours of trials")
    bar = Table.grid()
    bar.add_row(ProgressBar(total=max(1, planned), completed=state["done"], width=60))
    parts: list[RenderableType] = [counts, Text("  ".join(times)), bar]
    if state["done"] < max(1, planned):
        parts += [Text(text, style="dim") for text in state["teachers"]]
    parts += [table for table in (_running_table(state["running"]), _best_table(state["best"])) if table is not None]
    return Group(*parts)


def _running_table(running: Sequence[Mapping[str, Any]]) -> RenderableType | None:
    if not running:
        return None
    table = Table(box=None, pad_edge=False)
    for column in ("running", "method", "student", "epoch", "accuracy"):
        table.add_column(column, justify="right" if column in ("epoch", "accuracy") else "left")
    for each in running[:_SHOWN_RUNNING]:
        accuracy = "" if each["validation_accuracy"] is None else f"{each['validation_accuracy']:.4f}"
        table.add_row(each["trial"][:8], each["method"], each["student"], f"{each['epoch']}/{each['epochs']}", accuracy)
    more = len(running) - _SHOWN_RUNNING
    return Group(table, Text(f"and {more} more", style="dim")) if more > 0 else table


def _best_table(best: Sequence[Mapping[str, Any]]) -> Table | None:
    if not best:
        return None
    table = Table(box=None, pad_edge=False)
    for column in ("best of size", "method", "student", "parameters", "validation"):
        table.add_column(column, justify="right" if column in ("parameters", "validation") else "left")
    for each in best:
        table.add_row(
            each["parameters_within"],
            each["method"],
            each["student"],
            f"{each['parameters']:,.0f}",
            f"{each['validation_accuracy']:.4f}",
        )
    return table


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


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
