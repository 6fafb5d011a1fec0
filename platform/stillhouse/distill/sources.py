"""Where a trial's knowledge comes from: one interface for every delivery mode."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from stillhouse.data.hashing import derive_key, uniform
from stillhouse.data.read_ahead import ReadAhead, to_host
from stillhouse.data.uploaded_order import UploadedOrder
from stillhouse.device import Float32Precision, float32_precision, memory_limit
from stillhouse.errors import TrialError
from stillhouse.knowledge.kinds import Knowledge
from stillhouse.knowledge.view import View
from stillhouse.models.batch_parts import BatchParts
from stillhouse.models.features import FeatureReader
from stillhouse.tasks import Task
from stillhouse.tasks import find as find_task

_UPLOADED_BYTES = 256 << 20
_UPLOADED_SHARE = 0.05
"""The most that views on a GPU may take, and the largest part of the process's share of its memory."""

Reading = tuple[int, int]
"""(seed, epoch) of a training: it decides the order in which samples are read, see `data.hashing.reading_order`."""


Places = tuple[int, Tensor]
"""(view, int64 [B] on the CPU): which samples of which view."""


class KnowledgeSource(Protocol):
    """Returns the teacher's knowledge of a batch. B samples.

    Attributes:
        way: the delivery mode.
        wait_seconds: how long it has waited for knowledge that was not available yet.
    """

    way: str

    @property
    def wait_seconds(self) -> float: ...

    def begin_epoch(self, view: int, names: Collection[str] | None = None, reading: Reading | None = None) -> None:
        """Announces the view of the next epoch; may wait until some of its knowledge is available.

        Args:
            names: the knowledge that the epoch needs, by the method's names; all of it by default.
            reading: the order in which the epoch will read it, so that it can be filled in that order.
        """

    def gather(self, indices: Tensor, images: Tensor) -> dict[str, Tensor]:
        """{name: [B, ...]} float32 on the images' device, of what the epoch needs.

        Args:
            indices: [B] int64 on the CPU, places in the training split.
            images: [B, channels, H, W], the view's normalised pixels of those samples.
        """

    def reading(self, parts: Iterable[Tensor], device: str) -> AbstractContextManager[None]:
        """A context around the batches of the epoch that was begun, in which they may be read ahead.

        Args:
            parts: the indices [B] of the coming calls of `gather`, in order.
            device: where the knowledge will be needed.

        Raises:
            TrialError: on leaving, if the teacher's outputs were not all finite and that was not known before.
        """


def queues_work(device: str) -> bool:
    """Whether computations are queued for the device, so that reading a value waits for all of them."""
    return torch.device(device).type != "cpu"


class Finiteness:
    """Whether outputs were finite, on their device, so that the flag is read off a GPU once an epoch."""

    def __init__(self) -> None:
        self._kinds: Sequence[str] = ()
        self._outputs: Sequence[str] = ()
        self._finite: Tensor | None = None

    def note(self, kinds: Sequence[str], outputs: Sequence[str], values: Iterable[Tensor]) -> None:
        """Adds the values of these kinds of knowledge, then of these outputs, which are the same in every call."""
        self._kinds, self._outputs = kinds, outputs
        finite = torch.stack([value.isfinite().all() for value in values])
        self._finite = finite if self._finite is None else self._finite & finite

    def send_to_host(self) -> None:
        """Queues the copy of the flags to the machine's memory, so that a `check` after it waits for no later work."""
        if self._finite is not None:
            self._finite = to_host(self._finite)

    def check(self) -> None:
        """Forgets what was noted.

        Raises:
            TrialError: something was not finite.
        """
        finite, self._finite = self._finite, None
        if finite is None or bool(finite.all()):
            return
        wrong = [name for name, good in zip(self._kinds, finite.tolist(), strict=False) if not good]
        raise TrialError(
            f"the teacher's outputs are not finite ({', '.join(wrong or self._outputs)}); check its weights, or train it again "
            "with a lower learning rate"
        )


def compute_knowledge(
    reader: FeatureReader,
    knowledge: Mapping[str, Knowledge],
    images: Tensor,
    labels: Tensor | None = None,
    places: Places | None = None,
    task: Task | None = None,
    parts: BatchParts | None = None,
    precision: Float32Precision = "ieee",
    finiteness: Finiteness | None = None,
) -> dict[str, Tensor]:
    """One forward pass, and every kind of knowledge computed from it; a large batch is computed in pieces.

    Kinds of the input gradient have a separate pass, so that they change no bit of the others.

    Args:
        labels: [B] or [B, K], the samples' own targets; needed for kinds of the input gradient.
        places: of the samples; needed for kinds that draw.
        task: names the outputs; the default task unless given.
        parts: how a caller of many batches divides them.
        precision: of the teacher's convolutions on a GPU. By default that with which the knowledge of a sample is the same,
            except for the last bits, in every batch and on every device.
        finiteness: notes whether the outputs are finite; by default that is checked at once.

    Raises:
        TrialError: the teacher's outputs are not all finite.
    """
    task = task or find_task()

    def compute(part: slice) -> dict[str, Tensor]:
        of_part = None if labels is None else labels[part]
        placed = None if places is None else (places[0], places[1][part])
        return _compute_piece(reader, knowledge, images[part], of_part, placed, task, noted)

    noted = finiteness or Finiteness()
    with float32_precision(precision):
        computed = (parts or BatchParts()).apply(images, compute)
    if finiteness is None:
        noted.check()
    if len(computed) == 1:
        return computed[0]
    return {name: torch.cat([each[name] for each in computed]) for name in knowledge}


