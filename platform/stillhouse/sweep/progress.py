"""What a user sees while a sweep runs: a live table on a terminal, else one line per event. All of it on stderr."""

import importlib.util
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
from stillhouse.spec.collapse import collapse_words, is_collapsed
from stillhouse.spec.display import show_seconds
from stillhouse.spec.metric import ACCURACY, Metric
from stillhouse.spec.preference import comparable, record_preference
from stillhouse.spec.records import Trial, TrialRecord
from stillhouse.text_table import log_line

_SHOWN_RUNNING = 8


@contextmanager
def native_stderr_in(log: Path) -> Iterator[None]:
    """Redirects what C++ code writes to stderr into a file, so that it does not disturb the table; Python's stderr stays.

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
    sys.stderr = os.fdopen(terminal, "w", buffering=1, encoding=before.encoding, errors="backslashreplace")
    try:
        yield
    finally:
        shown, sys.stderr = sys.stderr, before
        shown.flush()
        os.dup2(terminal, 2)
        shown.close()


class Tally:
    """Counts records as they arrive: how trials ended, the best of each size bracket, how long they trained.

    Args:
        metric: decides which student is the best, by its value on the validation split.
        trivial: the metric's value on the validation split of a model that ignores the image, if it is known.
        baseline: the method that gains are measured against; looked up among the methods when it is needed, unless it is given.
    """

    def __init__(self, metric: Metric = ACCURACY, trivial: float | None = None, baseline: str | None = None) -> None:
        self.metric = metric
        self.trivial = trivial
        self._baseline = baseline
        self.collapsed = 0
        self.counts = {"finished": 0, "stopped": 0, "failed": 0}
        self.train_seconds = 0.0
        self._best: dict[int, TrialRecord] = {}
        self._keys: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, record: TrialRecord) -> None:
        """Counts the record, unless its trial is counted already."""
        if record.trial.key in self._keys:
            return
        self._keys.add(record.trial.key)
        self.counts[record.status] += 1
        self.collapsed += not record.trial.is_control and bool(is_collapsed(record, self.metric, self.trivial))
        self.train_seconds += record.metrics.get("train_seconds", sum(entry.get("seconds", 0.0) for entry in record.curve))
        column = self.metric.column("validation")
        if record.status != "finished" or column not in record.metrics or record.trial.is_control:
            return
        bracket = size_bracket(record.metrics["parameters"])
        holder = self._best.get(bracket)
        if holder is None or self._comes_before(record, holder):
            self._best[bracket] = record

    def _comes_before(self, record: TrialRecord, other: TrialRecord) -> bool:
        """Whether `record` is better than `other` on the validation split, or as good and simpler."""
        column = self.metric.column("validation")
        value, held = comparable(record.metrics[column]), comparable(other.metrics[column])
        if value != held:
            return self.metric.better(value, held)
        if self._baseline is None:
            # Methods need torch, for which `ls` and `status` should not wait.
            from stillhouse import methods

            self._baseline = methods.baseline()
        keys = [(record_preference(each, self.metric, self._baseline), each.trial.key) for each in (record, other)]
        return keys[0] < keys[1]

    def best(self) -> list[dict[str, Any]]:
        """The finished trial with the best value on the validation split of each size bracket, small ones first."""
        column = self.metric.column("validation")
        return [
            {
                "parameters_within": bracket_name(bracket),
                "trial": record.trial.key,
                "student": record.trial.student.name,
                "method": record.trial.method,
                "parameters": record.metrics["parameters"],
                column: record.metrics[column],
            }
            for bracket, record in sorted(self._best.items())
        ]


class Progress:
    """Shows the events of a sweep while its context is entered, which may be nested. Safe to call from several threads.

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
        self._depth = 0

    def __enter__(self) -> Self:
        self._depth += 1
        if self._depth == 1 and not self._quiet and _can_redraw(self._console):
            self._live = Live(
                console=self._console, get_renderable=self._render, refresh_per_second=4, transient=True, redirect_stdout=False
            )
            self._live.start()
        return self

    def __exit__(self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self._depth -= 1
        if self._live is not None and self._depth == 0:
            self._live.stop()
            self._live = None

    def note(self, text: str) -> None:
        """Shows a sentence about the sweep as a whole."""
        self._line(text)

    def teacher(self, name: str, text: str) -> None:
        """Shows the latest state of a teacher; a repeated text is shown once."""
        with self._lock:
            if not text or self._teachers.get(name) == text:
                return
            self._teachers[name] = text
        if self._live is None:
            self._line(text)

    def use_metric(self, metric: Metric, trivial: float | None = None) -> None:
        """What the sweep's task judges students by; accuracy before this is called.

        Args:
            trivial: the metric's value on the validation split of a model that ignores the image, if it is known.
        """
        with self._lock:
            self._tally.metric, self._tally.trivial = metric, trivial

    def claims(self, *, cpu: float, gpu: float) -> None:
        """What one trial occupies of the cluster; the hours of trials are computed from it."""
        with self._lock:
            self._claims = {"cpu": cpu, "gpu": gpu}

    def plan(self, planned: int, reused: Iterable[TrialRecord] = ()) -> None:
        """How many trials there are, and the records that existed before this run."""
        with self._lock:
            self._planned = planned
            for record in reused:
                self._reused += record.trial.key not in self._tally
                self._tally.add(record)
            self._trials_started = self._trials_started or time.monotonic()

    def trial_started(self, trial: Trial) -> None:
        with self._lock:
            self._running[trial.key] = {"trial": trial, "since": time.monotonic(), "epoch": 0, "value": None}

    def trial_epoch(self, key: str, epoch: int, value: float | None) -> None:
        """`value` is that of the task's metric on the validation split; None if there is no such split."""
        with self._lock:
            if key in self._running:
                self._running[key] |= {"epoch": epoch, "value": value}

    def trial_done(self, record: TrialRecord) -> None:
        with self._lock:
            self._running.pop(record.trial.key, None)
            self._tally.add(record)
            done = len(self._tally)
        self._line(f"[{done}/{max(self._planned, done)}] {describe_record(record, self._tally.metric, self._tally.trivial)}")

    def snapshot(self) -> dict[str, Any]:
        """The present state of the sweep as plain data: what `render_status` shows."""
        with self._lock:
            now = time.monotonic()
            seconds = self._tally.train_seconds + sum(now - state["since"] for state in self._running.values())
            return {
                "sweep": self._name,
                "planned": self._planned,
                "done": len(self._tally),
                **self._tally.counts,
                "collapsed": self._tally.collapsed,
                "running": [
                    {
                        "trial": key,
                        "method": state["trial"].method,
                        "student": state["trial"].student.name,
                        "epoch": state["epoch"],
                        "epochs": state["trial"].epochs,
                        self._tally.metric.column("validation"): state["value"],
                    }
                    for key, state in self._running.items()
                ],
                "best": self._tally.best(),
                "metric": self._tally.metric.model_dump(mode="json"),
                "teachers": list(self._teachers.values()),
                "elapsed_seconds": now - self._started,
                "eta_seconds": self._eta(now),
                **{f"{kind}_hours": share * seconds / 3600 for kind, share in self._claims.items()},
            }

    def _eta(self, now: float) -> float | None:
        """Seconds left at the pace of this run; epochs of running trials count as parts of a trial."""
        under_way = sum(float(state["epoch"] / state["trial"].epochs) for state in self._running.values())
        ran = len(self._tally) - self._reused + under_way
        if not ran or self._trials_started is None:
            return None
        return max(0.0, self._planned - len(self._tally) - under_way) * (now - self._trials_started) / ran

    def _line(self, text: str) -> None:
        if self._quiet:
            return
        line = Text(log_line(text))
        if self._live is not None:
            self._live.console.print(line, highlight=False)
        else:
            self._console.print(line, highlight=False, soft_wrap=True)

    def _render(self) -> RenderableType:
        return render_status(self.snapshot())


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    return Console(stderr=True).is_jupyter


def _can_redraw(console: Console) -> bool:
    """Whether a table can be replaced by a newer one: on a terminal, and in a notebook with `ipywidgets`."""
    if console.is_jupyter:
        return importlib.util.find_spec("ipywidgets") is not None
    return console.is_terminal


def render_status(state: Mapping[str, Any]) -> RenderableType:
    """A sweep's state, as `Progress.snapshot` returns it, for a terminal."""
    metric = metric_of_state(state)
    planned = max(state["planned"] or 0, state["done"])
    counts = Text.assemble(
        (state["sweep"], "bold"),
        f"  {state['done']}/{planned} trials",
        f"  {len(state['running'])} running",
        f"  {state['stopped']} stopped early",
        (f"  {state['failed']} failed", "red" if state["failed"] else ""),
        (f"  {state['collapsed']} collapsed" if state.get("collapsed") else "", "red"),
    )
    times = [] if state["elapsed_seconds"] is None else [show_seconds(max(0, round(state["elapsed_seconds"])))]
    if state["eta_seconds"] is not None and state["done"] < planned:
        times.append(f"about {show_seconds(max(0, round(state['eta_seconds'])))} left")
    # Without a GPU, GPU-hours tell nothing.
    kind = "gpu" if state["gpu_hours"] else "cpu"
    times.append(f"{state[f'{kind}_hours']:.2f} {kind.upper()}-hours of trials")
    bar = Table.grid()
    bar.add_row(ProgressBar(total=max(1, planned), completed=state["done"], width=60))
    parts: list[RenderableType] = [counts, Text("  ".join(times)), bar]
    if state["done"] < max(1, planned):
        parts += [Text(text, style="dim") for text in state["teachers"]]
    parts += [
        table for table in (_running_table(state["running"], metric), _best_table(state["best"], metric)) if table is not None
    ]
    return Group(*parts)


def metric_of_state(state: Mapping[str, Any]) -> Metric:
    """The metric of a stored state; a state of the first release names none and means accuracy."""
    return Metric.model_validate(state["metric"]) if state.get("metric") else ACCURACY


def _running_table(running: Sequence[Mapping[str, Any]], metric: Metric) -> RenderableType | None:
    if not running:
        return None
    table = Table(box=None, pad_edge=False)
    for number, column in enumerate(("running", "method", "student", "epoch", metric.label)):
        table.add_column(column, justify="right" if number >= 3 else "left")
    for each in running[:_SHOWN_RUNNING]:
        value = each.get(metric.column("validation"))
        reached = "" if value is None else f"{value:.4f}"
        table.add_row(each["trial"][:8], each["method"], each["student"], f"{each['epoch']}/{each['epochs']}", reached)
    more = len(running) - _SHOWN_RUNNING
    return Group(table, Text(f"and {more} more", style="dim")) if more > 0 else table


def _best_table(best: Sequence[Mapping[str, Any]], metric: Metric) -> Table | None:
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
            f"{each[metric.column('validation')]:.4f}",
        )
    return table


def describe_record(record: TrialRecord, metric: Metric = ACCURACY, trivial: float | None = None) -> str:
    """One line: which trial it is and how it ended.

    Args:
        trivial: the metric's value on the validation split of a model that ignores the image, if it is known.
    """
    trial = record.trial
    settings = " ".join(f"{name}={_short(value)}" for name, value in trial.hyperparameters.items() if value is not None)
    who = f"{trial.key} {trial.method} {trial.student.name} seed {trial.seed}" + (f" ({settings})" if settings else "")
    if record.status == "failed":
        return f"{who} FAILED: {record.reason}"
    value = record.metrics.get(metric.column("validation"))
    reached = "" if value is None else f", validation {metric.label} {value:.4f}"
    collapsed = f"; COLLAPSED: {collapse_words(metric, trivial)}" if is_collapsed(record, metric, trivial) else ""
    return f"{who} {record.status} after {record.epochs_run} epochs{reached}{collapsed}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
