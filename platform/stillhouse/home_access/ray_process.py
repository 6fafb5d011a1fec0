"""What every process on Ray shares: the namespace of named actors, calls that survive an actor's restart, and its device."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

import ray
import torch
from ray.exceptions import ObjectLostError, RayActorError

from stillhouse.errors import InfrastructureError

Result = TypeVar("Result")

NAMESPACE = "stillhouse"
"""Of all named actors, so that sweeps of several drivers find each other's."""
ACTOR_TIMEOUT_S = 120.0
"""How long a caller waits for a lost actor to come back."""


class NoActorError(Exception):
    """No actor of this name runs at the moment."""


def find_actor(name: str) -> Any:
    """The handle of a named actor.

    Raises:
        NoActorError: there is none at the moment. Ray's own ValueError could be one that the actor's method raised.
    """
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError as error:
        raise NoActorError(str(error)) from error


def repeat_call(
    call: Callable[[], Result],
    *,
    failure: str,
    timeout_s: float,
    first_pause_s: float = 0.1,
    longest_pause_s: float,
    on_loss: Callable[[], None] = lambda: None,
) -> Result:
    """The result of `call`, which is repeated after a pause while the actor that it calls is lost.

    Args:
        call: finds the actor, calls it and waits for the answer. It may run several times, so what it calls must be pure.
        failure: the beginning of the error's message.
        timeout_s: how long it is repeated.
        first_pause_s: between the first two attempts; it doubles up to `longest_pause_s`.
        on_loss: called after each attempt that found no actor, such as to forget its handle.

    Raises:
        InfrastructureError: the actor did not come back in time.
    """
    deadline, pause_s = time.monotonic() + timeout_s, first_pause_s
    while True:
        try:
            return call()
        except (RayActorError, ObjectLostError, NoActorError) as error:
            on_loss()
            if time.monotonic() + pause_s > deadline:
                raise InfrastructureError(f"{failure}: {error}") from error
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, longest_pause_s)


def own_device() -> str:
    """The device that Ray assigned to this process: `cuda` or `cpu`."""
    return "cuda" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu"
