"""The cluster as a sweep uses it: connecting, sharing the data, starting teachers, running trials with Ray Tune."""

import logging
import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "auto")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
# Tune's own state is never read again, and writing it takes longer with every trial.
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1e9")

import ray
from ray.exceptions import RayError

from stillhouse.data.datasets import ImageData
from stillhouse.data.views import Views
from stillhouse.errors import InfrastructureError, last_line
from stillhouse.home_access.home_address import HomeAddress, shared_home
from stillhouse.home_access.keeper import start_keeper
from stillhouse.home_access.leases import LeaseHolder
from stillhouse.models.size_brackets import size_bracket
from stillhouse.spec.metric import Metric
from stillhouse.spec.records import StudentChoice, Trial, TrialRecord
from stillhouse.spec.schema import SweepSpec
from stillhouse.sweep.cluster.cluster_nodes import addable_nodes, nodes_of_cluster
from stillhouse.sweep.cluster.connection import connect
from stillhouse.sweep.cluster.node_checks import check_nodes
from stillhouse.sweep.cluster.packed_workers import PackedWorkers
from stillhouse.sweep.cluster.placement import Placement, place_sweep, ray_options
from stillhouse.sweep.cluster.ray_internals import ray_servers
from stillhouse.sweep.cluster.ray_sessions import RaySession
from stillhouse.sweep.cluster.ray_watch import RayWatch
from stillhouse.sweep.cluster.teacher_actors import RunningTeacher
from stillhouse.sweep.cluster.teacher_starter import TeacherStarter
from stillhouse.sweep.cluster.trial_watch import WORKER_DIED, LostTrial, TrialWatch
from stillhouse.sweep.cluster.tune_run import make_tuner
from stillhouse.sweep.execution.early_stopping import BracketedScheduler, FifoScheduler, make_stopping_rule
from stillhouse.sweep.execution.exported_latency import measure_exported
from stillhouse.sweep.execution.latency import measure_models
from stillhouse.sweep.execution.robustness import robustness_of
from stillhouse.sweep.execution.trial_environment import TrialEnvironment
from stillhouse.sweep.execution.tune_searcher import QueueSearcher
from stillhouse.sweep.home.ledger import Ledger
from stillhouse.sweep.progress import Progress
from stillhouse.sweep.search.trial_queue import TrialQueue
from stillhouse.sweep.shutdown import ShutdownRequest
from stillhouse.teachers.definition import TeacherDefinition
from stillhouse.temporary_folders import temporary_folder
from stillhouse.workers import driver_import_paths

_MAX_CONCURRENT_REMOTE = 256


