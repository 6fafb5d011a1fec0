"""Starts the teachers' actors of a sweep, and waits until each has loaded or trained its teacher."""

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayActorError

from stillhouse.data.datasets import ImageData
from stillhouse.data.views import Views
from stillhouse.errors import InfrastructureError, Interrupted
from stillhouse.home_access.home_address import HomeAddress
from stillhouse.home_access.leases import EXPIRE_S, LeaseHolder
from stillhouse.home_access.ray_process import ACTOR_TIMEOUT_S
from stillhouse.spec.controls import teacher_spec
from stillhouse.spec.schema import SweepSpec
from stillhouse.sweep.cluster.placement import ray_options
from stillhouse.sweep.cluster.ray_internals import prefer_node
from stillhouse.sweep.cluster.teacher_actors import RunningTeacher
from stillhouse.sweep.progress import Progress
from stillhouse.sweep.shutdown import TIMEOUT_S, ShutdownRequest
from stillhouse.teachers.actor import start_actor
from stillhouse.teachers.definition import TeacherDefinition
from stillhouse.teachers.given_weights import bring_weights

MAX_RESTARTS = 3
_PAUSE_S = 1.0
_STATUS_INTERVAL_S = 0.5

Start = Callable[[], tuple[str, Any]]
"""Starts an actor, or finds it: its name and its handle."""


class TeacherStarter:
    """Starts the actors of a sweep's teachers.

    Args:
        home: of teachers and knowledge.
        nodes: for each teacher, the id of the node that each of its replicas should run on; "" for any node.
        leases: which hold the actors, where they may outlive this process; None on a local cluster.
        import_paths: folders that the actors append to `sys.path`.

    Attributes:
        handles: of all actors that were started; an actor of a local cluster ends when its last handle is dropped.
    """

    def __init__(
        self,
        spec: SweepSpec,
        *,
        home: HomeAddress,
        nodes: Mapping[str, Sequence[str]],
        leases: LeaseHolder | None,
        import_paths: Sequence[str],
        progress: Progress,
        shutdown: ShutdownRequest,
    ) -> None:
        self._spec = spec
        self._home = home
        self._nodes = nodes
        self._leases = leases
        self._import_paths = import_paths
        self._progress = progress
        self._shutdown = shutdown
        self.handles: list[Any] = []

    def start(
        self, definitions: Sequence[TeacherDefinition], data: ImageData, data_reference: Any, views: Views
    ) -> list[RunningTeacher]:
        """Starts all teachers, and waits until each is loaded or trained.

        Args:
            data_reference: of the data set in Ray's object store.

        Raises:
            UsageError: weights that cannot be read or do not fit their model.
            InfrastructureError: a teacher's actor keeps dying or does not come back.
            Interrupted: the sweep is to end.
        """
        starts = [
            [
                partial(self._start, definition, data, data_reference, views, replica)
                for replica in range(teacher_spec(self._spec, definition.name).replicas)
            ]
            for definition in definitions
        ]
        for start in itertools.chain.from_iterable(starts):
            # All at once, so that each gets its resources before trials do.
            start()
        teachers = []
        for definition, (first, *others) in zip(definitions, starts, strict=True):
            teacher = self.prepare(definition, first)
            # The other replicas find what the first one has trained.
            replicas = [self.prepare(definition, start) for start in others]
            teachers.append(replace(teacher, replicas={replica.actor: replica.handle for replica in replicas}))
        return teachers

    def _start(
        self, definition: TeacherDefinition, data: ImageData, data_reference: Any, views: Views, replica: int
    ) -> tuple[str, Any]:
        """The name and the handle of the teacher's actor, leased where it could outlive this process."""
        resources = teacher_spec(self._spec, definition.name).resources
        name, handle = start_actor(
            bring_weights(definition, self._home),
            data,
            data_reference,
            views,
            home=self._home,
            dtype=self._spec.knowledge.dtype,
            cpus=resources.cpu,
            gpus=resources.gpu,
            placement={**ray_options(resources), **prefer_node(self._nodes[definition.name][replica])},
            import_paths=list(self._import_paths),
            method_folders=list(self._spec.method_paths),
            expire_s=None if self._leases is None else EXPIRE_S,
            replica=replica,
        )
        self.handles.append(handle)
        if self._leases is not None:
            self._leases.hold(handle, [data_reference])
        return name, handle

    def prepare(self, definition: TeacherDefinition, start: Start) -> RunningTeacher:
        """Waits until the actor has loaded or trained its teacher; an actor that ended meanwhile is started again.

        Raises:
            InfrastructureError: the actor died too often, or did not come back in time.
            StillhouseError: the actor reported it.
        """
        name, deaths, last_death = definition.name, 0, time.monotonic()
        while True:
            # An actor that was found may have ended since, with its last lease; then this starts another.
            actor, handle = start()
            alive, prepared = handle.process_id.remote(), handle.prepare.remote()
            try:
                facts = self._wait(name, handle, prepared)
                self._progress.teacher(name, ray.get(handle.status.remote()))
            except RayActorError as error:
                # An actor that is restarting refuses calls; that is not another death.
                if _answered(alive):
                    deaths, last_death = deaths + 1, time.monotonic()
                if deaths > MAX_RESTARTS:
                    raise InfrastructureError(f"teacher '{name}' died {deaths} times while it was prepared: {error}") from error
                if time.monotonic() - last_death > ACTOR_TIMEOUT_S:
                    raise InfrastructureError(
                        f"teacher '{name}' did not come back for {ACTOR_TIMEOUT_S:.0f} s: {error}"
                    ) from error
            else:
                if self._is_usable(handle, facts.get("error")):
                    return RunningTeacher(definition=definition, actor=actor, handle=handle, facts=facts)
            time.sleep(_PAUSE_S)

    def _is_usable(self, handle: Any, error: Exception | None) -> bool:
        """Whether the actor has prepared the teacher and lives on for this sweep; raises its own error."""
        if isinstance(error, Interrupted) and not self._shutdown.requested:
            # Another sweep shares the teacher, and was ended while it was being trained.
            return False
        if error is not None:
            raise error
        # An actor that grants no lease is about to end.
        return self._leases is None or self._leases.is_granted(handle)

    def _wait(self, name: str, handle: Any, prepared: Any) -> dict[str, Any]:
        """What `prepare` of the actor returns. When the sweep is to end, a teacher in training gets time for a checkpoint."""
        deadline = math.inf
        status = handle.status.remote()
        with self._shutdown.deferred():
            while not ray.wait([prepared], timeout=_STATUS_INTERVAL_S)[0]:
                if self._shutdown.requested and deadline == math.inf:
                    deadline = time.monotonic() + TIMEOUT_S
                    handle.end.remote()
                if time.monotonic() > deadline:
                    raise Interrupted("interrupted")
                # An actor that has no resources yet answers nothing, and a sweep that is to end must not wait for it.
                if ray.wait([status], timeout=0)[0]:
                    self._progress.teacher(name, ray.get(status))
                    status = handle.status.remote()
        facts: dict[str, Any] = ray.get(prepared)
        return facts


def _answered(call: Any) -> bool:
    """Whether an actor answered a call that was sent before another one that failed."""
    if not ray.wait([call], timeout=0)[0]:
        return False
    try:
        ray.get(call)
    except RayActorError:
        return False
    return True
