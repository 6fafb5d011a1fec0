"""Calls of a shared teacher actor from a trial, repeated while the actor restarts; chooses among replicas."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayActorError

from stillhouse.errors import InfrastructureError
from stillhouse.teachers.call_queue import Busy
from stillhouse.teachers.definition import TeacherTicket

TIMEOUT_S = 120.0
_LONGEST_PAUSE_S = 10.0
_LONGEST_BUSY_PAUSE_S = 1.0
_CHOICE_S = 10.0
"""How long a replica is called before the replicas are asked again how much they have to do."""
_ANSWER_S = 2.0


class _NoActorError(Exception):
    """No actor of this name, for the moment."""


class ActorLink:
    """Calls of the shared actor that outlive its restart: calls are pure, so repeating one is safe.

    A call that the actor has no room for is repeated too, for as long as the actor answers. Of several replicas the one on
    this process's node is called, else the one with the fewest calls waiting; they are asked again every few seconds. What
    all of them must hear goes to one, which tells the others.

    Attributes:
        calls: of the actor and of its replicas, the questions how much they have to do among them.

    Args:
        timeout_s: how long a lost actor is waited for before the trial gives up.
    """

    def __init__(self, ticket: TeacherTicket, *, timeout_s: float = TIMEOUT_S) -> None:
        self._ticket = ticket
        self._patience_s = timeout_s
        self._handle: Any = None
        self._turn = os.getpid()
        self._names = (ticket.actor, *ticket.replicas)
        self._chosen = 0.0
        self.calls = 0

    def call(self, method: str, *arguments: Any) -> Any:
        """The answer of one actor method.

        Raises:
            InfrastructureError: the actor did not come back in time.
        """
        return self._answer(self._choose, method, arguments)

    def tell_all(self, method: str, *arguments: Any) -> Any:
        """The answer of one of the replicas, each in turn; it gets the names of all behind `arguments` and tells the others.

        Raises:
            InfrastructureError: none came back in time.
        """
        return self._answer(self._take_turns, method, (*arguments, self._names))

    def _answer(self, choose: Callable[[], Any], method: str, arguments: Sequence[Any]) -> Any:
        deadline = time.monotonic() + self._patience_s
        pause, busy_pause = 0.1, 0.01
        while True:
            try:
                handle = choose()
                self.calls += 1
                answer = ray.get(getattr(handle, method).remote(*arguments))
                if not isinstance(answer, Busy):
                    return answer
                time.sleep(busy_pause)
                busy_pause = min(2 * busy_pause, _LONGEST_BUSY_PAUSE_S)
                deadline, pause = time.monotonic() + self._patience_s, 0.1
                continue
            except (RayActorError, ObjectLostError, _NoActorError) as error:
                self._handle = None
                if time.monotonic() + pause > deadline:
                    raise InfrastructureError(
                        f"teacher '{self._ticket.definition.name}' did not answer for {self._patience_s:.0f} s: {error}"
                    ) from error
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _choose(self) -> Any:
        several = len(self._names) > 1
        if self._handle is None or (several and time.monotonic() - self._chosen > _CHOICE_S):
            self._handle = self._least_loaded() if several else self._find(self._names[0])
            self._chosen = time.monotonic()
        return self._handle

    def _take_turns(self) -> Any:
        """Each replica in turn, so that one which does not answer or can not fill is not the next one again."""
        if len(self._names) == 1:
            return self._choose()
        self._turn += 1
        return self._find(self._names[self._turn % len(self._names)])

    def _least_loaded(self) -> Any:
        asked: dict[Any, Any] = {}
        for name in self._names:
            with suppress(RayActorError, _NoActorError):
                handle = self._find(name)
                self.calls += 1
                asked[handle.load.remote()] = handle
        ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_S) if asked else ([], [])
        here = ray.get_runtime_context().get_node_id()
        found: list[tuple[bool, int, int, Any]] = []
        for answer in ready:
            with suppress(RayActorError):
                node, waiting = ray.get(answer)
                found.append((node != here, waiting, os.getpid() % (len(found) + 1), asked[answer]))
        if not found:
            raise _NoActorError("no replica answers")
        return min(found, key=lambda each: each[:3])[3]

    def _find(self, name: str) -> Any:
        try:
            return ray.get_actor(name, namespace=self._ticket.namespace)
        except ValueError as error:
            # Not to be taken for a ValueError that the actor's method raised, which repeating does not mend.
            raise _NoActorError(str(error)) from error
