"""Calls of the home's keeper from another process, repeated while it restarts."""

from typing import Any

import ray
from ray.exceptions import RayTaskError

from stillhouse.home_access.ray_process import ACTOR_TIMEOUT_S, find_actor, repeat_call

_LONGEST_PAUSE_S = 5.0


class KeeperLink:
    """Calls of the home's keeper that survive its restart: every call may be repeated."""

    def __init__(self, name: str, *, timeout_s: float = ACTOR_TIMEOUT_S) -> None:
        self._name = name
        self._timeout_s = timeout_s
        self._handle: Any = None

    def caller(self) -> str:
        """An identifier of the calling process; that of an actor stays the same when the actor restarts."""
        context = ray.get_runtime_context()
        return str(context.get_actor_id() or context.get_worker_id())

    def call(self, method: str, *arguments: Any) -> Any:
        """The answer of the keeper's method; an exception that the method raised is raised here.

        Raises:
            InfrastructureError: the keeper did not come back in time.
        """

        def attempt() -> Any:
            self._handle = self._handle or find_actor(self._name)
            try:
                return ray.get(getattr(self._handle, method).remote(*arguments))
            except RayTaskError as error:
                raise error.cause from None

        return repeat_call(
            attempt,
            failure=f"the home's keeper did not answer for {self._timeout_s:.0f} s",
            timeout_s=self._timeout_s,
            longest_pause_s=_LONGEST_PAUSE_S,
            on_loss=self._forget,
        )

    def _forget(self) -> None:
        self._handle = None
