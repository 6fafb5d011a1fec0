"""Which way each kind of knowledge goes in a sweep, and the room that its sealed views take of the disk."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stillhouse.errors import DiskFullError, UsageError, did_you_mean
from stillhouse.knowledge.store import KnowledgeStore
from stillhouse.spec.schema import KnowledgeSpec
from stillhouse.sweep.planning.knowledge_demand import KnowledgeDemand
from stillhouse.teachers.definition import view_identity
from stillhouse.teachers.delivery_cost import Cost, DeliveryChoice, choose_delivery, readable_bytes


class StoreQuota:
    """The store as one sweep uses it: what it may take there, what it has taken, and what others must leave for it.

    Args:
        home: holds the store.
    """

    def __init__(self, spec: KnowledgeSpec, home: Path) -> None:
        self._spec = spec
        self._store = KnowledgeStore(home / "knowledge")
        self._disk = self._store.disk_bytes()
        self._budget = self._store.budget(spec.max_bytes)
        self._room = self._budget
        self._own: dict[str, int] = {}
        self._asked: set[str] = set()

    def choose(
        self, asked: Mapping[str, KnowledgeDemand], measured: Mapping[str, Any], base: Mapping[str, Any], num_samples: int
    ) -> dict[str, DeliveryChoice]:
        """The way of each of a teacher's kinds; takes room for those that are cached.

        Args:
            asked: by the kind's text.
            measured: what `TeacherService.measure` gave for these kinds.
            base: the fixed part of the teacher's `view_identity`.

        Raises:
            UsageError: a kind that is forced to be cached does not fit what the spec leaves.
            DiskFullError: or what the disk has.
        """
        costs = {
            text: Cost(
                name=str(each.kind),
                requested=self._spec.ways.get(str(each.kind), self._spec.way),
                bytes_per_sample=measured["bytes_per_sample"][text],
                read_seconds=measured["read_seconds"][text],
                compute_seconds=measured["compute_seconds"][text],
                num_views=len(each.views),
            )
            for text, each in asked.items()
        }
        for text, cost in costs.items():
            if cost.requested == "served" and asked[text].kind.draws:
                raise UsageError("knowledge.tail_draws must be 0 where knowledge.way is served: draws go by a sample's place")
        forced = (
            sum(cost.bytes_per_sample * cost.num_views for cost in costs.values() if cost.requested == "cached") * num_samples
        )
        if forced > (left := self._disk - sum(self._own.values())):
            raise DiskFullError(
                f"no room for {readable_bytes(forced)} of knowledge under {self._store.root}, whose disk has "
                f"{readable_bytes(left)} for it; lower views.count or let knowledge.way be auto"
            )
        self._asked |= {str(each.kind) for each in asked.values()}
        choices = choose_delivery(costs, num_samples=num_samples, room_bytes=self._room)
        for text, choice in choices.items():
            if choice.mode == "cached":
                size = costs[text].bytes_per_sample * num_samples
                keys = [KnowledgeStore.key(view_identity(base, asked[text].kind, view)) for view in asked[text].views]
                self._room -= size * len(set(keys) - self._own.keys())
                self._own |= dict.fromkeys(keys, size)
        return choices

    def check_forced(self) -> None:
        """Called when every teacher's kinds were chosen.

        Raises:
            UsageError: the spec forces a kind that nobody asks.
        """
        for name in self._spec.ways:
            if name not in self._asked:
                raise UsageError(f"knowledge.ways names '{name}', which no method asks{did_you_mean(name, self._asked)}")

    def evict(self) -> Sequence[Mapping[str, Any]]:
        """Removes the least recently used views of other sweeps until those of this one fit; gives what was removed."""
        others = self._budget - sum(self._own.values())
        own = sum(entry["bytes"] for entry in self._store.entries() if entry["key"] in self._own)
        return self._store.prune(max(0, others) + own, spare=self._own.keys())
