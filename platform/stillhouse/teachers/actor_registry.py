"""The teachers that run on a cluster: who uses them, and how they are ended."""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayActorError

from stillhouse.home_access.ray_process import NAMESPACE, NoActorError, find_actor

PREFIX = "teacher-"
_TIMEOUT_S = 10.0


def running_teachers() -> list[dict[str, Any]]:
    """What each teacher's actor on this cluster says of itself, by its name.

    `actor`, and of those that answer `name`, `model`, `status`, `device`, `node` and `leases`, each with its `sweep`, `host`,
    `pid` and `renewed_s` ago. One that does not answer yet has a `status` that says so.
    """
    found = [each["name"] for each in ray.util.list_named_actors(all_namespaces=True) if each["namespace"] == NAMESPACE]
    names = sorted(name for name in found if name.startswith(PREFIX))
    asked = {}
    for name in names:
        with suppress(NoActorError):
            asked[name] = find_actor(name).about.remote()
    ready, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=_TIMEOUT_S) if asked else ([], [])
    told = []
    for name, answer in asked.items():
        facts: dict[str, Any] = {"status": "does not answer", "leases": []}
        if answer in ready:
            try:
                facts = ray.get(answer)
            except RayActorError:
                continue
        told.append({"actor": name, **facts})
    return told


def end_teachers(actors: Iterable[str]) -> None:
    """Ends these actors for good; what they have made durable is kept."""
    for name in actors:
        with suppress(NoActorError):
            ray.kill(find_actor(name), no_restart=True)
