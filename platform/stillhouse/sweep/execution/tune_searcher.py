"""Gives Tune one trial at a time: nothing is created, copied or written for trials that have not started."""

from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from stillhouse.spec.records import Trial
from stillhouse.sweep.execution.trainable import TRIAL_CONFIG
from stillhouse.sweep.search.trial_queue import TrialQueue


class QueueSearcher(Searcher):  # type: ignore[misc]  # ray is not typed
    """Gives the trials of a queue to Tune. The queue receives results from the reader of the records, not from Tune.

    Args:
        on_trial: called with each trial before Tune receives it.
    """

    def __init__(self, queue: TrialQueue, on_trial: Callable[[Trial], None]) -> None:
        super().__init__()
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
        return {TRIAL_CONFIG: trial.model_dump_json()}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing to do."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to store: the ledger is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to read."""
