"""Calls of a shared teacher actor from a trial, repeated while the actor restarts; chooses among replicas."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayActorError

from stillhouse.home_access.ray_process import ACTOR_TIMEOUT_S, NoActorError, find_actor, repeat_call
from stillhouse.teachers.call_queue import QueueFull
from stillhouse.teachers.ticket import TeacherTicket

_LONGEST_PAUSE_S = 10.0
_SHORTEST_BUSY_PAUSE_S, _LONGEST_BUSY_PAUSE_S = 0.01, 1.0
_CHOICE_S = 10.0
"""How long a replica is called before the replicas are asked again how much they have to do."""
_ANSWER_S = 2.0


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

    def __init__(self, ticket: TeacherTicket, *, timeout_s: float = ACTOR_TIMEOUT_S) -> None:
        self._ticket = ticket
        self._timeout_s = timeout_s
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

    def broadcast(self, method: str, *arguments: Any) -> Any:
        """The answer of one replica, each in turn; it gets the names of all after `arguments` and forwards the call to them.

        Raises:
            InfrastructureError: none came back in time.
        """
        return self._answer(self._take_turns, method, (*arguments, self._names))

    def _answer(self, choose: Callable[[], Any], method: str, arguments: Sequence[Any]) -> Any:
        def attempt() -> Any:
            handle = choose()
            self.calls += 1
            return ray.get(getattr(handle, method).remote(*arguments))

        busy_pause_s = _SHORTEST_BUSY_PAUSE_S
        while True:
            answer = repeat_call(
                attempt,
                failure=f"teacher '{self._ticket.definition.name}' did not answer for {self._timeout_s:.0f} s",
                timeout_s=self._timeout_s,
                longest_pause_s=_LONGEST_PAUSE_S,
                on_loss=self._forget,
            )
            if not isinstance(answer, QueueFull):
                return answer
            time.sleep(busy_pause_s)
            busy_pause_s = min(2 * busy_pause_s, _LONGEST_BUSY_PAUSE_S)

    def _forget(self) -> None:
        self._handle = None

    def _choose(self) -> Any:
        several = len(self._names) > 1
        if self._handle is None or (several and time.monotonic() - self._chosen > _CHOICE_S):
            self._handle = self._least_loaded() if several else find_actor(self._names[0])
            self._chosen = time.monotonic()
        return self._handle

    def _take_turns(self) -> Any:
        """Each replica in turn, so that one which does not answer or can not fill is not the next one again."""
        if len(self._names) == 1:
            return self._choose()
        self._turn += 1
        return find_actor(self._names[self._turn % len(self._names)])

    def _least_loaded(self) -> Any:
        asked: dict[Any, Any] = {}
        for name in self._names:
            with suppress(RayActorError, NoActorError):
                handle = find_actor(name)
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
            raise NoActorError("no replica answers")
        return min(found, key=lambda each: each[:3])[3]
