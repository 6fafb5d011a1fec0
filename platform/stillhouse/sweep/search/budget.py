"""What a sweep has spent of its budget: a function of its records, its running trials and the clock."""

import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime

from stillhouse.spec.records import Trial, TrialRecord
from stillhouse.spec.schema import SearchBudget

_HOUR_S = 3600.0


class BudgetTracker:
    """Tracks the budget of one sweep.

    Args:
        records: of all trials that earlier runs finished.
        gpus: GPUs that each trial occupies.
        packed: how many trials take turns in one process. Each records its own seconds, and while it runs, its part of the
            clock's counts.
        started: when this run of the sweep began, by `clock`.
        clock: returns seconds.
    """

    def __init__(
        self,
        budget: SearchBudget,
        records: Iterable[TrialRecord] = (),
        *,
        gpus: float = 0.0,
        packed: int = 1,
        started: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._budget = budget
        self._gpus = gpus
        self._packed = packed
        self._clock = clock
        self._started = clock() if started is None else started
        earlier = list(records)
        self._trials = len(earlier)
        self._epochs = sum(record.epochs_run for record in earlier)
        self._trial_seconds = sum(map(_seconds, earlier))
        self._earlier_seconds = covered_seconds(earlier)
        self._running: dict[str, tuple[Trial, float]] = {}
        # The sum over all running trials: adding it up for each trial takes quadratic time when a whole plan is handed out.
        self._sum_of_starts = 0.0
        self.reason: str | None = None
        """Which part of the budget ended the search, as a sentence."""

    def over(self, trial: Trial) -> bool:
        """Whether the budget does not allow the trial to start; `reason` then names the key."""
        self.reason = self._reason(trial)
        return self.reason is not None

    def start(self, trial: Trial) -> None:
        self._trials += 1
        self._epochs += trial.epochs
        self._forget(trial.key)
        self._running[trial.key] = (trial, now := self._clock())
        self._sum_of_starts += now

    def end(self, record: TrialRecord) -> None:
        """Replaces what the trial was expected to take by what it took."""
        trial = self._forget(record.trial.key) or record.trial
        self._epochs += record.epochs_run - trial.epochs
        self._trial_seconds += _seconds(record)

    def _forget(self, key: str) -> Trial | None:
        trial, since = self._running.pop(key, (None, 0.0))
        self._sum_of_starts = self._sum_of_starts - since if self._running else 0.0
        return trial

    def _reason(self, trial: Trial) -> str | None:
        now = self._clock()
        running = (len(self._running) * now - self._sum_of_starts) / self._packed
        trial_hours = (self._trial_seconds + running) / _HOUR_S
        spent: Mapping[str, tuple[float, float]] = {
            # What is spent so far, and what this trial adds at least.
            "trials": (self._trials, 1),
            "epochs": (self._epochs, trial.epochs),
            "hours": ((self._earlier_seconds + now - self._started) / _HOUR_S, 0),
            "gpu_hours": (trial_hours * self._gpus, 0),
            "trial_hours": (trial_hours, 0),
        }
        for key, (so_far, more) in spent.items():
            limit = getattr(self._budget, key)
            if limit is not None and (so_far + more > limit if more else so_far >= limit):
                return f"the budget search.budget.{key} = {limit:g} is spent"
        return None


def covered_seconds(records: Iterable[TrialRecord]) -> float:
    """Seconds during which at least one of the trials ran, by the times in their records."""
    spans = sorted(span for record in records if (span := _span(record)) is not None)
    total, end = 0.0, float("-inf")
    for begin, stop in spans:
        total += max(0.0, stop - max(begin, end))
        end = max(end, stop)
    return total


def _span(record: TrialRecord) -> tuple[float, float] | None:
    try:
        return datetime.fromisoformat(record.started).timestamp(), datetime.fromisoformat(record.finished).timestamp()
    except ValueError:
        return None


def _seconds(record: TrialRecord) -> float:
    return float(record.metrics.get("train_seconds") or sum(entry.get("seconds", 0.0) for entry in record.curve))
