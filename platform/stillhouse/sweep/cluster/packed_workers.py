"""The worker processes of a run whose trials are packed, and which trial is in which of them."""

import secrets
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import ray
from ray.exceptions import GetTimeoutError, RayError

from stillhouse.spec.schema import TrialResources
from stillhouse.sweep.cluster.placement import ray_options
from stillhouse.sweep.execution.packed_worker import PackedWorker
from stillhouse.sweep.execution.trial_environment import TrialEnvironment

_CLOSE_TIMEOUT_S = 60.0


class Places:
    """Which of `num_workers` workers each running trial is in: always the one with the fewest."""

    def __init__(self, num_workers: int) -> None:
        self._trials: list[set[str]] = [set() for _ in range(num_workers)]

    def take(self, trial_id: str) -> int:
        """The number of the worker for a new trial."""
        number = min(range(len(self._trials)), key=lambda each: len(self._trials[each]))
        self._trials[number].add(trial_id)
        return number

    def leave(self, trial_id: str) -> None:
        for trials in self._trials:
            trials.discard(trial_id)


class PackedWorkers:
    """As many workers as there are places for, each with the claim of `trial_resources`, for the life of a run."""

    def __init__(self, number: int, resources: TrialResources, environment: TrialEnvironment, data_reference: Any) -> None:
        actor = ray.remote(PackedWorker).options(
            num_cpus=resources.cpu,
            num_gpus=resources.gpu,
            max_restarts=-1,
            # Every trial may wait for its turn while another is ended or begun, and any caller may ask for suspects.
            max_concurrency=3 * resources.packed + 2,
            **ray_options(resources),
        )
        self.handles = [actor.remote(environment, [data_reference], secrets.token_hex(8)) for _ in range(number)]
        self.places = Places(number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        with suppress(RayError, GetTimeoutError):
            ray.get([handle.close.remote() for handle in self.handles], timeout=_CLOSE_TIMEOUT_S)
        for handle in self.handles:
            ray.kill(handle)
