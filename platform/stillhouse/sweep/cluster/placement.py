"""Whether a cluster can hold a sweep: its teachers first, then trials beside them. Uses Ray's names, but not Ray."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stillhouse.spec.controls import all_teachers
from stillhouse.spec.records import trained_name
from stillhouse.spec.schema import Claim, Resources, SweepSpec, TrialResources

_LEAST = 1e-9
_MAX_TRIALS = 10_000
_MAX_STEPS = 1_000
"""Of a search for the teachers' nodes; a few teachers on a few kinds of nodes take far fewer."""


@dataclass(frozen=True, kw_only=True)
class NodeKind:
    """A node of the cluster, or a kind of node that an autoscaler may add.

    Attributes:
        resources: by Ray's names: `CPU`, `GPU`, and custom ones.
        count: how many there are, or may be added.
        node_id: Ray's, of an existing node.
    """

    name: str
    resources: Mapping[str, float]
    labels: Mapping[str, str]
    count: int = 1
    node_id: str = ""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What a cluster holds of a sweep when nothing else runs on it.

    Attributes:
        trials: how many trials run at once beside the teachers.
        added: how many nodes of each kind an autoscaler adds for that, by name.
        problems: why teachers or trials cannot be placed, a sentence each.
        teachers: by name the node's id for each of its replicas; "" for any node, or one that is to be added.
    """

    trials: int
    added: Mapping[str, int]
    problems: tuple[str, ...]
    teachers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def ray_options(claim: Claim) -> dict[str, Any]:
    """Ray's options for an actor or task with this claim, besides its cores and GPUs."""
    options: dict[str, Any] = {}
    if claim.custom:
        options["resources"] = dict(claim.custom)
    if claim.labels:
        options["label_selector"] = dict(claim.labels)
    return options


def bundle(claim: Resources | TrialResources) -> dict[str, float]:
    """The resources of the claim by Ray's names, without those that are zero."""
    needs = {"CPU": claim.cpu, "GPU": claim.gpu, **claim.custom}
    return {name: share for name, share in needs.items() if share}


def worker_bundles(claim: TrialResources) -> list[dict[str, float]]:
    """The resources of each worker of a trial: equal shares of the claim."""
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


def place_sweep(spec: SweepSpec, nodes: Sequence[NodeKind], addable: Sequence[NodeKind] = ()) -> Placement:
    """Places each teacher where it leaves room for the most trials, then as many trials as fit.

    The result depends on what the nodes have, not on their order. An autoscaler's nodes are used only where the existing nodes
    have no room.

    Args:
        nodes: the existing nodes, as if nothing ran on them.
        addable: kinds that an autoscaler may add.
    """
    claims = [(name, teacher.resources) for name, teacher in all_teachers(spec).items() for _ in range(teacher.replicas)]
    found = _Search([claim for _, claim in claims], spec.trial_resources, nodes, addable).best
    problems = []
    teachers: dict[str, tuple[str, ...]] = dict.fromkeys(all_teachers(spec), ())
    for (name, claim), node_id in zip(claims, found.nodes, strict=True):
        problem = _reason(f"teachers.{trained_name(name)}.resources", claim, [*nodes, *addable]) if node_id is None else None
        if problem is not None and problem not in problems:
            problems.append(problem)
        teachers[name] += (node_id or "",)
    # Bounded: a small trial fits a large cluster very often.
    trials = min(found.room + sum(found.room_added.values()), spec.max_concurrent_trials or _MAX_TRIALS)
    if not trials:
        problems.append(_reason("trial_resources", spec.trial_resources, [*nodes, *addable]))
    added, rest = dict(found.added), trials - found.room
    for name, room in found.room_added.items():
        if (taken := min(rest, room)) > 0:
            added[name] = added.get(name, 0) + math.ceil(taken / found.room_each[name])
            rest -= taken
    return Placement(trials=trials, added=added, teachers=teachers, problems=tuple(problems))


@dataclass(frozen=True)
class _Shape:
    """The free resources of a node and its labels, of those that the sweep uses: nodes of one shape are interchangeable."""

    free: tuple[float, ...]
    labels: tuple[tuple[str, str], ...]


_Rooms = Mapping[_Shape, tuple[str, ...]]
"""The nodes of each shape, by their ids."""


@dataclass(frozen=True, kw_only=True)
class _Found:
    """One assignment of all teachers to nodes.

    Attributes:
        nodes: of each claim in turn; "" for any node or one that is to be added, None where no node fits.
        added: nodes that are added for teachers.
        room: how many trials fit on the existing nodes and those.
        room_added: how many trials fit on further nodes of each kind; `room_each` is the number for one node.
    """

    nodes: tuple[str | None, ...]
    added: Mapping[str, int]
    room: int
    room_added: Mapping[str, int]
    room_each: Mapping[str, int]

    @property
    def worth(self) -> tuple[int, int]:
        return -self.nodes.count(None), self.room + sum(self.room_added.values())


