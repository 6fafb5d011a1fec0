"""A running teacher as the driver uses it: calls of its actor, requests to fill views, the ticket for trials."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayTaskError

from stillhouse.distill.sources import Reading
from stillhouse.errors import StillhouseError, UsageError, as_disk_full, last_line
from stillhouse.home_access.home_address import HomeAddress
from stillhouse.home_access.ray_process import ACTOR_TIMEOUT_S, repeat_call
from stillhouse.knowledge.top_k import TopK
from stillhouse.sweep.cluster.trial_watch import WORKER_DIED
from stillhouse.teachers.definition import TeacherDefinition
from stillhouse.teachers.ticket import FillPlan, FillRequest, TeacherTicket

_PAUSE_S = 1.0


@dataclass(frozen=True, kw_only=True)
class RunningTeacher:
    """A teacher that an actor has loaded.

    Attributes:
        actor: the actor's name.
        handle: of the actor.
        facts: what `TeacherActor.prepare` returned.
        replicas: name and handle of other actors that share its work.
    """

    definition: TeacherDefinition
    actor: str
    handle: Any
    facts: Mapping[str, Any]
    replicas: Mapping[str, Any] = field(default_factory=dict)

    def ticket(
        self,
        *,
        home: HomeAddress,
        sweep: str,
        modes: Mapping[str, str],
        calling_mode: str,
        plan: FillPlan,
        top_k: TopK | None,
    ) -> TeacherTicket:
        """What a trial of `sweep` needs to use the teacher; arguments as for `TeacherTicket`."""
        return TeacherTicket(
            definition=self.definition,
            weights_path=self.facts["weights_path"],
            weights_hash=self.facts["weights_hash"],
            base=self.facts["base"],
            actor=self.actor,
            replicas=tuple(self.replicas),
            home=home,
            sweep=sweep,
            modes=modes,
            calling_mode=calling_mode,
            plan=plan,
            top_k=top_k,
        )


def call_actor(handle: Any, method: str, *arguments: Any) -> Any:
    """The answer of one call of a teacher's actor from the driver, repeated while the actor restarts.

    Raises:
        InfrastructureError: the actor did not come back in time.
        UsageError: what the methods need cannot be computed there.
        DiskFullError: the disk of the actor's home is full.
        StillhouseError: the actor raised it.
    """

    def attempt() -> Any:
        try:
            return ray.get(getattr(handle, method).remote(*arguments))
        except RayTaskError as error:
            if isinstance(error.cause, StillhouseError):
                raise error.cause from error
            if (full := as_disk_full(error, "the home of the teacher's node")) is not None:
                raise full from error
            # What a method needs from the teacher is computed there, and a user-defined reduction can raise anything.
            raise UsageError(
                f"the teacher cannot {method} what the methods need from it: {last_line(str(error), WORKER_DIED)}"
            ) from error

    return repeat_call(
        attempt,
        failure="the teacher's actor is gone",
        timeout_s=ACTOR_TIMEOUT_S,
        first_pause_s=_PAUSE_S,
        longest_pause_s=_PAUSE_S,
    )


def request_ahead(teacher: RunningTeacher, views: Mapping[int, Reading], plan: FillPlan, sweep: str) -> None:
    """Requests these views as planned, each in the order in which it is read first; does not wait for them."""
    for view, reading in views.items():
        if kinds := plan.kinds(view):
            request = FillRequest(view=view, kinds=tuple(kinds), ahead=True, reading=reading, sweep=sweep)
            for handle in (teacher.handle, *teacher.replicas.values()):
                handle.request.remote(request)
