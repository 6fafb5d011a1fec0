"""The teacher actors that run on a cluster: which sweeps use them, and how to end them."""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayActorError

from stillhouse.home_access.ray_process import NAMESPACE, NoActorError, find_actor

PREFIX = "teacher-"
_TIMEOUT_S = 10.0


def running_teachers() -> list[dict[str, Any]]:
    """What each teacher actor of this cluster reports about itself, sorted by name.

    `actor`, and for those that answer, `name`, `model`, `status`, `device`, `node` and `leases`, each with its `sweep`, `host`,
    `pid` and `renewed_s` ago. An actor that does not answer has the `status` "does not answer".
    """
    found = [each["name"] for each in ray.util.list_named_actors(all_namespaces=True) if each["namespace"] == NAMESPACE]
    names = sorted(name for name in found if name.startswith(PREFIX))
    calls = {}
    for name in names:
        with suppress(NoActorError):
            calls[name] = find_actor(name).about.remote()
    ready, _ = ray.wait(list(calls.values()), num_returns=len(calls), timeout=_TIMEOUT_S) if calls else ([], [])
    reports = []
    for name, answer in calls.items():
        facts: dict[str, Any] = {"status": "does not answer", "leases": []}
        if answer in ready:
            try:
                facts = ray.get(answer)
            except RayActorError:
                continue
        reports.append({"actor": name, **facts})
    return reports


def end_teachers(actors: Iterable[str]) -> None:
    """Ends these actors for good; the views that they have made durable stay."""
    for name in actors:
        with suppress(NoActorError):
            ray.kill(find_actor(name), no_restart=True)
