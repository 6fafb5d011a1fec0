"""Gives Tune one trial at a time: nothing is created, copied or written for trials that have not started."""

from collections.abc import Callable
from typing import Any, Protocol

from ray.tune.search import Searcher

from stillhouse.spec.records import Trial
from stillhouse.sweep.execution.packed_trial import PLACE_CONFIG
from stillhouse.sweep.execution.trainable import TRIAL_CONFIG
from stillhouse.sweep.search.trial_queue import TrialQueue


class TrialPlaces(Protocol):
    """Which packed worker runs which trial."""

    def take(self, trial_id: str) -> int:
        """The number of the worker for a new trial."""

    def leave(self, trial_id: str) -> None:
        """The trial ended."""


class QueueSearcher(Searcher):  # type: ignore[misc]  # ray is not typed
    """Gives the trials of a queue to Tune. The queue receives results from the reader of the records, not from Tune.

    Args:
        on_trial: called with each trial before Tune receives it.
        places: of packed trials; None where each trial has a process of its own.
    """

    def __init__(self, queue: TrialQueue, on_trial: Callable[[Trial], None], places: TrialPlaces | None = None) -> None:
        super().__init__()
        self._places = places
        self._queue = queue
        self._on_trial = on_trial

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune pickles its searchers to restore a run, which a sweep never does: it runs what the ledger lacks.
        return Searcher, ()

    def suggest(self, trial_id: str) -> Any:
        trial = self._queue.next()
        if trial is None:
            return Searcher.FINISHED if self._queue.finished else None
        self._on_trial(trial)
        config: dict[str, Any] = {TRIAL_CONFIG: trial.model_dump_json()}
        return config if self._places is None else config | {PLACE_CONFIG: self._places.take(trial_id)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if self._places is not None:
            self._places.leave(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to store: the ledger is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to read."""
