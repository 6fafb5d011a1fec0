"""Early stopping within size brackets: a small student competes with small ones."""

import math
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from stillhouse.spec.records import TrialRecord
from stillhouse.sweep.trainable import TRIAL_KEY

METRIC = "validation_accuracy"
_TIME = "epoch"


def size_bracket(parameters: float) -> int:
    """The bracket of a student: parameter counts within a factor of about four share one."""
    return round(math.log(max(parameters, 1), 4))


class BracketedAsha(FIFOScheduler):  # type: ignore[misc]  # ray is not typed
    """Asynchronous successive halving (arXiv 1810.05934), one ladder per size bracket.

    Results of stages that say nothing about the student's end are not compared. Which trials stop depends on the order in
    which results arrive; the trials that finish have the same results as without it.

    Args:
        brackets: size bracket by trial key.
        grace_epochs: no trial stops before it has run this many.
        history: finished trials of an earlier run of the sweep; they stand on the ladders from the start.
    """

    def __init__(
        self,
        *,
        brackets: Mapping[str, int],
        max_epochs: int,
        grace_epochs: int,
        reduction_factor: float,
        history: Iterable[TrialRecord] = (),
    ) -> None:
        super().__init__()
        self._brackets = brackets
        self._ladders = {
            bracket: AsyncHyperBandScheduler(
                time_attr=_TIME,
                metric=METRIC,
                mode="max",
                # One beyond the end: a finished trial is done, not stopped.
                max_t=max_epochs + 1,
                grace_period=min(grace_epochs, max_epochs),
                reduction_factor=reduction_factor,
            )
            for bracket in set(brackets.values())
        }
        for record in history:
            self._replay(record)

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        self._ladder(trial.config[TRIAL_KEY]).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        if not result.get("comparable", False):
            return str(TrialScheduler.CONTINUE)
        return str(self._ladder(trial.config[TRIAL_KEY]).on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> None:
        if result.get("comparable", False):
            self._ladder(trial.config[TRIAL_KEY]).on_trial_complete(tune_controller, trial, result)

    def _ladder(self, trial_json: str) -> AsyncHyperBandScheduler:
        return self._ladders[self._brackets[key_of(trial_json)]]

    def _replay(self, record: TrialRecord) -> None:
        bracket = self._brackets.get(record.trial.key)
        if bracket is None or record.status == "failed":
            return
        stand_in = SimpleNamespace(trial_id=f"earlier-{record.trial.key}", config={})
        ladder = self._ladders[bracket]
        ladder.on_trial_add(None, stand_in)
        for entry in record.curve:
            ladder.on_trial_result(None, stand_in, {_TIME: entry["epoch"], METRIC: entry[METRIC]})


def key_of(trial_json: str) -> str:
    """The trial's key, read off its JSON without building the object."""
    import json

    return str(json.loads(trial_json)["key"])
