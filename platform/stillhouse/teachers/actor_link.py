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
"""How long a replica is used before the replicas' loads are compared again."""
_ANSWER_S = 2.0


class ActorLink:
    """Calls of the shared actor that survive its restart: calls are pure, so repeating one is safe.

    A call is also repeated while the actor's queue is full, as long as the actor answers. Among several replicas, the one on
    this process's node is called, or the one with the fewest waiting calls; the choice is renewed every few seconds. A
    broadcast goes to one replica, which forwards it to the others.

    Attributes:
        calls: how many calls of the actor and its replicas were made, those for their load included.

    Args:
        timeout_s: how long to wait for a lost actor before the trial gives up.
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
        """Each replica in turn, so that one that does not answer or cannot fill is not called twice in a row."""
        if len(self._names) == 1:
            return self._choose()
        self._turn += 1
        return find_actor(self._names[self._turn % len(self._names)])

    def _least_loaded(self) -> Any:
        loads: dict[Any, Any] = {}
        for name in self._names:
            with suppress(RayActorError, NoActorError):
                handle = find_actor(name)
                self.calls += 1
                loads[handle.load.remote()] = handle
        ready, _ = ray.wait(list(loads), num_returns=len(loads), timeout=_ANSWER_S) if loads else ([], [])
        here = ray.get_runtime_context().get_node_id()
        found: list[tuple[bool, int, int, Any]] = []
        for answer in ready:
            with suppress(RayActorError):
                node, waiting = ray.get(answer)
                found.append((node != here, waiting, os.getpid() % (len(found) + 1), loads[answer]))
        if not found:
            raise NoActorError("no replica answers")
        return min(found, key=lambda each: each[:3])[3]
