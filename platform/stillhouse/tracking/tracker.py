"""The only writer of a running sweep: a daemon thread with a queue, which never blocks or fails the sweep."""

import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from stillhouse.spec.records import SweepFacts, TrialRecord
from stillhouse.spec.secret_masking import mask_text
from stillhouse.tracking.locations import locate
from stillhouse.tracking.store import RejectedError, Settings, UnreachableError
from stillhouse.tracking.writer import SweepWriter

# A cold SQLite schema takes 3 s, on a machine full of trials several times that.
START_TIMEOUT_S = 30.0
CLOSE_TIMEOUT_S = 5.0
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0
_LOOK_S = 0.02


@dataclass
class _Finish:
    facts: SweepFacts
    artifacts: Mapping[str, Path]
    best: Mapping[str, float]
    done: threading.Event = field(default_factory=threading.Event)
    complete: bool = False


class Tracker:
    """Writes a sweep to MLflow while it runs.

    Records wait in memory while the store is down and are written when it is back. A record that could not be written by
    the end is in the ledger, from which `sync` writes it. One tracker serves one sweep.

    Until `close`, MLflow's environment variables for timeouts, retries and telemetry are set in this process where the
    user has not set them.
    """

    def __init__(self, uri: str | None, *, home: Path, experiment: str) -> None:
        """Prepares; nothing is opened before `start_sweep`.

        Args:
            uri: the value of `tracking.uri`; None is an SQLite file under `home`.
            home: folder of `mlflow.db` and `mlartifacts`.
            experiment: name of the MLflow experiment; made when missing.
        """
        self.location = locate(uri, home)
        self.experiment = experiment
        self._changed = threading.Condition()
        self._pending: deque[TrialRecord] = deque()
        self._facts: SweepFacts | None = None
        self._writer: SweepWriter | None = None
        self._finish: _Finish | None = None
        self._opened = threading.Event()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._disabled = False
        self._ended = False
        self._lost = 0
        self._outages = 0
        self._retry_at = 0.0

    @property
    def uri(self) -> str:
        """The store's address, without credentials."""
        return self.location.shown

    @property
    def run_id(self) -> str | None:
        """The parent run, once the store was reached."""
        return self._writer.run_id if self._writer else None

    @property
    def experiment_id(self) -> str | None:
        return self._writer.experiment_id if self._writer else None

    def start_sweep(self, facts: SweepFacts) -> str | None:
        """Finds or makes the parent run of this home's sweep `facts.name`.

        Returns:
            its id; None when the store cannot be reached: then there is a warning on stderr, and the sweep goes on.
        """
        if self._thread is not None:
            raise RuntimeError("a tracker follows one sweep: start_sweep was called before")
        self._facts = facts
        Settings.apply()
        self._thread = threading.Thread(target=self._work, name="stillhouse-tracking", daemon=True)
        self._thread.start()
        if not self._opened.wait(START_TIMEOUT_S):
            self._warn(f"opening {self.uri} takes long; the sweep goes on, tracking follows")
        return self.run_id

    def know(self, facts: SweepFacts) -> None:
        """Replaces the facts of the sweep.

        A trial is compared with the teachers that are known when it is written; comparisons with teachers that become known
        later are added at the end, one request for each trial.
        """
        self._facts = facts
        if self._writer is not None:
            self._writer.know(facts)

    def log_trial(self, record: TrialRecord) -> None:
        """Queues the child run of `record`; returns at once."""
        with self._changed:
            if not self._disabled and not self._stopping:
                self._pending.append(record)
                self._changed.notify()

    def drain(self, timeout_s: float = 60) -> dict[str, str]:
        """Waits until the queued records are in the store, unless the store is down.

        Returns:
            the address of each run in the store, by trial key, and of the parent by the empty key.
        """
        deadline = time.monotonic() + timeout_s
        while (
            self._pending and self._thread is not None and not (self._disabled or self._outages) and time.monotonic() < deadline
        ):
            time.sleep(_LOOK_S)
        return self._writer.addresses() if self._writer is not None else {}

    def finish(
        self,
        facts: SweepFacts,
        artifacts: Mapping[str, Path],
        timeout_s: float = 60,
        *,
        best: Mapping[str, float] = MappingProxyType({}),
    ) -> bool:
        """Writes the queued records, then summary, spec and files, and ends the parent run.

        Args:
            facts: as they are at the end.
            artifacts: files or folders to store with the parent run, by name (see `SweepWriter.finish`).
            timeout_s: the longest time to wait.
            best: numbers of the best student of all sizes; see `sweep_points`.

        Returns:
            whether all of this sweep is in the store; if not, `sync` writes the rest from the ledger.
        """
        request = _Finish(facts, dict(artifacts), dict(best))
        with self._changed:
            if self._thread is None or self._disabled or self._stopping:
                return False
            self._finish = request
            self._changed.notify()
        if not request.done.wait(timeout_s):
            self._warn(f"{len(self._pending)} trials are not in {self.uri} after {timeout_s:.0f} s")
        return request.complete

    def close(self) -> None:
        """Stops the writer. Without an earlier `finish` the parent run is marked as killed, if the store answers quickly."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(CLOSE_TIMEOUT_S)
            self._thread = None
            Settings.release()

    def _work(self) -> None:
        while self._next():
            try:
                self._step()
                self._outages = 0
            except UnreachableError as error:
                self._pause(error)
            except RejectedError as error:
                self._give_up(error)
            except Exception as error:
                self._give_up(RejectedError(f"{type(error).__name__}: {mask_text(str(error))}"))
            self._opened.set()
        if self._writer is not None and not self._ended:
            try:
                self._writer.end("KILLED")
            except (UnreachableError, RejectedError):
                return

    def _next(self) -> bool:
        """Waits for work; False when the tracker closes."""
        with self._changed:
            while not self._stopping:
                wait_s = self._retry_at - time.monotonic()
                has_work = self._finish is not None or (not self._disabled and (self._writer is None or bool(self._pending)))
                # A sweep that is ending does not wait until the pause is over.
                if has_work and (wait_s <= 0 or self._finish is not None):
                    return True
                self._changed.wait(max(wait_s, 0.01) if has_work else None)
            return False

    def _step(self) -> None:
        """The next request, in order."""
        if self._disabled:
            self._answer(complete=False)
        elif self._writer is None:
            assert self._facts is not None
            self._writer = SweepWriter(self.location, self.experiment, self._facts)
            # The facts may have been replaced while the store was opened.
            self._writer.know(self._facts)
        elif self._pending:
            self._writer.write_trial(self._pending[0])
            self._pending.popleft()
        elif self._finish is not None:
            missing = self._writer.finish(self._finish.facts, self._finish.artifacts, self._finish.best)
            for sentence in missing:
                self._warn(sentence)
            self._ended = True
            self._answer(complete=not missing and self._lost == 0)

    def _pause(self, error: UnreachableError) -> None:
        """The store is down: waits, longer each time, unless the sweep is ending."""
        self._outages += 1
        self._retry_at = time.monotonic() + min(_FIRST_PAUSE_S * 2 ** (self._outages - 1), _LONGEST_PAUSE_S)
        if self._outages == 1:
            self._warn(f"{error}; the sweep goes on, tracking is tried again and `stillhouse sync` completes it later")
        self._answer(complete=False)

    def _give_up(self, error: RejectedError) -> None:
        """The store refuses: this record, or everything when it cannot be opened."""
        if self._writer is None:
            self._disabled = True
            self._pending.clear()
            self._warn(f"{error}; this sweep is not tracked; `stillhouse sync` writes it once the cause is removed")
        elif self._pending:
            record = self._pending.popleft()
            self._lost += 1
            if self._lost == 1:
                self._warn(f"trial {record.trial.key} was refused: {error}")
            return
        else:
            self._warn(str(error))
        self._answer(complete=False)

    def _answer(self, *, complete: bool) -> None:
        with self._changed:
            if self._finish is not None:
                self._finish.complete = complete
                self._finish.done.set()
                self._finish = None

    def _warn(self, sentence: str) -> None:
        sys.stderr.write(f"warning: tracking: {sentence}\n")
