"""Early stopping within size brackets: a student competes with students of similar size only."""

from bisect import insort
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Protocol

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from stillhouse.spec.metric import Metric
from stillhouse.spec.records import TrialRecord
from stillhouse.spec.schema import SearchSpec
from stillhouse.sweep.execution.trainable import TRIAL_CONFIG, key_of

_TIME, _SCORE = "epoch", "score"


class StoppingRule(Protocol):
    """Decides which trials of one size bracket stop early. It never sees epochs that are not comparable."""

    def stops(self, key: str, epoch: int, score: float) -> bool:
        """Records a trial's score after an epoch; returns whether the trial should stop now.

        Args:
            key: of the trial.
            score: of which a higher one is better, whatever the direction of the task's metric.
        """


class AshaRule:
    """Asynchronous successive halving (arXiv 1810.05934), as Tune implements it."""

    def __init__(self, *, max_epochs: int, grace_epochs: int, reduction_factor: float) -> None:
        self._rungs = AsyncHyperBandScheduler(
            time_attr=_TIME,
            metric=_SCORE,
            mode="max",
            # One more than the last epoch: a trial that reaches its last epoch is finished, not stopped.
            max_t=max_epochs + 1,
            grace_period=min(grace_epochs, max_epochs),
            reduction_factor=reduction_factor,
        )
        self._known: set[str] = set()

    def stops(self, key: str, epoch: int, score: float) -> bool:
        trial = SimpleNamespace(trial_id=key, config={})
        if key not in self._known:
            self._known.add(key)
            self._rungs.on_trial_add(None, trial)
        return bool(self._rungs.on_trial_result(None, trial, {_TIME: epoch, _SCORE: score}) == TrialScheduler.STOP)


class MedianRule:
    """The median stopping rule of Google Vizier (Golovin et al., KDD 2017, 3.2.1).

    A trial stops after epoch t if its best score so far is below the median of the others' mean scores up to t. Tune's own rule
    reads all results of all trials at every report, and pauses trials while they are few.

    Args:
        grace_epochs: no trial stops before this epoch.
        min_others: how many other trials must have reached epoch t.
    """

    def __init__(self, *, grace_epochs: int, min_others: int = 3) -> None:
        self._grace_epochs = grace_epochs
        self._min_others = min_others
        self._best: dict[str, float] = {}
        self._sums: dict[str, tuple[float, int]] = {}
        self._means: dict[int, list[float]] = {}

    def stops(self, key: str, epoch: int, score: float) -> bool:
        total, count = self._sums.get(key, (0.0, 0))
        self._sums[key] = total, count = total + score, count + 1
        self._best[key] = best = max(score, self._best.get(key, score))
        others = self._means.setdefault(epoch, [])
        stops = epoch >= self._grace_epochs and len(others) >= self._min_others and best < _median(others)
        insort(others, total / count)
        return stops


def make_stopping_rule(search: SearchSpec) -> StoppingRule:
    """The stopping rule that the spec names."""
    if search.scheduler == "median":
        return MedianRule(grace_epochs=search.grace_epochs)
    return AshaRule(max_epochs=search.max_epochs, grace_epochs=search.grace_epochs, reduction_factor=search.reduction_factor)


class FifoScheduler(FIFOScheduler):  # type: ignore[misc]  # ray is not typed
    """Starts trials in the order in which they came.

    Tune's own FIFO scheduler reads the list of all trials at each step of the controller to name one that waits. Where none is
    named, the controller takes the first one of its own list of waiting trials.
    """

    def choose_trial_to_run(self, tune_controller: Any) -> TuneTrial | None:
        return None


class BracketedScheduler(FifoScheduler):
    """Early stopping with one stopping rule per size bracket.

    Epochs of stages whose results do not predict the student's final result are not compared. Which trials stop depends on the
    order in which results arrive; trials that finish have the same results as without early stopping.

    Args:
        new_rule: makes the stopping rule of one bracket.
        metric: of the task; its values on the validation split are compared.
        brackets: size bracket by trial key; may grow while the sweep runs.
        history: trials that ended in an earlier run of the sweep; the rules know their curves from the start.
    """

    def __init__(
        self,
        new_rule: Callable[[], StoppingRule],
        *,
        metric: Metric,
        brackets: Mapping[str, int],
        history: Iterable[TrialRecord] = (),
    ) -> None:
        super().__init__()
        self._sign = metric.sign
        self._column = metric.column("validation")
        self._brackets = brackets
        self._rules: defaultdict[int, StoppingRule] = defaultdict(new_rule)
        for record in history:
            if record.trial.key in brackets and record.status != "failed":
                for entry in record.curve:
                    if entry.get("comparable", True):
                        self._stops(record.trial.key, entry)

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune pickles its schedulers to restore a run, which a sweep never does: it runs what the ledger lacks.
        return FIFOScheduler, ()

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        if not result.get("comparable", False):
            return str(TrialScheduler.CONTINUE)
        stops = self._stops(key_of(trial.config[TRIAL_CONFIG]), result)
        return str(TrialScheduler.STOP if stops else TrialScheduler.CONTINUE)

    def _stops(self, key: str, entry: Mapping[str, Any]) -> bool:
        return self._rules[self._brackets[key]].stops(key, entry["epoch"], self._sign * entry[self._column])


def _median(ordered: Sequence[float]) -> float:
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
