"""A trial that several processes train: its Trainable is worker 0, and starts the others inside its own placement group."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import ray
import torch
import torch.distributed as dist
from ray.exceptions import RayError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch does not list it

from stillhouse.data.datasets import ImageData
from stillhouse.distill.ddp import Workers
from stillhouse.errors import DiskFullError, InfrastructureError, TrialError, as_disk_full, first_line
from stillhouse.home_access.ray_process import own_device
from stillhouse.spec.records import Trial
from stillhouse.sweep.execution.trial_environment import TrialEnvironment
from stillhouse.sweep.execution.trial_records import failure_reason
from stillhouse.sweep.execution.trial_runner import TrialRunner
from stillhouse.workers import prepare_worker

Result = TypeVar("Result")
# How long a worker waits for another: for its share of a batch, or for knowledge that is being filled.
_TIMEOUT = timedelta(minutes=10)
_TRIAL, _DISK_FULL, _INFRASTRUCTURE, _LOST = "trial", "disk full", "infrastructure", "lost"


class GroupWorker:
    """Worker 1 or higher of a trial, in an actor. Its methods return what went wrong instead of raising it."""

    def __init__(self, rank: int, environment: TrialEnvironment, data: list[Any]) -> None:
        prepare_worker(environment.import_paths, environment.threads, environment.method_folders, environment.gpu_share)
        self._workers = Workers(rank, environment.workers)
        self._environment = environment
        self._data = ImageData.from_arrays(*ray.get(data[0]))
        self._runner: TrialRunner | None = None

    def join(self, host: str, port: int) -> None:
        """Connects to the other workers through worker 0."""
        _join(TCPStore(host, port, self._workers.size, is_master=False, timeout=_TIMEOUT), self._workers)

    def begin(self, trial: str) -> tuple[str, str] | None:
        def make() -> None:
            self._runner = TrialRunner(
                Trial.model_validate_json(trial), self._environment, self._data, device=own_device(), workers=self._workers
            )

        self._runner = None
        return self._answer(make)

    def run_epoch(self) -> tuple[str, str] | None:
        assert self._runner is not None, "a trial begins before its first epoch"
        return self._answer(self._runner.run_epoch)

    def _answer(self, act: Callable[[], Any]) -> tuple[str, str] | None:
        try:
            act()
        except Exception as error:
            _leave()
            if (full := as_disk_full(error, self._environment.folder)) is not None:
                return _DISK_FULL, str(full)
            return _kind(error), str(error) if isinstance(error, InfrastructureError) else failure_reason(error)
        return None


class WorkerGroup:
    """The other workers of this process's trials, used by worker 0. They train one trial after the other.

    Raises:
        InfrastructureError: they cannot be started.
    """

    def __init__(self, environment: TrialEnvironment, data: list[Any]) -> None:
        self.workers = Workers(0, environment.workers)
        self.broken = False
        group = ray.util.get_current_placement_group()
        shares = group.bundle_specs
        peer = ray.remote(GroupWorker)
        self._handles = [
            peer.options(
                num_cpus=shares[rank].get("CPU", 0),
                num_gpus=shares[rank].get("GPU", 0),
                max_restarts=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
            ).remote(rank, environment, data)
            for rank in range(1, self.workers.size)
        ]
        host = ray.util.get_node_ip_address()
        try:
            store = TCPStore(host, 0, self.workers.size, is_master=True, wait_for_workers=False, timeout=_TIMEOUT)
            joining = [handle.join.remote(host, store.port) for handle in self._handles]
            _join(store, self.workers)
            ray.get(joining)
        except (RayError, RuntimeError) as error:
            self.close()
            raise InfrastructureError(
                f"the {self.workers.size} workers of a trial could not connect: {first_line(error)}"
            ) from error

    def run_on_all(self, call: str, *arguments: Any, own: Callable[[], Result]) -> Result:
        """Runs the method `call` of all other workers while `own` runs here; returns the result of `own`.

        Raises:
            InfrastructureError: a worker is gone, or reported an infrastructure error.
            DiskFullError: the disk of another worker is full.
            WorkerGroupError: the trial failed on another worker.
            Exception: what `own` raised, if that is the cause.
        """
        answers = [getattr(handle, call).remote(*arguments) for handle in self._handles]
        failure: Exception | None = None
        try:
            result = own()
        except Exception as error:
            failure = error
            # The other workers may be waiting for this one.
            _leave()
        reported = self._collect(answers)
        if failure is None and not reported:
            return result
        self.broken = True
        if failure is not None and _kind(failure) != _LOST:
            raise failure
        for kind, reason in sorted(reported, key=lambda each: (_TRIAL, _DISK_FULL, _INFRASTRUCTURE, _LOST).index(each[0])):
            if kind == _TRIAL:
                raise WorkerGroupError(reason) from failure
            if kind == _DISK_FULL:
                raise DiskFullError(reason) from failure
            raise InfrastructureError(f"the workers of a trial lost each other: {reason}") from failure
        raise InfrastructureError(f"the workers of a trial lost each other: {first_line(failure)}") from failure

    def close(self) -> None:
        """Ends the other workers."""
        _leave()
        for handle in self._handles:
            ray.kill(handle)

    def _collect(self, answers: Sequence[Any]) -> list[tuple[str, str]]:
        reported = []
        for answer in answers:
            try:
                reported.append(ray.get(answer))
            except RayError as error:
                reported.append((_INFRASTRUCTURE, first_line(error)))
        return [each for each in reported if each is not None]


class WorkerGroupError(TrialError):
    """The trial failed on another worker; the message is the reason for the ledger."""


def _join(store: TCPStore, workers: Workers) -> None:
    backend = "nccl" if own_device() == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=workers.rank, world_size=workers.size, timeout=_TIMEOUT)


def _leave() -> None:
    """Closes this process's connections, so that no other worker waits for it."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _kind(error: BaseException) -> str:
    if isinstance(error, InfrastructureError | OSError):
        return _INFRASTRUCTURE
    if isinstance(error, torch.OutOfMemoryError):
        return _TRIAL
    # Gloo raises a plain RuntimeError when the other end has closed.
    closed = isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo", "Connection", "NCCL"))
    return _LOST if closed or isinstance(error, dist.DistError) else _TRIAL
