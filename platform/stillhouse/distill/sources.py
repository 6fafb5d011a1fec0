"""Where a trial's knowledge comes from: one interface for every delivery mode."""

import time
from collections.abc import Callable, Collection, Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from stillhouse.data.hashing import derive_key, uniform
from stillhouse.device import Float32Precision, float32_precision
from stillhouse.errors import TrialError
from stillhouse.knowledge.kinds import Knowledge
from stillhouse.knowledge.view import View
from stillhouse.models.batch_parts import BatchParts
from stillhouse.models.features import FeatureReader
from stillhouse.tasks import Task
from stillhouse.tasks import find as find_task

Reading = tuple[int, int]
"""(seed, epoch) of a training: it decides the order in which samples are read, see `data.hashing.reading_order`."""


Places = tuple[int, Tensor]
"""(view, int64 [B]): which samples of which view."""


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


def compute_knowledge(
    reader: FeatureReader,
    knowledge: Mapping[str, Knowledge],
    images: Tensor,
    labels: Tensor | None = None,
    places: Places | None = None,
    task: Task | None = None,
    parts: BatchParts | None = None,
    precision: Float32Precision = "ieee",
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

    Raises:
        TrialError: the teacher's outputs are not all finite.
    """
    task = task or find_task()

    def compute(part: slice) -> dict[str, Tensor]:
        of_part = None if labels is None else labels[part]
        placed = None if places is None else (places[0], places[1][part])
        return _compute_piece(reader, knowledge, images[part], of_part, placed, task)

    with float32_precision(precision):
        computed = (parts or BatchParts()).apply(images, compute)
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
                _draws(kind.draws, places) if kind.draws else None,
            )
            for name, kind in knowledge.items()
        }
        # The outputs too: a reduction to signs, for example, turns NaN into a number.
        if not bool(torch.stack([output.isfinite().all() for output in (*outputs.values(), *computed.values())]).all()):
            wrong = [str(knowledge[name]) for name, output in computed.items() if not bool(output.isfinite().all())]
            raise TrialError(
                f"the teacher's outputs are not finite ({', '.join(wrong or outputs)}); check its weights, or train it again "
                "with a lower learning rate"
            )
        return computed


def _draws(count: int, places: Places | None) -> Tensor:
    """Numbers in [0, 1), float64 [B, count], by view and sample."""
    assert places is not None, "random numbers of a sample depend on its place"
    view, indices = places
    counters = indices.cpu().numpy()[:, None] * count + np.arange(count)
    return torch.from_numpy(uniform(derive_key("draws of knowledge", view, count), counters)).to(indices.device)


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
        self._view = 0
        self.samples_forwarded = 0

    def begin_epoch(self, view: int, names: Collection[str] | None = None, reading: Reading | None = None) -> None:
        self._view = view
        self._needed = {name: kind for name, kind in self._knowledge.items() if is_named(name, names)}

    def gather(self, indices: Tensor, images: Tensor) -> dict[str, Tensor]:
        if not self._needed:
            return {}
        self.samples_forwarded += len(indices)
        labels = None if self._labels is None else self._labels[indices.to(self._labels.device)]
        return compute_knowledge(self._reader, self._needed, images, labels, (self._view, indices), self._task, self._parts)


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
        self.samples_gathered = 0
        self.bytes_gathered = 0
        self.wait_seconds = 0.0

    def begin_epoch(self, view: int, names: Collection[str] | None = None, reading: Reading | None = None) -> None:
        started = time.perf_counter()
        self._views = self._open_views(view, names, reading)
        self.wait_seconds += time.perf_counter() - started

    def gather(self, indices: Tensor, images: Tensor) -> dict[str, Tensor]:
        if self._await_rows is not None and not all(view.ready(indices) for view in self._views.values()):
            started = time.perf_counter()
            self._views = self._await_rows(indices)
            self.wait_seconds += time.perf_counter() - started
        gathered = {name: view.gather(indices) for name, view in self._views.items()}
        self.samples_gathered += len(indices)
        self.bytes_gathered += sum(rows.nbytes for rows in gathered.values())
        return {name: rows.to(images.device, torch.float32, non_blocking=True) for name, rows in gathered.items()}


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
