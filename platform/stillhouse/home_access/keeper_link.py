"""Calls of the home's keeper from another process, repeated while it restarts."""

import time
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from stillhouse.errors import InfrastructureError

TIMEOUT_S = 120.0
_NAMESPACE = "stillhouse"
_LONGEST_PAUSE_S = 5.0


class KeeperLink:
    """Calls of the home's keeper that outlive its restart: every one may be repeated."""

    def __init__(self, name: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self._name = name
        self._patience_s = timeout_s
        self._handle: Any = None

    def caller(self) -> str:
        """Who calls; an actor that was restarted is still the same."""
        context = ray.get_runtime_context()
        return str(context.get_actor_id() or context.get_worker_id())

    def call(self, method: str, *arguments: Any) -> Any:
        """The answer; what the keeper raised is raised here.

        Raises:
            InfrastructureError: it did not come back in time.
        """
        deadline, pause = time.monotonic() + self._patience_s, 0.1
        while True:
            try:
                self._handle = self._handle or ray.get_actor(self._name, namespace=_NAMESPACE)
            except ValueError as error:
                lost: Exception = error
            else:
                try:
                    return ray.get(getattr(self._handle, method).remote(*arguments))
                except RayTaskError as error:
                    raise error.cause from None
                except (RayActorError, ObjectLostError) as error:
                    lost = error
            self._handle = None
            if time.monotonic() + pause > deadline:
                raise InfrastructureError(f"the home's keeper did not answer for {self._patience_s:.0f} s: {lost}") from lost
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
