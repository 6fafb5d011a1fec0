"""Ray, as a sweep uses it: a cluster found or started, the data put there once, teachers before trials, trials by Tune."""

import itertools
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "auto")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
# Tune's own state is never read again, and writing it takes longer the more trials there are.
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1e9")

import ray
from ray import tune
from ray.exceptions import RayActorError, RayError

from stillhouse.data.datasets import ImageData
from stillhouse.data.views import Views
from stillhouse.errors import InfrastructureError, Interrupted, last_line
from stillhouse.home_access.home_address import HomeAddress, shared_home
from stillhouse.home_access.keeper import start_keeper
from stillhouse.home_access.leases import EXPIRE_S, LeaseHolder
from stillhouse.models.size_brackets import size_bracket
from stillhouse.spec.records import Trial, TrialRecord
from stillhouse.spec.schema import SweepSpec
from stillhouse.sweep.cluster.cluster_nodes import addable_nodes, nodes_of_cluster
from stillhouse.sweep.cluster.connection import connect
from stillhouse.sweep.cluster.node_checks import check_nodes
from stillhouse.sweep.cluster.placement import Placement, place, ray_options, worker_bundles
from stillhouse.sweep.cluster.teacher_actors import (
    _PAUSE_S,
    _RESTARTS_OF_A_TEACHER,
    _STATUS_INTERVAL_S,
    ACTOR_TIMEOUT_S,
    Teacher,
    _answered,
    _rather_on,
)
from stillhouse.sweep.cluster.trial_watch import WORKER_DIED, LostTrial, TrialWatch
from stillhouse.sweep.execution.early_stopping import BracketedScheduler, FifoScheduler, make_stopping_rule
from stillhouse.sweep.execution.latency import measure_models
from stillhouse.sweep.execution.trainable import TRIAL_CONFIG, DistillTrial, key_of
from stillhouse.sweep.execution.trial_environment import TrialEnvironment
from stillhouse.sweep.execution.tune_searcher import QueueSearcher
from stillhouse.sweep.home.ledger import Ledger
from stillhouse.sweep.progress import Progress
from stillhouse.sweep.search.trial_queue import TrialQueue
from stillhouse.sweep.shutdown import TIMEOUT_S, ShutdownRequest
from stillhouse.teachers.actor import start_actor
from stillhouse.teachers.definition import TeacherDefinition
from stillhouse.teachers.given_weights import bring_weights
from stillhouse.workers import driver_import_paths

RESTARTS_OF_A_TRIAL = 3
_MAX_CONCURRENT_REMOTE = 256


