"""One run of Ray Tune: its trials, their resources, and when it ends. Nothing that Tune stores is read again."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from ray import tune
from ray.tune.schedulers import TrialScheduler

from stillhouse.spec.schema import TrialResources
from stillhouse.sweep.cluster.placement import worker_bundles
from stillhouse.sweep.cluster.ray_internals import HEAD_RESOURCE, keep_secrets_out_of_trials
from stillhouse.sweep.cluster.trial_watch import TrialWatch
from stillhouse.sweep.execution.packed_trial import PackedTrial
from stillhouse.sweep.execution.trainable import TRIAL_CONFIG, DistillTrial, key_of
from stillhouse.sweep.execution.trial_environment import TrialEnvironment
from stillhouse.sweep.execution.tune_searcher import QueueSearcher

RESTARTS_OF_A_TRIAL = 3
_WAITING_SHARE = 1e-3
"""Of the resource that only the head node has, for each process of Tune whose trial runs in a packed worker."""


def make_tuner(
    environment: TrialEnvironment,
    data_reference: Any,
    resources: TrialResources,
    *,
    searcher: QueueSearcher,
    scheduler: TrialScheduler,
    watch: TrialWatch,
    num_trials: int,
    max_concurrent: int,
    should_stop: Callable[[], bool],
    scratch: str,
    packed_workers: Sequence[Any] = (),
) -> tune.Tuner:
    """A tuner that runs the trials of `searcher`.

    Args:
        data_reference: of the data set in Ray's object store.
        resources: of each trial.
        watch: is called back with every event of a trial.
        num_trials: at most.
        should_stop: called often; once it is true, running trials stop after their epoch and no other one starts.
        packed_workers: the actors that run the trials; without them, each trial runs in the process that Tune starts for it.
        scratch: a folder for what Tune writes. A sweep resumes from its ledger, so other nodes need not see it.
    """
    keep_secrets_out_of_trials()
    if packed_workers:
        # The workers have the claim; the processes of Tune only wait. Tune needs a claim that is not zero, and the workers may
        # take every core.
        waiting = tune.PlacementGroupFactory([{HEAD_RESOURCE: _WAITING_SHARE}])
        trainable = tune.with_resources(tune.with_parameters(PackedTrial, workers=list(packed_workers)), waiting)
    else:
        bundles = worker_bundles(resources)
        labels = {"bundle_label_selector": [resources.labels] * len(bundles)} if resources.labels else {}
        trainable = tune.with_resources(
            tune.with_parameters(DistillTrial, environment=environment, data=[data_reference]),
            tune.PlacementGroupFactory(bundles, strategy="STRICT_PACK", **labels),
        )
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            num_samples=max(1, num_trials),
            scheduler=scheduler,
            max_concurrent_trials=max_concurrent,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=f"run-{time.time_ns()}",
            storage_path=scratch,
            verbose=0,
            callbacks=[watch],
            stop=_StopAll(should_stop),
            # Trials write their own checkpoints, which any later run finds by the trials' keys.
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=RESTARTS_OF_A_TRIAL),
        ),
    )


class _StopAll(tune.Stopper):  # type: ignore[misc]  # ray is not typed
    """Ends a whole run of Tune: running trials stop after their current epoch, and no other one starts."""

    def __init__(self, should_stop: Callable[[], bool]) -> None:
        self._should_stop = should_stop

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune pickles it to restore a run, which a sweep never does.
        return tune.stopper.NoopStopper, ()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._should_stop()


def _trial_name(trial: Any) -> str:
    return key_of(trial.config[TRIAL_CONFIG])
