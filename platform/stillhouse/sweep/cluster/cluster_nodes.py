"""The nodes of a connected Ray cluster, and those that its autoscaler may add."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from stillhouse.sweep.cluster.placement import NodeKind
from stillhouse.sweep.cluster.ray_internals import HEAD_RESOURCE, draining_nodes

TIMEOUT_S = 120.0


def nodes_of_cluster() -> list[NodeKind]:
    """The usable nodes with all their resources, those in use included."""
    return [
        NodeKind(name=_name(node), resources=node["Resources"], labels=node.get("Labels") or {}, node_id=node["NodeID"])
        for node in usable_nodes()
    ]


def usable_nodes() -> list[dict[str, Any]]:
    """The nodes that are alive and not draining: a draining node starts nothing new."""
    draining = draining_nodes()
    return [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in draining]


def addable_nodes() -> list[NodeKind] | None:
    """The kinds of nodes that the cluster's autoscaler may add; None where it does not publish them, as KubeRay does not."""
    head = next((node for node in ray.nodes() if node["Alive"] and HEAD_RESOURCE in node["Resources"]), None)
    if head is None:
        return []
    try:
        config: dict[str, Any] | None = ray.get(_on(head, _autoscaler_config), timeout=TIMEOUT_S)
    except (RayError, GetTimeoutError):
        return []
    return None if config is None else kinds_of_config(config)


def kinds_of_config(config: Mapping[str, Any]) -> list[NodeKind]:
    """The worker kinds in a cluster launcher's configuration, without those whose resources it does not give."""
    largest = int(config.get("max_workers", 0))
    return [
        NodeKind(
            name=name,
            resources={key: float(amount) for key, amount in kind["resources"].items()},
            labels=kind.get("labels") or {},
            count=min(int(kind.get("max_workers", largest)), largest),
        )
        for name, kind in (config.get("available_node_types") or {}).items()
        if name != config.get("head_node_type") and kind.get("resources")
    ]


def _on(node: Mapping[str, Any], task: Any, *arguments: Any) -> Any:
    strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    return (
        ray.remote(lambda *given: task(*given))
        .options(num_cpus=0, max_retries=0, scheduling_strategy=strategy)
        .remote(*arguments)
    )


def _name(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})"


def _autoscaler_config() -> dict[str, Any] | None:
    """The configuration that a cluster launcher left on the head; {} without one; None on Kubernetes. Runs on the head."""
    if "KUBERNETES_SERVICE_HOST" in os.environ and "RAY_NODE_TYPE_NAME" in os.environ:
        return None
    try:
        config = yaml.safe_load(Path("~/ray_bootstrap_config.yaml").expanduser().read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return {}
    return {name: config.get(name) for name in ("available_node_types", "head_node_type", "max_workers")}