def _compute_piece(
    reader: FeatureReader,
    knowledge: Mapping[str, Knowledge],
    images: Tensor,
    labels: Tensor | None,
    places: Places | None,
    task: Task,
    finiteness: Finiteness,
) -> dict[str, Tensor]:
    with torch.no_grad():
        raw, features = reader(images)
        assert raw is not None
        outputs = task.outputs(raw)
        gradients = raw
        if any(kind.of_input for kind in knowledge.values()):
            assert labels is not None, "the gradient of a teacher's loss needs labels"
            gradients = _input_gradients(reader, images, labels.to(images.device), task)
        computed = {
            name: kind.compute(
                gradients if kind.of_input else raw if kind.layers else outputs[kind.output],
                features,
                [reader.weight(weight) for weight in kind.weights],
                _draws(kind.draws, places, images.device) if kind.draws else None,
            )
            for name, kind in knowledge.items()
        }
        # The outputs too: a reduction to signs, for example, turns NaN into a number.
        finiteness.note([str(kind) for kind in knowledge.values()], list(outputs), [*computed.values(), *outputs.values()])
        return computed


def _draws(count: int, places: Places | None, device: torch.device) -> Tensor:
    """Numbers in [0, 1), float64 [B, count] on the device, by view and sample."""
    assert places is not None, "random numbers of a sample depend on its place"
    view, indices = places
    counters = indices.cpu().numpy()[:, None] * count + np.arange(count)
    return torch.from_numpy(uniform(derive_key("draws of knowledge", view, count), counters)).to(device)


def _input_gradients(reader: FeatureReader, images: Tensor, labels: Tensor, task: Task) -> Tensor:
    """The gradient of each sample's own loss: of the sum over the batch, in which no two samples share a pixel."""
    with torch.enable_grad():
        pixels = images.detach().requires_grad_()
        raw, _ = reader(pixels)
        assert raw is not None
        losses = task.losses(task.outputs(raw), labels, "sum")
        (gradients,) = torch.autograd.grad(list(losses.values()), pixels)
    return gradients


def is_named(name: str, names: Collection[str] | None) -> bool:
    """Whether knowledge called `name`, or `<teacher>/<name>`, is among `names`; None means all."""
    return names is None or name in names or name.rpartition("/")[2] in names


def layers_of(knowledge: Mapping[str, Knowledge]) -> list[str]:
    """The teacher's layers that `knowledge` reads, each once."""
    return list(dict.fromkeys(layer for kind in knowledge.values() for layer in kind.layers))


class InlineKnowledge:
    """The teacher in the trial's process: for maps that cost more to transfer than to compute again.

    Args:
        labels: of the whole training split, [N] or [N, K], for knowledge that depends on the target.
        task: names the teacher's outputs; the default task unless given.
    """

    way = "inline"
    wait_seconds = 0.0

    def __init__(
        self,
        teacher: nn.Module,
        knowledge: Mapping[str, Knowledge],
        labels: Tensor | None = None,
        task: Task | None = None,
    ) -> None:
        self._teacher = teacher.eval().requires_grad_(False)
        self._knowledge = self._needed = dict(knowledge)
        self._labels = labels
        self._task = task
        self._reader = FeatureReader(teacher, layers_of(knowledge))
        self._parts = BatchParts()
        self._finiteness: Finiteness | None = None
        self._order: UploadedOrder | None = None
        self._view = 0
        self.samples_forwarded = 0

    def begin_epoch(self, view: int, names: Collection[str] | None = None, reading: Reading | None = None) -> None:
        self._view = view
        self._needed = {name: kind for name, kind in self._knowledge.items() if is_named(name, names)}

    def gather(self, indices: Tensor, images: Tensor) -> dict[str, Tensor]:
        if not self._needed:
            return {}
        self.samples_forwarded += len(indices)
        labels = None
        if self._labels is not None and any(kind.of_input for kind in self._needed.values()):
            self._labels = self._labels.to(images.device)
            labels = self._labels[indices.to(images.device) if self._order is None else self._order.take(indices)]
        return compute_knowledge(
            self._reader,
            self._needed,
            images,
            labels,
            (self._view, indices),
            self._task,
            self._parts,
            finiteness=self._finiteness,
        )

    @contextmanager
    def reading(self, parts: Iterable[Tensor], device: str) -> Iterator[None]:
        if queues_work(device):
            self._finiteness = Finiteness()
            self._order = UploadedOrder(parts, device)
        try:
            yield
            if self._finiteness is not None:
                self._finiteness.check()
        finally:
            self._finiteness = self._order = None