class Cluster:
    """A connection to Ray for the life of one sweep.

    Args:
        address: of a running cluster; None starts one on this machine, unless this process is connected already.
        home: the absolute path of the folder on this node; other nodes may share it.

    Attributes:
        home: the address by which a process on any node finds the home.

    Raises:
        InfrastructureError: the address does not answer, no node can hold a trial or a teacher, or a node of a cluster at an
            address has other versions.
    """

    def __init__(
        self, spec: SweepSpec, *, address: str | None, home: Path, progress: Progress, shutdown: ShutdownRequest
    ) -> None:
        self._spec = spec
        self._progress = progress
        self._shutdown = shutdown
        self._ours = not ray.is_initialized()
        # `ray job submit` names the cluster to its entry point in this variable.
        address = address or os.environ.get("RAY_ADDRESS")
        self._local = address is None
        if self._ours:
            connect(address, spec)
            # Ray has replaced the handler of SIGTERM.
            self._shutdown.listen()
        servers = ray_servers()
        self._watch = RayWatch(servers, shutdown)
        self._session = RaySession(servers.session) if servers is not None and self._ours and self._local else None
        self.import_paths = tuple(driver_import_paths()) if self._local else ()
        self.threads = max(1, int(spec.trial_resources.cpu / spec.trial_resources.num_workers))
        self._data_reference: Any = None
        self._handles: list[Any] = []
        self._leases = LeaseHolder({"sweep": spec.name})
        self.home = HomeAddress(path=str(home))
        try:
            self._placement = self._check_placement(home)
            if not self._local:
                # Even where all nodes share the home, an autoscaler may add one that does not.
                self.home = shared_home(home, spec.knowledge.max_bytes)
                self._handles.append(keeper := start_keeper(self.home))
                self._leases.hold(keeper, again=partial(start_keeper, self.home))
        except BaseException as error:
            # Another attempt in this process must not find half a connection.
            self.__exit__(type(error), error, None)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None) -> None:
        self._shutdown.unwinding()
        self._watch.stop()
        # Actors of a dead Ray do not answer.
        if not self._shutdown.failed:
            self._leases.close()
        self._handles.clear()
        self._data_reference = None
        # Without this, a dead Ray ends the process within a minute, also one that the caller had started.
        if self._ours or self._shutdown.failed:
            ray.shutdown()
        self._watch.forget()
        if self._session is not None:
            self._session.close(keep=self._shutdown.failed or isinstance(error, InfrastructureError))

    def share(self, data: ImageData) -> None:
        """Puts the data set into the object store: one copy per node, read in place by every process."""
        self._data_reference = ray.put(data.to_arrays())

    def start_teachers(self, definitions: Sequence[TeacherDefinition], data: ImageData, views: Views) -> list[RunningTeacher]:
        """Starts all teachers, and waits until each is loaded or trained.

        Raises:
            UsageError: weights that cannot be read or do not fit their model.
            InfrastructureError: a teacher's actor keeps dying or does not come back.
        """
        starter = TeacherStarter(
            self._spec,
            home=self.home,
            nodes=self._placement.teachers,
            leases=None if self._local else self._leases,
            import_paths=self.import_paths,
            progress=self._progress,
            shutdown=self._shutdown,
        )
        # Stored before the start, which may fail: all handles must live until the sweep leaves the cluster.
        self._handles.append(starter.handles)
        return starter.start(definitions, data, self._data_reference, views)

    def measure_latency(
        self,
        models: Mapping[str, StudentChoice],
        data: ImageData,
        *,
        known: Collection[str] = (),
        place: str = "",
    ) -> tuple[dict[str, dict[str, float]], str]:
        """Latency metrics of each network, by the given names, on one quiet worker with a trial's resources.

        A model that cannot run has none; the reason is shown.

        Args:
            known: names of models that were measured at `place`; they are measured again only if the worker is elsewhere.

        Returns:
            the metrics, and where they were measured.

        Raises:
            InfrastructureError: the worker died.
        """
        call = self._task(measure_models).remote(
            dict(models),
            data.num_classes,
            data.input_shape,
            self.threads,
            list(self.import_paths),
            known=list(known),
            place=place,
        )
        found: dict[str, dict[str, float]]
        found, reasons, here = self._answer(call, "the students' latency cannot be measured")
        for name, reason in reasons.items():
            self._progress.note(f"the latency of {name} is unknown: {reason}")
        return found, here

    def measure_exported(
        self, models: Mapping[str, StudentChoice], data: ImageData, *, place: str, total_s: float
    ) -> tuple[dict[str, dict[str, float]], list[str]]:
        """`measure_exported` of `sweep.execution.exported_latency` on one quiet worker with a trial's resources.

        Raises:
            InfrastructureError: the worker died.
        """
        call = self._task(measure_exported).remote(
            dict(models),
            data.num_classes,
            data.input_shape,
            self.threads,
            list(self.import_paths),
            place=place,
            total_s=total_s,
        )
        measured: tuple[dict[str, dict[str, float]], list[str]]
        measured = self._answer(call, "the latency of exported students cannot be measured")
        return measured

    def measure_robustness(
        self, records: Sequence[TrialRecord], spec: SweepSpec
    ) -> tuple[dict[str, dict[str, float]], list[str]]:
        """`robustness_of` for each record, on workers with a trial's resources: the metrics by trial key, and reasons.

        Raises:
            InfrastructureError: a worker died.
        """
        task = self._task(robustness_of)
        paths, folders = list(self.import_paths), list(spec.method_paths)
        calls = [
            task.remote(record.model_dump_json(), spec, self.home, [self._data_reference], self.threads, paths, folders)
            for record in records
        ]
        answers = self._answer(calls, "students cannot be evaluated on degraded images")
        found = {record.trial.key: values for record, (values, _) in zip(records, answers, strict=True) if values}
        return found, [reason for _, reason in answers if reason]

    def _task(self, function: Callable[..., Any]) -> Any:
        """The function as a task that claims what a trial's worker does."""
        resources = self._spec.trial_resources
        return ray.remote(function).options(
            num_cpus=resources.cpu / resources.num_workers,
            num_gpus=resources.gpu / resources.num_workers,
            **ray_options(resources),
        )

    def _answer(self, call: Any, failure: str) -> Any:
        try:
            return ray.get(call)
        except RayError as error:
            raise InfrastructureError(f"{failure}: {last_line(str(error), WORKER_DIED)}") from error

    def run(
        self,
        queue: TrialQueue,
        environment: TrialEnvironment,
        *,
        metric: Metric,
        parameters: Callable[[Trial], int],
        history: Iterable[TrialRecord],
        on_record: Callable[[TrialRecord], None],
        give_up: Callable[[], bool] = lambda: False,
    ) -> list[LostTrial]:
        """Runs the trials of the queue with Tune; every trial that ends has its record in the ledger.

        Args:
            metric: of the sweep's task, for early stopping.
            parameters: of a trial's student, for the size brackets.
            on_record: called with each new record, in the driver; must not block.
            give_up: called often; once it is true, trials end as when the user ends the sweep.

        Returns:
            trials that have no record because the infrastructure failed them; none when the sweep was to end early, which
            leaves trials without a record on purpose.

        Raises:
            InfrastructureError: the disk is full.
        """
        ledger = Ledger(Path(environment.folder) / "ledger")
        brackets: dict[str, int] = {}

        def keep(record: TrialRecord) -> None:
            queue.add(record)
            on_record(record)

        def follow(trial: Trial) -> None:
            brackets[trial.key] = size_bracket(parameters(trial))
            watch.add(trial)

        watch = TrialWatch(metric, parameters, ledger, self._progress, on_record=keep, on_loss=queue.lose)
        # The watch reports in one sentence why a trial was lost; Tune would print a traceback for each attempt.
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        with ExitStack() as stack:
            scratch = stack.enter_context(temporary_folder("tune"))
            packed = self._packed_workers(queue.expected, environment)
            if packed is not None:
                stack.enter_context(packed)
            tuner = make_tuner(
                environment,
                self._data_reference,
                self._spec.trial_resources,
                searcher=QueueSearcher(queue, follow, None if packed is None else packed.places),
                scheduler=self._scheduler(queue, metric, brackets, history),
                watch=watch,
                num_trials=queue.expected,
                max_concurrent=self._concurrent(queue.expected),
                should_stop=lambda: self._shutdown.requested or watch.fatal_error is not None or give_up(),
                scratch=str(scratch),
                packed_workers=() if packed is None else packed.handles,
            )
            with self._shutdown.deferred():
                tuner.fit()
        watch.collect()
        if watch.fatal_error is not None:
            raise watch.fatal_error
        return [] if self._shutdown.requested else watch.lost()

    def _scheduler(
        self, queue: TrialQueue, metric: Metric, brackets: dict[str, int], history: Iterable[TrialRecord]
    ) -> FifoScheduler:
        search = self._spec.search
        # Trials of the confirm phase are measured, not compared, so none is stopped.
        if search.scheduler == "none" or not queue.stoppable:
            return FifoScheduler()
        earlier = list(history)
        brackets |= {record.trial.key: size_bracket(record.metrics.get("parameters", 1)) for record in earlier}
        return BracketedScheduler(
            lambda: make_stopping_rule(search),
            metric=metric,
            brackets=brackets,
            history=earlier,
        )

    def _packed_workers(self, trials: int, environment: TrialEnvironment) -> PackedWorkers | None:
        """The workers that share their processes among trials; None where each trial has its own process."""
        claim = self._spec.trial_resources
        if claim.packed == 1:
            return None
        at_once = min(self._concurrent(trials), max(1, trials))
        number = min(max(1, self._placement.trials), math.ceil(at_once / claim.packed))
        return PackedWorkers(number, claim, environment, self._data_reference)

    def _concurrent(self, trials: int) -> int:
        packed = self._spec.trial_resources.packed
        if packed > 1:
            places = packed * max(1, self._placement.trials)
            return min(places, self._spec.max_concurrent_trials or places)
        if self._spec.max_concurrent_trials is not None:
            return self._spec.max_concurrent_trials
        if not self._local:
            # An autoscaler must see the demand.
            return min(max(trials, 1), _MAX_CONCURRENT_REMOTE)
        return max(1, self._placement.trials)

    def _check_placement(self, home: Path) -> Placement:
        """Where the teachers go, and how many trials fit the cluster beside them.

        Raises:
            InfrastructureError: the cluster cannot hold a teacher or a single trial, or its nodes cannot run the sweep.
        """
        addable = [] if self._local else addable_nodes()
        found = place_sweep(self._spec, nodes_of_cluster(), addable or ())
        # KubeRay does not report what its autoscaler can add.
        if found.problems and addable is not None:
            raise InfrastructureError(found.problems[0])
        if not self._local:
            for line in check_nodes(home):
                self._progress.note(line)
        return found
