"""The training split as a trainer reads it: which samples a batch holds, their augmented inputs and their targets."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillhouse.data.hashing import reading_order
from stillhouse.data.images import ImageData, read_ahead
from stillhouse.data.views import Views
from stillhouse.tasks import of

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Samples of one view. B samples.

    Attributes:
        images: [B, channels, H, W] float32, augmented and normalised.
        labels: [B] or [B, K], the samples' own targets.
        targets: what the supervised loss takes: `labels`, or what the task makes of them where the view mixes samples.
        indices: [B] int64 on the trainer's device, places in the training split.
    """

    images: Tensor
    labels: Tensor
    targets: Tensor
    indices: Tensor


class TrainingSplit:
    """The training split on the trainer's device.

    Args:
        seed: decides the order of the samples in every epoch.
        batch_size: samples of a batch.
        memory_format: of the images that are read.
    """

    def __init__(
        self,
        data: ImageData,
        views: Views,
        *,
        seed: int,
        batch_size: int,
        device: str,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.images = data.train.images.to(device)
        self.labels = data.train.labels.to(device)
        self._data = data
        self._views = views
        self._seed = seed
        self._batch_size = batch_size
        self._device = device
        self._memory_format = memory_format
        self._task = of(data)
        self.batches_per_epoch = sum(1 for _ in self.batches(0))

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, epoch: int) -> Iterator[Indices]:
        """The epoch's batches; a last batch of one is left out, since BatchNorm cannot train on it."""
        order = reading_order(self._seed, epoch, len(self))
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            if len(batch) > 1 or len(order) == 1:
                yield batch

    def read(self, indices: Indices, view: int) -> Batch:
        """The samples in the view."""
        on_cpu = torch.from_numpy(indices)
        places = on_cpu.to(self._device, non_blocking=True)
        inputs = self._task.inputs(self._data, self._views, self.images, places, view)
        labels = self.labels[places]
        targets = labels
        if (mixing := self._views.mixing(on_cpu, view)) is not None:
            partners, shares = mixing
            others = self.labels[partners.to(self.labels.device)]
            targets = self._task.mix(labels, others, shares, self._data.num_classes)
        return Batch(inputs.contiguous(memory_format=self._memory_format), labels, targets, places)

    def unread(self, indices: Indices) -> Batch:
        """A batch whose images are not read: no image, no label, only the places."""
        none = self.labels[:0]
        places = torch.from_numpy(indices).to(self._device, non_blocking=True)
        return Batch(self._data.normalise(self.images[:0]), none, none, places)

    def read_ahead(self, parts: Iterable[Indices], view: int) -> AbstractContextManager[None]:
        """While it lasts, images of the coming `parts` of batches that must be decoded are decoded in the background."""
        return read_ahead(self.images, (self._views.reads(torch.from_numpy(part), view) for part in parts))


def even_parts(first: int, last: int, largest: int | None) -> list[tuple[int, int]]:
    """[first, last) in stretches of at most `largest` and nearly equal length, since BatchNorm cannot train on one sample."""
    count = -(-(last - first) // (largest or max(1, last - first)))
    ends = [first + (last - first) * place // count for place in range(count + 1)]
    return list(pairwise(ends))
