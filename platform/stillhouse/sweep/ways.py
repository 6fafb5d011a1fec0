"""Which way each kind of knowledge goes in a sweep, and the room that its sealed views take of the disk."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stillhouse.data.views import Views
from stillhouse.errors import UsageError, did_you_mean
from stillhouse.knowledge.kinds import Knowledge
from stillhouse.knowledge.store import KnowledgeStore
from stillhouse.knowledge.top_k import TopK
from stillhouse.spec.schema import KnowledgeSpec
from stillhouse.teachers.choice import Choice, Cost, choose_ways
from stillhouse.teachers.definition import view_identity

DISK_SHARE = 0.5
"""What all sealed views together may take of the disk, of what they have and what is free, where the spec does not say."""


class KnowledgeRoom:
    """The store as one sweep uses it: what it may take there, what it has taken, and what others must leave for it.

    Args:
        home: holds the store.
    """

    def __init__(self, spec: KnowledgeSpec, home: Path) -> None:
        self._spec = spec
        self._store = KnowledgeStore(home / "knowledge")
        kept = sum(entry["bytes"] for entry in self._store.entries())
        disk = kept + shutil.disk_usage(home).free
        self._budget = int(DISK_SHARE * disk) if spec.max_bytes is None else min(spec.max_bytes, disk)
        self._room = self._budget
        self._own: dict[str, int] = {}
        self._asked: set[str] = set()

    def choose(
        self, kinds: Mapping[str, Knowledge], measured: Mapping[str, Any], base: Mapping[str, Any], views: Views
    ) -> dict[str, Choice]:
        """The way of each of a teacher's kinds; takes room for those that are cached.

        Args:
            measured: what `TeacherService.measure` gave for these kinds.
            base: the fixed part of the teacher's `view_identity`.

        Raises:
            UsageError: a kind that is forced to be cached does not fit.
        """
        costs = {
            text: Cost(
                name=str(kind),
                asked=self._spec.ways.get(str(kind), self._spec.way),
                bytes_per_sample=measured["bytes_per_sample"][text],
                read_seconds=measured["read_seconds"][text],
            )
            for text, kind in kinds.items()
        }
        for text, cost in costs.items():
            if cost.asked == "served" and kinds[text].draws:
                raise UsageError("knowledge.tail_draws must be 0 where knowledge.way is served: draws go by a sample's place")
        self._asked |= {str(kind) for kind in kinds.values()}
        choices = choose_ways(
            costs,
            seconds_per_sample=measured["seconds_per_sample"],
            num_samples=views.num_samples,
            num_views=views.count,
            room_bytes=self._room,
        )
        for text, choice in choices.items():
            if choice.way == "cached":
                each = costs[text].bytes_per_sample * views.num_samples
                keys = [KnowledgeStore.key(view_identity(base, kinds[text], view)) for view in range(views.count)]
                self._room -= each * len(set(keys) - self._own.keys())
                self._own |= dict.fromkeys(keys, each)
        return choices

    def check_forced(self) -> None:
        """Called when every teacher's kinds were chosen.

        Raises:
            UsageError: the spec forces a kind that nobody asks.
        """
        for name in self._spec.ways:
            if name not in self._asked:
                raise UsageError(f"knowledge.ways names '{name}', which no method asks{did_you_mean(name, self._asked)}")

    def make_room(self) -> Sequence[Mapping[str, Any]]:
        """Removes the least recently used views of other sweeps until those of this one fit; gives what was removed."""
        others = self._budget - sum(self._own.values())
        own = sum(entry["bytes"] for entry in self._store.entries() if entry["key"] in self._own)
        return self._store.prune(max(0, others) + own, spare=self._own.keys())


def form_of_logits(spec: KnowledgeSpec) -> TopK | None:
    """How the spec wants logits kept; None keeps them whole."""
    return None if spec.top_k is None else TopK(spec.top_k, spec.tail_draws)