class Cluster:
    """A connection to Ray for the life of one sweep.

    Args:
        address: of a running cluster; None starts one on this machine, unless this process is connected already.
        home: the absolute folder, on this node; others may share it.

    Attributes:
        home: how a process on any node finds it.

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
        # `ray job submit` tells its entry point the cluster by this variable.
        address = address or os.environ.get("RAY_ADDRESS")
        self._local = address is None
        if self._ours:
            connect(address, spec)
            # Ray has taken SIGTERM for itself.
            self._shutdown.listen()
        self.import_paths = tuple(driver_import_paths()) if self._local else ()
        self.threads = max(1, int(spec.trial_resources.cpu / spec.trial_resources.num_workers))
        self._data_reference: Any = None
        self._handles: list[Any] = []
        self._leases = LeaseHolder({"sweep": spec.name})
        self.home = HomeAddress(path=str(home))
        try:
            self._placement = self._check_placement(home)
            if not self._local:
                # Also where all nodes share the home: an autoscaler may add one that does not.
                self.home = shared_home(home, spec.knowledge.max_bytes)
                self._handles.append(keeper := start_keeper(self.home))
                self._leases.hold(keeper, again=partial(start_keeper, self.home))
        except BaseException:
            # Whoever tries again in this process must not find half a connection.
            self.__exit__(None, None, None)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self._leases.close()
        self._handles.clear()
        self._data_reference = None
        if self._ours:
            ray.shutdown()

    def share(self, data: ImageData) -> None:
        """Puts the data set into the object store: one copy per node, read in place by every process."""
        self._data_reference = ray.put(data.to_arrays())

    def start_teachers(self, definitions: Sequence[TeacherDefinition], data: ImageData, views: Views) -> list[Teacher]:
        """Starts all teachers, and waits until each is loaded or trained.

        Raises:
            UsageError: weights that can not be read or do not fit.
            InfrastructureError: a teacher's actor can not be placed, or keeps dying.
        """
        starts = [
            [
                partial(self._start_teacher, definition, data, views, replica)
                for replica in range(self._spec.teachers[definition.name].replicas)
            ]
            for definition in definitions
        ]
        for start in itertools.chain.from_iterable(starts):
            # All at once, so that each finds its place before trials do.
            start()
        teachers = []
        for definition, (first, *others) in zip(definitions, starts, strict=True):
            teacher = self._prepare(definition, first)
            # The others find what the first has trained.
            replicas = [self._prepare(definition, start) for start in others]
            teacher.replicas = {replica.actor: replica.handle for replica in replicas}
            teachers.append(teacher)
        return teachers

    def _start_teacher(self, definition: TeacherDefinition, data: ImageData, views: Views, replica: int) -> tuple[str, Any]:
        """The name and the handle of the teacher's actor, leased where it could outlive this driver."""
        resources = self._spec.teachers[definition.name].resources
        name, handle = start_actor(
            bring_weights(definition, self.home),
            data,
            self._data_reference,
            views,
            home=self.home,
            dtype=self._spec.knowledge.dtype,
            cpus=resources.cpu,
            gpus=resources.gpu,
            placement={**ray_options(resources), **_rather_on(self._placement.teachers[definition.name][replica])},
            import_paths=list(self.import_paths),
            method_folders=list(self._spec.method_paths),
            expire_s=None if self._local else EXPIRE_S,
            replica=replica,
        )
        self._handles.append(handle)
        if not self._local:
            self._leases.hold(handle, [self._data_reference])
        return name, handle

    def measure_latency(
        self, models: Mapping[str, tuple[str, Mapping[str, Any]]], data: ImageData
    ) -> dict[str, dict[str, float]]:
        """Latency metrics of each (model, options), by the given names, on one quiet worker with a trial's resources.

        What can not run has none, which is said.

        Raises:
            InfrastructureError: the worker died.
        """
        resources = self._spec.trial_resources
        task = ray.remote(measure_models).options(
            num_cpus=resources.cpu / resources.num_workers,
            num_gpus=resources.gpu / resources.num_workers,
            **ray_options(resources),
        )
        errand = task.remote(dict(models), data.num_classes, data.input_shape, self.threads, list(self.import_paths))
        found: dict[str, dict[str, float]]
        try:
            found, reasons = ray.get(errand)
        except RayError as error:
            reason = last_line(str(error), WORKER_DIED)
            raise InfrastructureError(f"the students' latency cannot be measured: {reason}") from error
        for name, reason in reasons.items():
            self._progress.note(f"the latency of {name} is not known: {reason}")
        return found

    def run(
        self,
        queue: TrialQueue,
        environment: TrialEnvironment,
        *,
        parameters: Callable[[Trial], int],
        history: Iterable[TrialRecord],
        on_record: Callable[[TrialRecord], None],
        give_up: Callable[[], bool] = lambda: False,
    ) -> list[LostTrial]:
        """Runs the trials that the queue hands out with Tune; every one that ends has its record in the ledger.

        Args:
            parameters: of a trial's student, for the size brackets.
            on_record: called with each new record, in the driver; must not block.
            give_up: asked all the time; once it is true, trials are ended as when the user asks for it.

        Returns:
            trials that have no record because the infrastructure failed them; none when the sweep was asked to end, which
            leaves trials without a record on purpose.

        Raises:
            DiskFullError: a disk is full.
            InfrastructureError: records cannot be written.
        """
        ledger = Ledger(Path(environment.folder) / "ledger")
        brackets: dict[str, int] = {}

        def keep(record: TrialRecord) -> None:
            queue.add(record)
            on_record(record)

        def follow(trial: Trial) -> None:
            brackets[trial.key] = size_bracket(parameters(trial))
            watch.add(trial)

        watch = TrialWatch(parameters, ledger, self._progress, on_record=keep, on_loss=queue.lose)
        claim = self._spec.trial_resources
        trainable = tune.with_resources(
            tune.with_parameters(DistillTrial, environment=environment, data=[self._data_reference]),
            tune.PlacementGroupFactory(
                shares := worker_bundles(claim),
                strategy="STRICT_PACK",
                **({"bundle_label_selector": [claim.labels] * len(shares)} if claim.labels else {}),
            ),
        )
        # A sweep resumes from its ledger: nothing that Tune writes down is ever read, so it needs no common storage either.
        scratch = TemporaryDirectory(prefix="stillhouse-tune-", ignore_cleanup_errors=True)
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=QueueSearcher(queue, follow),
                num_samples=max(1, queue.expected),
                scheduler=self._scheduler(queue, brackets, history),
                max_concurrent_trials=self._concurrent(queue.expected),
                reuse_actors=True,
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name=f"run-{time.time_ns()}",
                storage_path=scratch.name,
                verbose=0,
                callbacks=[watch],
                stop=_StopAll(lambda: self._shutdown.requested or watch.no_room is not None or give_up()),
                # Trials keep their own checkpoints, found by their keys in any later run.
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=RESTARTS_OF_A_TRIAL),
            ),
        )
        # Why a trial was lost is said by the watch, in one sentence; Tune prints a traceback for each attempt.
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        with scratch, self._shutdown.deferred():
            tuner.fit()
        watch.collect()
        if watch.no_room is not None:
            raise watch.no_room
        return [] if self._shutdown.requested else watch.lost()

    def _scheduler(self, queue: TrialQueue, brackets: dict[str, int], history: Iterable[TrialRecord]) -> FifoScheduler:
        search = self._spec.search
        # A confirming trial is there to be measured, not to be stopped.
        if search.scheduler == "none" or not queue.stoppable:
            return FifoScheduler()
        earlier = list(history)
        brackets |= {record.trial.key: size_bracket(record.metrics.get("parameters", 1)) for record in earlier}
        return BracketedScheduler(
            lambda: make_stopping_rule(search),
            brackets=brackets,
            history=earlier,
        )

    def _concurrent(self, trials: int) -> int:
        if self._spec.max_concurrent_trials is not None:
            return self._spec.max_concurrent_trials
        if not self._local:
            # An autoscaler must see the demand.
            return min(max(trials, 1), _MAX_CONCURRENT_REMOTE)
        return max(1, self._placement.trials)

    def _check_placement(self, home: Path) -> Placement:
        """Where the teachers go, and how many trials fit the cluster beside them.

        Raises:
            InfrastructureError: a teacher, or not one trial; or the nodes are not fit for the sweep.
        """
        addable = [] if self._local else addable_nodes()
        found = place(self._spec, nodes_of_cluster(), addable or ())
        # KubeRay does not say what its autoscaler can add.
        if found.problems and addable is not None:
            raise InfrastructureError(found.problems[0])
        if not self._local:
            for line in check_nodes(home):
                self._progress.note(line)
        return found

    def _prepare(self, definition: TeacherDefinition, start: Callable[[], tuple[str, Any]]) -> Teacher:
        name = definition.name
        deaths, heard = 0, time.monotonic()
        while True:
            # One that was found may have ended since, with its last lease; then this starts another.
            actor, handle = start()
            there, waiting = handle.process_id.remote(), handle.prepare.remote()
            try:
                facts = self._wait_for_teacher(name, handle, waiting)
                self._progress.teacher(name, ray.get(handle.status.remote()))
            except RayActorError as error:
                # An actor that is being started again refuses calls; that is not another death.
                if _answered(there):
                    deaths, heard = deaths + 1, time.monotonic()
                if deaths > _RESTARTS_OF_A_TEACHER:
                    raise InfrastructureError(
                        f"teacher '{name}' died {deaths} times while it was made ready: {error}"
                    ) from error
                if time.monotonic() - heard > ACTOR_TIMEOUT_S:
                    raise InfrastructureError(
                        f"teacher '{name}' did not come back for {ACTOR_TIMEOUT_S:.0f} s: {error}"
                    ) from error
                time.sleep(_PAUSE_S)
                continue
            trouble = facts.get("error")
            if isinstance(trouble, Interrupted) and not self._shutdown.requested:
                # Another sweep shares the teacher, and was ended.
                time.sleep(_PAUSE_S)
                continue
            if trouble is not None:
                raise trouble
            if not self._local and not self._leases.is_granted(handle):
                # It answers for the last time.
                time.sleep(_PAUSE_S)
                continue
            return Teacher(definition, actor, handle, facts)

    def _wait_for_teacher(self, name: str, handle: Any, waiting: Any) -> dict[str, Any]:
        """What `prepare` answers. A teacher in training that is to end gets a while for its checkpoint."""
        deadline = math.inf
        status = handle.status.remote()
        with self._shutdown.deferred():
            while not ray.wait([waiting], timeout=_STATUS_INTERVAL_S)[0]:
                if self._shutdown.requested and deadline == math.inf:
                    deadline = time.monotonic() + TIMEOUT_S
                    handle.end.remote()
                if time.monotonic() > deadline:
                    raise Interrupted("interrupted")
                # An actor that has no place yet answers nothing, and nobody who wants to end waits for it.
                if ray.wait([status], timeout=0)[0]:
                    self._progress.teacher(name, ray.get(status))
                    status = handle.status.remote()
        facts: dict[str, Any] = ray.get(waiting)
        return facts


class _StopAll(tune.Stopper):  # type: ignore[misc]  # ray is not typed
    """Ends a whole run of Tune: running trials are stopped behind their epoch, no other one starts."""

    def __init__(self, asked: Callable[[], bool]) -> None:
        self._asked = asked

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune pickles it to restore a run, which a sweep never does.
        return tune.stopper.NoopStopper, ()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._asked()


def _trial_name(trial: Any) -> str:
    return key_of(trial.config[TRIAL_CONFIG])