class CachedKnowledge:
    """Knowledge read from sealed views through a memory map: no forward pass and no remote call per batch.

    A view may still be filled while it is read: a batch waits only for its own rows.

    Args:
        open_views: returns {name: view} of view number `v` for the given names (None: all); its rows are ready or will be.
        await_rows: waits until the rows of a batch are ready in the views that were opened last, and returns those views.
    """

    way = "cached"

    def __init__(
        self,
        open_views: Callable[[int, Collection[str] | None, Reading | None], Mapping[str, View]],
        await_rows: Callable[[Tensor], Mapping[str, View]] | None = None,
    ) -> None:
        self._open_views = open_views
        self._await_rows = await_rows
        self._views: Mapping[str, View] = {}
        self._uploaded: dict[str, Tensor] = {}
        self._order: UploadedOrder | None = None
        self._pins = False
        self._ahead = ReadAhead(self._rows)
        self.samples_gathered = 0
        self.bytes_gathered = 0
        self.wait_seconds = 0.0

    def begin_epoch(self, view: int, names: Collection[str] | None = None, reading: Reading | None = None) -> None:
        started = time.perf_counter()
        self._views = self._open_views(view, names, reading)
        self.wait_seconds += time.perf_counter() - started

    def gather(self, indices: Tensor, images: Tensor) -> dict[str, Tensor]:
        gathered = self._ahead.take(indices)
        if self._order is not None:
            places = self._order.take(indices)
            gathered = {**gathered, **{name: rows.index_select(0, places) for name, rows in self._uploaded.items()}}
        self.samples_gathered += len(indices)
        self.bytes_gathered += sum(rows.nbytes for rows in gathered.values())
        return {name: gathered[name].to(images.device, torch.float32, non_blocking=True) for name in self._views}

    @contextmanager
    def reading(self, parts: Iterable[Tensor], device: str) -> Iterator[None]:
        """Small views are uploaded to a GPU as a whole; the batches of the others are gathered in the background."""
        if not queues_work(device):
            yield
            return
        self._upload(device)
        parts = list(parts)
        self._order = UploadedOrder(parts, device) if self._uploaded else None
        self._pins = torch.device(device).type == "cuda"
        try:
            with self._ahead.over(parts) if len(self._uploaded) < len(self._views) else nullcontext():
                yield
        finally:
            self._uploaded, self._order = {}, None
            self._pins = False

    def _upload(self, device: str) -> None:
        limit = memory_limit(device)
        room = _UPLOADED_BYTES if limit is None else min(_UPLOADED_BYTES, int(_UPLOADED_SHARE * limit))
        for name, view in sorted(self._views.items(), key=lambda item: item[1].bytes_per_sample):
            num_bytes = view.rows * view.bytes_per_sample
            if view.complete and num_bytes <= room:
                self._uploaded[name] = view.gather(torch.arange(view.rows)).to(device)
                room -= num_bytes

    def _rows(self, indices: Tensor) -> dict[str, Tensor]:
        """The rows [B, ...] of the views that were not uploaded."""
        if self._await_rows is not None and not all(view.ready(indices) for view in self._views.values()):
            started = time.perf_counter()
            self._views = self._await_rows(indices)
            self.wait_seconds += time.perf_counter() - started
        rows = {name: view.gather(indices) for name, view in self._views.items() if name not in self._uploaded}
        return {name: values.pin_memory() for name, values in rows.items()} if self._pins else rows


class RestoredKnowledge:
    """Decodes knowledge that is stored in a compact form (top-k logits) into the form that methods read."""

    def __init__(self, source: KnowledgeSource, knowledge: Mapping[str, Knowledge]) -> None:
        self._source = source
        self._knowledge = knowledge
        self.way = source.way

    @property
    def wait_seconds(self) -> float:
        return self._source.wait_seconds

    def begin_epoch(self, view: int, names: Collection[str] | None = None, reading: Reading | None = None) -> None:
        self._source.begin_epoch(view, names, reading)

    def gather(self, indices: Tensor, images: Tensor) -> dict[str, Tensor]:
        gathered = self._source.gather(indices, images)
        return {name: self._knowledge[name].restore(stored) for name, stored in gathered.items()}

    def reading(self, parts: Iterable[Tensor], device: str) -> AbstractContextManager[None]:
        return self._source.reading(parts, device)
