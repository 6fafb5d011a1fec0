"""A trial that several processes train: its Trainable is worker 0, and starts the others inside its own placement group."""

import threading
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, Self, TypeVar

import ray
import torch.distributed as dist
from ray.exceptions import RayError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch does not list it
from torch.distributed.distributed_c10d import _abort_process_group  # no public function does this

from stillhouse.data.datasets import ImageData
from stillhouse.device import free_memory, is_lost, is_out_of_memory
from stillhouse.distill.ddp import Workers
from stillhouse.errors import DiskFullError, InfrastructureError, TrialError, as_disk_full, first_line
from stillhouse.home_access.ray_process import own_device
from stillhouse.spec.records import Trial
from stillhouse.sweep.execution.trial_environment import TrialEnvironment
from stillhouse.sweep.execution.trial_records import failure_reason
from stillhouse.sweep.execution.trial_runner import TrialRunner
from stillhouse.user_code import user_code
from stillhouse.workers import prepare_worker

Result = TypeVar("Result")
# How long a worker waits for another: for its share of a batch, or for knowledge that is being filled.
_TIMEOUT = timedelta(minutes=10)
_GRACE_S = 15.0
"""How long the others have to return after a worker failed: the rest of a step, and the end of their connections."""
_POLL_S = 0.5
_NCCL = "nccl"
_ABORTING = threading.Lock()
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

        # Two trainers at once may not fit.
        self._runner = None
        free_memory()
        return self._answer(make)

    def run_epoch(self) -> tuple[str, str] | None:
        assert self._runner is not None, "a trial begins before its first epoch"
        return self._answer(self._runner.run_epoch)

    def _answer(self, act: Callable[[], Any]) -> tuple[str, str] | None:
        try:
            with user_code():
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
        with _FailureWatch(answers) as watch:
            try:
                with user_code():
                    result = own()
            except Exception as error:
                watch.end()
                failure, cause = error, _LOST if watch.aborted else _kind(error)
                # The other workers may be waiting for this one.
                _leave()
        reported = self._collect(answers, failed=failure is not None)
        if failure is None and not reported:
            return result
        self.broken = True
        if failure is not None and cause != _LOST:
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

    def _collect(self, answers: Sequence[Any], *, failed: bool) -> list[tuple[str, str]]:
        """What the other workers reported. Once one worker has failed, those that do not return in time are ended.

        A worker on a GPU does not notice that another one is gone: it waits for it in a kernel.
        """
        reported: list[tuple[str, str]] = []
        pending = list(answers)
        while pending:
            done, pending = ray.wait(pending, timeout=_GRACE_S if failed else None)
            if not done:
                reported += [(_LOST, "it did not return after another one had failed") for _ in pending]
                self._end(answers.index(answer) for answer in pending)
                break
            if (problem := _problem(done[0])) is not None:
                reported.append(problem)
                failed = True
        return reported

    def _end(self, places: Iterable[int]) -> None:
        for place in places:
            ray.kill(self._handles[place])


class _FailureWatch:
    """Watches the answers of other workers in a thread; when one reports a failure, this worker stops waiting for it.

    Attributes:
        aborted: whether this worker's collective calls were ended, so that an error of this worker is only the consequence.
    """

    def __init__(self, answers: Sequence[Any]) -> None:
        self.aborted = False
        self._answers = list(answers)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.end()

    def end(self) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        pending = self._answers
        while pending and not self._over.is_set():
            done, pending = ray.wait(pending, timeout=_POLL_S)
            if done and _problem(done[0]) is not None:
                self.aborted = _abort()
                return


class WorkerGroupError(TrialError):
    """The trial failed on another worker; the message is the reason for the ledger."""


def _join(store: TCPStore, workers: Workers) -> None:
    backend = _NCCL if own_device() == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=workers.rank, world_size=workers.size, timeout=_TIMEOUT)


def _problem(answer: Any) -> tuple[str, str] | None:
    """What went wrong in another worker; None if nothing did."""
    try:
        problem: tuple[str, str] | None = ray.get(answer)
    except RayError as error:
        return _INFRASTRUCTURE, first_line(error)
    return problem


def _leave() -> None:
    """Closes this process's connections, so that no other worker waits for it."""
    if not _abort() and dist.is_initialized():
        dist.destroy_process_group()


def _abort() -> bool:
    """Whether the process group was one of NCCL, which is aborted: its kernels wait for workers that are gone.

    Closing it in order would wait for these kernels too. Other backends report a worker that is gone by themselves.
    """
    with _ABORTING:
        if not dist.is_initialized() or dist.get_backend() != _NCCL:
            return False
        _abort_process_group()
        return True


def _kind(error: BaseException) -> str:
    if isinstance(error, InfrastructureError | OSError) or is_lost():
        return _INFRASTRUCTURE
    if is_out_of_memory(error):
        return _TRIAL
    # Gloo raises a plain RuntimeError when the other end has closed.
    closed = isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo", "Connection", "NCCL"))
    return _LOST if closed or isinstance(error, dist.DistError) else _TRIAL
