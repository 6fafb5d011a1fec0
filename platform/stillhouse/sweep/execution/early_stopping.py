"""Early stopping within size brackets: a small student competes with small ones."""

from bisect import insort
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Protocol

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from stillhouse.spec.records import TrialRecord
from stillhouse.spec.schema import SearchSpec
from stillhouse.sweep.execution.trainable import TRIAL_CONFIG, key_of

METRIC = "validation_accuracy"
_TIME = "epoch"


class StoppingRule(Protocol):
    """Which trials of one size lag behind. Trials are known by their keys; epochs that are not comparable never get here."""

    def stops(self, key: str, epoch: int, accuracy: float) -> bool:
        """Takes in the accuracy of a trial behind an epoch; whether the trial should stop now."""


class AshaRule:
    """Asynchronous successive halving (arXiv 1810.05934), as Tune has it."""

    def __init__(self, *, max_epochs: int, grace_epochs: int, reduction_factor: float) -> None:
        self._rungs = AsyncHyperBandScheduler(
            time_attr=_TIME,
            metric=METRIC,
            mode="max",
            # One beyond the end: a finished trial is done, not stopped.
            max_t=max_epochs + 1,
            grace_period=min(grace_epochs, max_epochs),
            reduction_factor=reduction_factor,
        )
        self._known: set[str] = set()

    def stops(self, key: str, epoch: int, accuracy: float) -> bool:
        stand_in = SimpleNamespace(trial_id=key, config={})
        if key not in self._known:
            self._known.add(key)
            self._rungs.on_trial_add(None, stand_in)
        return bool(self._rungs.on_trial_result(None, stand_in, {_TIME: epoch, METRIC: accuracy}) == TrialScheduler.STOP)


class MedianRule:
    """The median stopping rule of Google Vizier (Golovin et al., KDD 2017, 3.2.1).

    A trial stops behind epoch t if its best accuracy so far is below the median of the others' mean accuracies up to t.
    Tune's own rule walks through all results of all trials at every report, and pauses trials while they are few.

    Args:
        least: how many others must have come to epoch t.
    """

    def __init__(self, *, grace_epochs: int, least: int = 3) -> None:
        self._grace_epochs = grace_epochs
        self._least = least
        self._best: dict[str, float] = {}
        self._sums: dict[str, tuple[float, int]] = {}
        self._means: dict[int, list[float]] = {}

    def stops(self, key: str, epoch: int, accuracy: float) -> bool:
        total, count = self._sums.get(key, (0.0, 0))
        self._sums[key] = total, count = total + accuracy, count + 1
        self._best[key] = best = max(accuracy, self._best.get(key, accuracy))
        others = self._means.setdefault(epoch, [])
        behind = epoch >= self._grace_epochs and len(others) >= self._least and best < _middle(others)
        insort(others, total / count)
        return behind


def make_stopping_rule(search: SearchSpec) -> StoppingRule:
    """The rule that the spec names."""
    if search.scheduler == "median":
        return MedianRule(grace_epochs=search.grace_epochs)
    return AshaRule(max_epochs=search.max_epochs, grace_epochs=search.grace_epochs, reduction_factor=search.reduction_factor)


class FifoScheduler(FIFOScheduler):  # type: ignore[misc]  # ray is not typed
    """Trials start in the order in which they came.

    Tune's own FIFO scheduler looks at every trial there ever was, at each step of the controller, to name one that waits.
    Where none is named the controller takes the first of its own list of those that wait.
    """

    def choose_trial_to_run(self, tune_controller: Any) -> TuneTrial | None:
        return None


class BracketedScheduler(FifoScheduler):
    """Early stopping with one ladder per size bracket.

    Results of stages that say nothing about the student's end are not compared. Which trials stop depends on the order in
    which results arrive; the trials that finish have the same results as without it.

    Args:
        brackets: size bracket by trial key; may grow while the sweep runs.
        history: trials that an earlier run of the sweep ended; they stand on the ladders from the start.
    """

    def __init__(
        self, new_ladder: Callable[[], StoppingRule], *, brackets: Mapping[str, int], history: Iterable[TrialRecord] = ()
    ) -> None:
        super().__init__()
        self._brackets = brackets
        self._ladders: defaultdict[int, StoppingRule] = defaultdict(new_ladder)
        for record in history:
            if record.trial.key in brackets and record.status != "failed":
                for entry in record.curve:
                    if entry.get("comparable", True):
                        self._stops(record.trial.key, entry["epoch"], entry[METRIC])

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune pickles its schedulers to restore a run, which a sweep never does: it runs what the ledger lacks.
        return FIFOScheduler, ()

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        if not result.get("comparable", False):
            return str(TrialScheduler.CONTINUE)
        stops = self._stops(key_of(trial.config[TRIAL_CONFIG]), result[_TIME], result[METRIC])
        return str(TrialScheduler.STOP if stops else TrialScheduler.CONTINUE)

    def _stops(self, key: str, epoch: int, accuracy: float) -> bool:
        return self._ladders[self._brackets[key]].stops(key, epoch, accuracy)


def _middle(ordered: Sequence[float]) -> float:
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
