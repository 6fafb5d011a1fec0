"""The training split as a trainer reads it: which samples a batch holds, their augmented inputs and their targets."""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillhouse.data.hashing import reading_order
from stillhouse.data.images import ImageData, read_ahead, split_for
from stillhouse.data.uploaded_order import UploadedOrder
from stillhouse.data.views import Views
from stillhouse.device import laid_out
from stillhouse.tasks import of

Indices = NDArray[np.int64]

_AT_ONCE = 4096
_BYTES_AT_ONCE = 64 << 20
"""Of the inputs that are made at once on a GPU, float32; a few of these are held."""


@dataclass(frozen=True)
class Batch:
    """Samples of one view. B samples.

    Attributes:
        images: [B, channels, H, W] float32, augmented and normalised.
        labels: [B] or [B, K], the samples' own targets.
        targets: what the supervised loss takes: `labels`, or what the task makes of them, as where the view mixes samples.
        indices: [B] int64 on the trainer's device, places in the training split.
    """

    images: Tensor
    labels: Tensor
    targets: Tensor
    indices: Tensor

    def rows(self, first: int, end: int) -> "Batch":
        """The samples first..end-1 of the batch."""
        rows = slice(first, end)
        return Batch(self.images[rows], self.labels[rows], self.targets[rows], self.indices[rows])


class TrainingSplit:
    """The training split on the trainer's device, or in the machine's memory where it would take too much of a GPU's.

    Attributes:
        samples_at_once: how many announced samples are augmented at once; 0 makes each part of a batch alone.

    Args:
        seed: decides the order of the samples in every epoch.
        batch_size: samples of a batch.
        memory_format: of the images that are read.
        resident: whether the images may be copied to a GPU.
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
        resident: bool = True,
    ) -> None:
        held = split_for(data.train, device, resident=resident)
        self.images, self.labels = held.images, held.labels
        self._data = data
        self._views = views
        self._seed = seed
        self._batch_size = batch_size
        self._device = device
        self._memory_format = memory_format
        self._task = of(data)
        bytes_per_sample = 4 * math.prod(data.input_shape)
        self.samples_at_once = 0 if device == "cpu" else min(_AT_ONCE, _BYTES_AT_ONCE // bytes_per_sample)
        self._groups: deque[list[Indices]] = deque()
        self._made: deque[tuple[Indices, Batch]] = deque()
        self._order: UploadedOrder | None = None
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
        if self._made and np.array_equal(self._made[0][0], indices):
            return self._made.popleft()[1]
        if self._groups and np.array_equal(self._groups[0][0], indices):
            parts = self._groups.popleft()
            whole = self._read(np.concatenate(parts), view)
            ends = np.cumsum([len(part) for part in parts]).tolist()
            self._made = deque((part, whole.rows(end - len(part), end)) for part, end in zip(parts, ends, strict=True))
            return self._made.popleft()[1]
        return self._read(indices, view)

    def _read(self, indices: Indices, view: int) -> Batch:
        on_cpu = torch.from_numpy(indices)
        places = on_cpu.to(self._device, non_blocking=True) if self._order is None else self._order.take(on_cpu)
        read = places if isinstance(self.images, Tensor) else on_cpu
        inputs = self._task.inputs(self._data, self._views, self.images, read, view)
        labels = self.labels[places]
        targets = self._task.training_targets(self._data, self._views, self.images, read, view, labels)
        if (mixing := self._views.mixing(places, view)) is not None:
            partners, shares = mixing
            targets = self._task.mix(labels, self.labels[partners], shares, self._data.num_classes)
        return Batch(laid_out(inputs, self._memory_format), labels, targets, places)

    def unread(self, indices: Indices) -> Batch:
        """A batch whose images are not read: no image, no label, only the places."""
        none = self.labels[:0]
        places = torch.from_numpy(indices).to(self._device, non_blocking=True)
        return Batch(self._task.evaluation_inputs(self._data, self.images[:0], places[:0]), none, none, places)

    @contextmanager
    def read_ahead(self, parts: Iterable[Indices], view: int) -> Iterator[None]:
        """While it lasts, images of the coming `parts` of batches are decoded or copied in the background.

        On a GPU several parts are augmented at once: what a sample looks like depends on no other one of its batch, and a few
        large kernels take less time to start than many small ones. The indices of all parts are copied to it once.
        """
        groups = _grouped(parts, self.samples_at_once)
        indices = [torch.from_numpy(np.concatenate(group)) for group in groups]
        if self.samples_at_once:
            self._groups = deque(groups)
            self._order = UploadedOrder(indices, self._device)
        coming = (self._views.reads(each, view) for each in indices)
        try:
            with read_ahead(self.images, coming):
                yield
        finally:
            self._groups.clear()
            self._made.clear()
            self._order = None


def _grouped(parts: Iterable[Indices], at_once: int) -> list[list[Indices]]:
    """Consecutive parts, together at most `at_once` samples; each part alone if it has more."""
    groups: list[list[Indices]] = []
    room = 0
    for part in parts:
        if len(part) > room:
            groups.append([])
            room = at_once
        groups[-1].append(part)
        room -= len(part)
    return groups


def smallest_part(num_samples: int, batch_size: int, workers: int = 1, micro_batch: int | None = None) -> int:
    """The fewest samples of an epoch that one forward pass in training mode sees; 0 if some worker gets none.

    Args:
        num_samples: of the training split.
        workers: processes that share every batch.
        micro_batch: the largest number of samples of a forward pass; None for whole shares.
    """
    whole, left = min(batch_size, num_samples), num_samples % batch_size
    sizes = {whole, left} if left > 1 else {whole}  # a last batch of one sample is left out
    shares = {size * (rank + 1) // workers - size * rank // workers for size in sizes for rank in range(workers)}
    return min(last - first for share in shares for first, last in (even_parts(0, share, micro_batch) if share else [(0, 0)]))


def even_parts(first: int, last: int, largest: int | None) -> list[tuple[int, int]]:
    """[first, last) in stretches of at most `largest` and nearly equal length, since BatchNorm cannot train on one sample."""
    count = -(-(last - first) // (largest or max(1, last - first)))
    ends = [first + (last - first) * place // count for place in range(count + 1)]
    return list(pairwise(ends))
