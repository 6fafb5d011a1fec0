"""Where a trial's knowledge comes from: one interface, whatever the way."""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from stillhouse.knowledge.kinds import Knowledge
from stillhouse.knowledge.store import SealedView
from stillhouse.models.features import FeatureReader


class KnowledgeSource(Protocol):
    """Gives the teacher's knowledge of a batch. B samples."""

    way: str

    def begin_epoch(self, view: int) -> None:
        """Announces the view of the coming epoch; may wait until its knowledge is there."""

    def gather(self, indices: Tensor, images: Tensor) -> dict[str, Tensor]:
        """{name: [B, ...]} float32 on the images' device.

        Args:
            indices: [B] int64 on the CPU, places in the training split.
            images: [B, channels, H, W], the view's normalised pixels of those samples.
        """


def compute_knowledge(reader: FeatureReader, knowledge: Mapping[str, Knowledge], images: Tensor) -> dict[str, Tensor]:
    """One forward pass of the teacher behind `reader`, and every kind of knowledge read off it."""
    with torch.no_grad():
        logits, features = reader(images)
        assert logits is not None
        return {
            name: kind.compute(logits, features, [reader.weight(weight) for weight in kind.weights])
            for name, kind in knowledge.items()
        }


def layers_of(knowledge: Mapping[str, Knowledge]) -> list[str]:
    """The teacher's layers that `knowledge` reads, each once."""
    return list(dict.fromkeys(layer for kind in knowledge.values() for layer in kind.layers))


class InlineKnowledge:
    """The teacher in the trial's own process: the baseline, and for maps that cost more to move than to recompute."""

    way = "inline"

    def __init__(self, teacher: nn.Module, knowledge: Mapping[str, Knowledge]) -> None:
        self._teacher = teacher.eval().requires_grad_(False)
        self._knowledge = knowledge
        self._reader = FeatureReader(teacher, layers_of(knowledge))
        self.samples_forwarded = 0

    def begin_epoch(self, view: int) -> None:
        """Nothing to wait for."""

    def gather(self, indices: Tensor, images: Tensor) -> dict[str, Tensor]:
        self.samples_forwarded += len(indices)
        return compute_knowledge(self._reader, self._knowledge, images)


class CachedKnowledge:
    """Knowledge gathered from sealed views by memory map: no forward pass, no remote call per batch.

    Args:
        open_views: gives {name: sealed view} of view number `v`, waiting until it is sealed.
    """

    way = "cached"

    def __init__(self, open_views: Callable[[int], Mapping[str, SealedView]]) -> None:
        self._open_views = open_views
        self._views: Mapping[str, SealedView] = {}
        self.samples_gathered = 0
        self.bytes_gathered = 0

    def begin_epoch(self, view: int) -> None:
        self._views = self._open_views(view)

    def gather(self, indices: Tensor, images: Tensor) -> dict[str, Tensor]:
        gathered = {name: view.gather(indices) for name, view in self._views.items()}
        self.samples_gathered += len(indices)
        self.bytes_gathered += sum(rows.nbytes for rows in gathered.values())
        return {name: rows.to(images.device, torch.float32, non_blocking=True) for name, rows in gathered.items()}