class _Search:
    """A depth-first search of the teachers' nodes, the most promising first; it stops after a number of steps."""

    def __init__(
        self, claims: Sequence[Resources], trial: TrialResources, nodes: Iterable[NodeKind], addable: Iterable[NodeKind]
    ) -> None:
        self._claims, self._trial = claims, trial
        claimed: list[Resources | TrialResources] = [*claims, trial]
        self._resources = sorted({name for claim in claimed for name in bundle(claim)})
        self._labels = sorted({name for claim in claimed for name in claim.labels})
        self._addable = {kind.name: (self._shape(kind), kind.count) for kind in addable}
        self._steps = 0
        self._best: _Found | None = None
        rooms: dict[_Shape, tuple[str, ...]] = {}
        for node in sorted(nodes, key=lambda each: each.name):
            shape = self._shape(node)
            rooms[shape] = rooms.get(shape, ()) + (node.node_id,) * node.count
        self._look(rooms, {}, ())

    @property
    def best(self) -> _Found:
        assert self._best is not None, "the first descent always completes"
        return self._best

    def _shape(self, kind: NodeKind) -> _Shape:
        labels = tuple((name, kind.labels[name]) for name in self._labels if name in kind.labels)
        return _Shape(tuple(kind.resources.get(name, 0.0) for name in self._resources), labels)

    def _times(self, claim: Resources | TrialResources, shape: _Shape) -> int:
        """How often the claim fits a node of this shape."""
        if not labels_match(dict(shape.labels), claim.labels):
            return 0
        free = dict(zip(self._resources, shape.free, strict=True))
        return min((int(free[name] / share + _LEAST) for name, share in bundle(claim).items()), default=_MAX_TRIALS)

    def _without(self, shape: _Shape, claim: Resources) -> _Shape:
        needs = bundle(claim)
        left = (have - needs.get(name, 0.0) for name, have in zip(self._resources, shape.free, strict=True))
        return _Shape(tuple(left), shape.labels)

    def _found(self, rooms: _Rooms, added: Mapping[str, int], nodes: tuple[str | None, ...]) -> _Found:
        each = {name: self._times(self._trial, shape) for name, (shape, _) in self._addable.items()}
        return _Found(
            nodes=nodes,
            added=added,
            room=sum(len(ids) * self._times(self._trial, shape) for shape, ids in rooms.items()),
            room_added={name: (count - added.get(name, 0)) * each[name] for name, (_, count) in self._addable.items()},
            room_each=each,
        )

    def _look(self, rooms: _Rooms, added: Mapping[str, int], nodes: tuple[str | None, ...]) -> None:
        here = self._found(rooms, added, nodes)
        # Placing another teacher never adds room.
        if self._best is not None and (here.worth <= self._best.worth or self._steps > _MAX_STEPS):
            return
        self._steps += 1
        if len(nodes) == len(self._claims):
            self._best = here
            return
        options = [(left, more, (*nodes, node_id)) for node_id, left, more in self._options(len(nodes), rooms, added)]
        options.sort(key=lambda each: self._found(*each).worth, reverse=True)
        for option in options or [(rooms, added, (*nodes, None))]:
            self._look(*option)

    def _options(self, position: int, rooms: _Rooms, added: Mapping[str, int]) -> list[tuple[str, _Rooms, Mapping[str, int]]]:
        """For each node that a claim may take: its id, what is free afterwards, and the added nodes."""
        claim = self._claims[position]
        fitting = [(shape, ids) for shape, ids in rooms.items() if ids and self._times(claim, shape)]
        if fitting and not bundle(claim):
            return [("", rooms, added)]
        if fitting:
            return [(ids[0], self._move(rooms, shape, claim), added) for shape, ids in fitting]
        return [
            ("", _joined(rooms, self._without(shape, claim), ""), {**added, name: added.get(name, 0) + 1})
            for name, (shape, count) in self._addable.items()
            if added.get(name, 0) < count and self._times(claim, shape)
        ]

    def _move(self, rooms: _Rooms, shape: _Shape, claim: Resources) -> _Rooms:
        first, *others = rooms[shape]
        return _joined({**rooms, shape: tuple(others)}, self._without(shape, claim), first)


def _joined(rooms: _Rooms, shape: _Shape, node_id: str) -> _Rooms:
    return {**rooms, shape: (node_id, *rooms.get(shape, ()))}


def _reason(key: str, claim: Resources | TrialResources, kinds: Sequence[NodeKind]) -> str:
    """The part of the claim that no node can hold; or that all nodes are full."""
    fitting = [kind for kind in kinds if labels_match(kind.labels, claim.labels)]
    if not fitting:
        wanted = ", ".join(f"{name}={value}" for name, value in claim.labels.items())
        return (
            f"{key}.labels require a node with {wanted}, and the cluster has none; start one with ray start --labels={wanted}"
        )
    where = "the largest node" if not claim.labels else "the largest node with these labels"
    words = {"CPU": "cpu", "GPU": "gpu"}
    for name, share in bundle(claim).items():
        most = max(kind.resources.get(name, 0) for kind in fitting)
        if share > most + _LEAST:
            return f"{key}.{words.get(name, f'custom.{name}')} must be <= {most:g}, which is what {where} has, got {share:g}"
    others = "the other teachers" if key.startswith("teachers") else "the teachers"
    held = ", ".join(f"{share:g} {name}" for name, share in bundle(claim).items())
    return f"{key} require {held} on one node, which the cluster does not have free beside {others}; lower it, or add a node"
