"""The teachers' actors, as the driver uses them: started, prepared, called."""

import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from stillhouse.distill.sources import Reading
from stillhouse.errors import InfrastructureError, StillhouseError, UsageError, as_disk_full, last_line
from stillhouse.sweep.cluster.trial_watch import WORKER_DIED
from stillhouse.teachers.definition import FillPlan, TeacherDefinition

_RESTARTS_OF_A_TEACHER = 3
ACTOR_TIMEOUT_S = 120.0
"""How long a teacher's actor that is gone is waited for."""
_PAUSE_S = 1.0
_STATUS_INTERVAL_S = 0.5


class Teacher:
    """A running teacher actor and what it told of itself.

    Attributes:
        replicas: name and handle of others that share its work.
    """

    def __init__(self, definition: TeacherDefinition, actor: str, handle: Any, facts: dict[str, Any]) -> None:
        self.replicas: dict[str, Any] = {}
        self.definition = definition
        self.actor = actor
        self.handle = handle
        self.facts = facts


def call_actor(handle: Any, method: str, *arguments: Any) -> Any:
    """One call of a teacher's actor from the driver, repeated while the actor is started again.

    Raises:
        InfrastructureError: the actor did not come back in time.
        UsageError: the call raised there.
        DiskFullError: the disk of the actor's home is full.
        StillhouseError: the actor raised it.
    """
    deadline = time.monotonic() + ACTOR_TIMEOUT_S
    while True:
        try:
            return ray.get(getattr(handle, method).remote(*arguments))
        except RayActorError as error:
            if time.monotonic() + _PAUSE_S > deadline:
                raise InfrastructureError(f"the teacher's actor is gone: {error}") from error
        except RayTaskError as error:
            if isinstance(error.cause, StillhouseError):
                raise error.cause from error
            if (full := as_disk_full(error, "the home of the teacher's node")) is not None:
                raise full from error
            # What a method asks of the teacher is computed there, and a user's reduction can raise anything.
            raise UsageError(
                f"the teacher can not {method} what the methods ask of it: {last_line(str(error), WORKER_DIED)}"
            ) from error
        time.sleep(_PAUSE_S)


def _answered(call: Any) -> bool:
    """Whether a call of an actor, sent before another one that failed, was answered."""
    if not ray.wait([call], timeout=0)[0]:
        return False
    try:
        ray.get(call)
    except RayActorError:
        return False
    return True


def _rather_on(node_id: str) -> dict[str, Any]:
    """Ray's options for an actor that is to be on this node, or elsewhere where the node is full or gone."""
    if not node_id:
        return {}
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=True, _spill_on_unavailable=True)}


def request_ahead(teacher: Teacher, views: Mapping[int, Reading], plan: FillPlan, sweep: str) -> None:
    """Lets the teacher fill these views as planned, each in the order in which it is read first; nothing waits for it."""
    for view, reading in views.items():
        if kinds := plan.kinds(view):
            for handle in (teacher.handle, *teacher.replicas.values()):
                handle.request.remote(view, kinds, True, False, reading, sweep)
