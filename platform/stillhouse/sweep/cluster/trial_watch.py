"""Follows trials in the driver: progress, records of stopped trials, and trials that the infrastructure lost."""

import json
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune

from stillhouse.errors import DiskFullError, InfrastructureError, as_disk_full, last_line
from stillhouse.spec.metric import Metric
from stillhouse.spec.records import Trial, TrialRecord
from stillhouse.sweep.cluster.ray_internals import TUNE_ATTEMPT, WORKER_DEATHS
from stillhouse.sweep.execution.trainable import DISK_FULL, TRIAL_CONFIG, key_of
from stillhouse.sweep.home.ledger import Ledger, now
from stillhouse.sweep.progress import Progress

WORKER_DIED = "its worker died"


@dataclass(frozen=True)
class LostTrial:
    """A trial that has no record because the infrastructure failed it.

    Attributes:
        deaths: how many of its last workers, not their nodes, died in the same epoch.
        epoch: the last epoch before those deaths.
    """

    key: str
    reason: str
    deaths: int = 0
    epoch: int = 0


class TrialWatch(tune.Callback):  # type: ignore[misc]  # ray is not typed
    """Receives Tune's events in the driver: shows progress, passes records on, writes the records of stopped trials."""

    def __init__(
        self,
        metric: Metric,
        parameters: Callable[[Trial], int],
        ledger: Ledger,
        progress: Progress,
        *,
        on_record: Callable[[TrialRecord], None],
        on_loss: Callable[[str], None],
    ) -> None:
        self._trials: dict[str, Trial] = {}
        self._on_loss = on_loss
        self._column = metric.column("validation")
        self._parameters = parameters
        self._ledger = ledger
        self._progress = progress
        self._on_record = on_record
        self._curves: dict[str, dict[int, dict[str, Any]]] = {}
        self._started: dict[str, str] = {}
        self._open: dict[str, str] = {}
        self._epochs: Counter[str] = Counter()
        self._deaths: dict[str, tuple[int, int]] = {}
        self.fatal_error: InfrastructureError | None = None
        """Why the sweep must end: a disk is full, or records cannot be written."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune pickles its callbacks to restore a run, which a sweep never does: it runs what the ledger lacks.
        return tune.Callback, ()

    def add(self, trial: Trial) -> None:
        """Registers a trial before Tune receives it."""
        self._trials[trial.key] = trial
        self._open[trial.key] = "it was never started"

    def lost(self) -> list[LostTrial]:
        """The trials without a record, each with the reason."""
        return [LostTrial(key, reason, *self._deaths.get(key, ())) for key, reason in self._open.items()]

    def collect(self) -> None:
        """Reads the records of trials that ended after Tune's last event."""
        for key in list(self._open):
            if (record := self._ledger.read(key)) is not None:
                self._done(record)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        key = key_of(trial.config[TRIAL_CONFIG])
        self._started.setdefault(key, now())
        self._open[key] = "it was interrupted"
        self._progress.trial_started(self._trials[key])

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        key = result["key"]
        if result["status"] == DISK_FULL:
            self.fatal_error = self.fatal_error or DiskFullError(result["reason"])
        curve = self._curves.setdefault(key, {})
        for entry in [*json.loads(result.get("curve", "[]")), *([json.loads(result["entry"])] if "entry" in result else [])]:
            curve[entry["epoch"]] = entry
        if "epoch" in result:
            self._epochs[key] = result["epoch"]
            self._progress.trial_epoch(key, result["epoch"], result.get(self._column))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        key = key_of(trial.config[TRIAL_CONFIG])
        record = self._ledger.read(key)
        status = trial.last_result.get("status")
        if record is None and status == DISK_FULL:
            return
        if record is None and status in ("finished", "failed"):
            # Its record was written: this trial was not stopped early.
            self._lose(key, "its record is missing or damaged")
            return
        if record is None:
            record = self._stopped(key)
            try:
                self._ledger.write(record)
            except OSError as error:
                # Tune takes an error of a callback for one of the trial and waits for the trial forever.
                full = as_disk_full(error, self._ledger.folder)
                reason = f"the record of a trial cannot be written: {full or error}"
                self.fatal_error = self.fatal_error or (InfrastructureError(reason) if full is None else DiskFullError(reason))
                return
        self._done(record)

    def _done(self, record: TrialRecord) -> None:
        self._open.pop(record.trial.key, None)
        self._curves.pop(record.trial.key, None)
        self._progress.trial_done(record)
        self._on_record(record)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._note_error(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._lose(key_of(trial.config[TRIAL_CONFIG]), last_line(self._note_error(trial), WORKER_DIED))

    def _note_error(self, trial: Any) -> str:
        """Counts the deaths of a trial's workers; returns the text of its last error."""
        key = key_of(trial.config[TRIAL_CONFIG])
        text = ""
        with suppress(OSError):
            text = Path(trial.error_file).read_text(encoding="utf-8").rpartition(TUNE_ATTEMPT)[2]
        died = any(sign in text for sign in WORKER_DEATHS)
        deaths, epoch = self._deaths.get(key, (0, self._epochs[key]))
        # A death in another epoch than the last one has another cause than the trial, which repeats itself exactly.
        self._deaths[key] = (deaths if epoch == self._epochs[key] else 0) + 1 if died else 0, self._epochs[key]
        return text

    def _lose(self, key: str, reason: str) -> None:
        self._open[key] = reason
        self._on_loss(key)
        self._progress.note(f"{key} was lost: {reason}")

    def _stopped(self, key: str) -> TrialRecord:
        curve = [entry for _, entry in sorted(self._curves.get(key, {}).items())]
        metrics = {"parameters": float(self._parameters(self._trials[key]))}
        if curve:
            metrics |= {name: value for name, value in curve[-1].items() if name == self._column}
            metrics["train_seconds"] = sum(entry["seconds"] for entry in curve)
        return TrialRecord(
            trial=self._trials[key],
            status="stopped",
            reason="stopped early: worse than students of similar size",
            epochs_run=len(curve),
            metrics=metrics,
            curve=curve,
            started=self._started.get(key, ""),
            finished=now(),
        )
