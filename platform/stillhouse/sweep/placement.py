"""Whether a cluster can hold a sweep: its teachers first, trials beside them. Knows nothing of Ray but its words."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stillhouse.spec.schema import Claim, Resources, SweepSpec, TrialResources

_LEAST = 1e-9


@dataclass(frozen=True, kw_only=True)
class NodeKind:
    """A node that is there, or a kind of node that an autoscaler may add.

    Attributes:
        resources: as Ray names them: `CPU`, `GPU`, and those of one's own.
        count: how many of it there are, or may be added.
    """

    name: str
    resources: Mapping[str, float]
    labels: Mapping[str, str]
    count: int = 1


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What a cluster holds of a sweep when nothing else runs on it.

    Attributes:
        trials: how many trials run at once beside the teachers.
        added: how many nodes of each kind an autoscaler adds for that, by name.
        problems: why teachers or trials can not be placed, a sentence each.
    """

    trials: int
    added: Mapping[str, int]
    problems: tuple[str, ...]


def ray_options(claim: Claim) -> dict[str, Any]:
    """Ray's options for an actor or task with this claim, besides its cores and GPUs."""
    options: dict[str, Any] = {}
    if claim.custom:
        options["resources"] = dict(claim.custom)
    if claim.labels:
        options["label_selector"] = dict(claim.labels)
    return options


def bundle(claim: Resources | TrialResources) -> dict[str, float]:
    """What the claim takes of a node, by Ray's names; nothing that is zero."""
    needs = {"CPU": claim.cpu, "GPU": claim.gpu, **claim.custom}
    return {name: share for name, share in needs.items() if share}


def worker_bundles(claim: TrialResources) -> list[dict[str, float]]:
    """What each worker of a trial takes of their node: an equal share."""
    return [{name: share / claim.num_workers for name, share in bundle(claim).items()}] * claim.num_workers


def labels_match(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Whether a node with these labels fulfils a selector of Ray: `a`, `!a`, `in(a, b)` or `!in(a, b)` for each label."""
    for name, condition in selector.items():
        refused = condition.startswith("!")
        condition = condition.removeprefix("!")
        several = re.fullmatch(r"in\((.*)\)", condition)
        allowed = [word.strip() for word in several[1].split(",")] if several else [condition]
        if (labels.get(name) in allowed) == refused:
            return False
    return True


def place(spec: SweepSpec, nodes: Sequence[NodeKind], addable: Sequence[NodeKind] = ()) -> Placement:
    """Places each teacher, then as many trials as fit.

    Args:
        nodes: that are there, empty.
        addable: kinds that an autoscaler may add.
    """
    room = _Room(nodes, addable)
    problems = []
    for name, teacher in spec.teachers.items():
        if not all(room.take(teacher.resources) for _ in range(teacher.replicas)):
            problems.append(_reason(f"teachers.{name}.resources", teacher.resources, [*nodes, *addable]))
    trials = 0
    # The spec may plan more than the cluster will ever hold, and a small trial fits a large cluster very often.
    most = spec.max_concurrent_trials or 10_000
    while trials < most and room.take(spec.trial_resources):
        trials += 1
    if not trials:
        problems.append(_reason("trial_resources", spec.trial_resources, [*nodes, *addable]))
    return Placement(trials=trials, added=room.added, problems=tuple(problems))


class _Room:
    """What is left of the nodes while a sweep is placed."""

    def __init__(self, nodes: Iterable[NodeKind], addable: Iterable[NodeKind]) -> None:
        self._free = [(dict(node.resources), node.labels) for node in nodes for _ in range(node.count)]
        self._addable = list(addable)
        self.added: dict[str, int] = {}

    def take(self, claim: Resources | TrialResources) -> bool:
        needs = bundle(claim)
        for free, labels in self._free:
            if _fits(free, labels, needs, claim.labels):
                _subtract(free, needs)
                return True
        for kind in self._addable:
            left = kind.count - self.added.get(kind.name, 0)
            if left > 0 and _fits(kind.resources, kind.labels, needs, claim.labels):
                new = dict(kind.resources)
                _subtract(new, needs)
                # In front: the next claim most likely goes beside this one.
                self._free.insert(0, (new, kind.labels))
                self.added[kind.name] = self.added.get(kind.name, 0) + 1
                return True
        return False


def _fits(
    free: Mapping[str, float], labels: Mapping[str, str], needs: Mapping[str, float], selector: Mapping[str, str]
) -> bool:
    return labels_match(labels, selector) and all(share <= free.get(name, 0) + _LEAST for name, share in needs.items())


def _subtract(free: dict[str, float], needs: Mapping[str, float]) -> None:
    for name, share in needs.items():
        free[name] -= share


def _reason(key: str, claim: Resources | TrialResources, kinds: Sequence[NodeKind]) -> str:
    """Which part of the claim no node can hold; or that the nodes are full."""
    fitting = [kind for kind in kinds if labels_match(kind.labels, claim.labels)]
    if not fitting:
        wanted = ", ".join(f"{name}={value}" for name, value in claim.labels.items())
        return (
            f"{key}.labels ask for a node with {wanted}, and the cluster has none; start one with ray start --labels={wanted}"
        )
    where = "the largest node" if not claim.labels else "the largest node with these labels"
    words = {"CPU": "cpu", "GPU": "gpu"}
    for name, share in bundle(claim).items():
        most = max(kind.resources.get(name, 0) for kind in fitting)
        if share > most + _LEAST:
            return f"{key}.{words.get(name, f'custom.{name}')} must be <= {most:g}, which is what {where} has, got {share:g}"
    others = "the other teachers" if key.startswith("teachers") else "the teachers"
    held = ", ".join(f"{share:g} {name}" for name, share in bundle(claim).items())
    return f"{key} ask for {held} on one node, which the cluster does not have free beside {others}; lower it, or add a node"
