"""The delivery mode of each kind of knowledge in a sweep, and the sweep's quota of the knowledge store."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stillhouse.errors import DiskFullError, UsageError, did_you_mean
from stillhouse.knowledge.store import KnowledgeStore
from stillhouse.spec.schema import KnowledgeSpec
from stillhouse.sweep.planning.knowledge_demand import KnowledgeDemand
from stillhouse.teachers.definition import view_identity
from stillhouse.teachers.delivery_choice import Cost, DeliveryChoice, choose_delivery, readable_bytes


class StoreQuota:
    """One sweep's quota of the knowledge store: how many bytes its sealed views may take and how many are assigned.

    Args:
        home: the folder that holds the store.
    """

    def __init__(self, spec: KnowledgeSpec, home: Path) -> None:
        self._spec = spec
        self._store = KnowledgeStore(home / "knowledge")
        self._disk = self._store.disk_bytes()
        self._budget = self._store.budget(spec.max_bytes)
        self._left = self._budget
        self._assigned: dict[str, int] = {}
        self._needed: set[str] = set()

    def choose(
        self, demand: Mapping[str, KnowledgeDemand], measured: Mapping[str, Any], base: Mapping[str, Any], num_samples: int
    ) -> dict[str, DeliveryChoice]:
        """The delivery mode of each kind of one teacher's knowledge; assigns bytes of the quota to the cached ones.

        Args:
            demand: by the kind's id.
            measured: what `TeacherService.measure` returned for these kinds.
            base: the fixed part of the teacher's `view_identity`.

        Raises:
            UsageError: a kind that the spec forces to be cached exceeds the quota.
            DiskFullError: it exceeds the free space of the disk.
        """
        costs = {
            key: Cost(
                name=str(each.kind),
                requested=self._spec.ways.get(str(each.kind), self._spec.way),
                bytes_per_sample=measured["bytes_per_sample"][key],
                read_seconds=measured["read_seconds"][key],
                compute_seconds=measured["compute_seconds"][key],
                num_views=len(each.views),
            )
            for key, each in demand.items()
        }
        for key, cost in costs.items():
            if cost.requested == "served" and demand[key].kind.draws:
                raise UsageError("knowledge.tail_draws must be 0 if knowledge.way is served: draws depend on sample indices")
        forced = (
            sum(cost.bytes_per_sample * cost.num_views for cost in costs.values() if cost.requested == "cached") * num_samples
        )
        if forced > (left := self._disk - sum(self._assigned.values())):
            raise DiskFullError(
                f"no space for {readable_bytes(forced)} of knowledge in {self._store.root}, whose disk has "
                f"{readable_bytes(left)} for it; lower views.count or let knowledge.way be auto"
            )
        self._needed |= {str(each.kind) for each in demand.values()}
        choices = choose_delivery(costs, num_samples=num_samples, room_bytes=self._left)
        for key, choice in choices.items():
            if choice.mode == "cached":
                size = costs[key].bytes_per_sample * num_samples
                keys = [KnowledgeStore.key(view_identity(base, demand[key].kind, view)) for view in demand[key].views]
                self._left -= size * len(set(keys) - self._assigned.keys())
                self._assigned |= dict.fromkeys(keys, size)
        return choices

    def check_forced(self) -> None:
        """To be called after `choose` for every teacher.

        Raises:
            UsageError: `knowledge.ways` names a kind that no method needs.
        """
        for name in self._spec.ways:
            if name not in self._needed:
                raise UsageError(f"knowledge.ways names '{name}', which no method needs{did_you_mean(name, self._needed)}")

    def evict(self) -> Sequence[Mapping[str, Any]]:
        """Removes the least recently used views of other sweeps until those of this one fit; returns what was removed."""
        others = self._budget - sum(self._assigned.values())
        own = sum(entry["bytes"] for entry in self._store.entries() if entry["key"] in self._assigned)
        return self._store.prune(max(0, others) + own, spare=self._assigned.keys())
