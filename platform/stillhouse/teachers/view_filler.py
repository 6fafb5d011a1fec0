"""Fills sealed views with a teacher's knowledge, in stretches that are made durable and counted together."""

import contextlib
import json
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stillhouse import tasks
from stillhouse.data.datasets import ImageData
from stillhouse.data.hashing import reading_order
from stillhouse.data.images import images_for, read_ahead
from stillhouse.data.views import Views
from stillhouse.device import DeviceClock, Float32Precision, synchronise
from stillhouse.distill.sources import Finiteness, Reading, compute_knowledge, layers_of
from stillhouse.durable import Damaged
from stillhouse.knowledge.fill_log import append_line, fill_log, logged_stretches
from stillhouse.knowledge.kinds import Knowledge
from stillhouse.knowledge.number_format import in_format
from stillhouse.knowledge.read_speed import seconds_per_row
from stillhouse.knowledge.store import KnowledgeStore
from stillhouse.knowledge.writer import ViewWriter, room_for
from stillhouse.models.batch_parts import BatchParts
from stillhouse.models.features import FeatureReader
from stillhouse.teachers.background_writer import BackgroundWriter
from stillhouse.teachers.call_queue import FairLock
from stillhouse.teachers.definition import view_identity
from stillhouse.teachers.fill_batches import FillBatch, FillBatches
from stillhouse.teachers.host_copy import HostCopy
from stillhouse.teachers.library import LoadedTeacher

FILL_BATCH = 512
_MEASURED, _MEASURED_FEW = 256, 64
"""Samples in the measured batches on a CPU: of a forward pass, and of each kind of knowledge. A GPU takes about as long for 64
samples as for 512, so that batches of the latter size are measured there."""
_COMMIT_SHARE = 0.05
"""Stretches grow until making them durable takes no more than this part of computing them, since it disturbs what is computed
meanwhile."""
_STRETCH_S = 1.0
"""Stretches that take this long to compute do not grow: trials wait for them."""
_POLL_S = 0.02


class FillingStopped(Exception):
    """No sweep needs the rest of the view at present."""


class ViewFiller:
    """Computes a teacher's knowledge of whole views and stores it. One thread at a time may fill.

    Args:
        base: the part of the views' identities that does not depend on the kind of knowledge or the view.
        dtype: number format of sealed views, float32 or float16.
        lock: held while the model computes.
        sweeps_of: the names of the sweeps that requested a view, for the log of fills.
        note_fill: adds a line to the log of fills; by default to the file in the store's folder.
        precision: of the teacher's convolutions on a GPU.

    Attributes:
        resting: while it is true, `fill` stops at the next stretch.
        samples_forwarded, bytes_written, fill_seconds: of all views so far.
    """

    def __init__(
        self,
        teacher: LoadedTeacher,
        data: ImageData,
        views: Views,
        store: KnowledgeStore,
        *,
        base: Mapping[str, Any],
        dtype: str,
        device: str,
        lock: FairLock,
        sweeps_of: Callable[[int], Iterable[str]],
        note_fill: Callable[[str], None] | None = None,
        precision: Float32Precision = "ieee",
    ) -> None:
        self._teacher = teacher
        self._data = data
        self._views = views
        self._store = store
        self._base = base
        self._dtype = dtype
        self._device = device
        self._lock = lock
        self._sweeps_of = sweeps_of
        self._note_fill = note_fill or self._append_to_log
        self._images = images_for(data.train.images, device)
        self._labels = data.train.labels.to(device)
        self._task = tasks.of(data)
        self._compute = partial(compute_knowledge, task=self._task, parts=BatchParts(), precision=precision)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._counted: set[str] = set()
        self._stretch_batches = 1
        self.resting = False
        self.samples_forwarded = 0
        self.bytes_written = 0
        self.fill_seconds = 0.0

    def measure(self, kinds: Iterable[Knowledge]) -> dict[str, Any]:
        """The cost of a forward pass, and the cost and size of each kind of knowledge.

        `seconds_per_sample` of a forward pass alone, and by kind: `compute_seconds` of one sample, with all passes that the
        kind takes, `bytes_per_sample`, the `largest` magnitude of a value, and `read_seconds` to gather one sample from the
        store.
        """
        wanted = {kind.id: kind for kind in kinds}
        largest: dict[str, float] = {}
        on_cpu = self._device == "cpu"
        count = min(_MEASURED if on_cpu else FILL_BATCH, len(self._images))
        images, few = self.view_images(0, np.arange(count)), min(_MEASURED_FEW if on_cpu else FILL_BATCH, count)
        with self._lock, FeatureReader(self._teacher.model, layers_of(wanted)) as reader:

            def seconds(some: Mapping[str, Knowledge], rows: int) -> float:
                synchronise(self._device)
                started = time.perf_counter()
                values = self._compute(reader, some, images[:rows], self._labels[:rows], (0, torch.arange(rows)))
                synchronise(self._device)
                elapsed = time.perf_counter() - started
                for name, value in values.items():
                    largest[name] = max(largest.get(name, 0.0), float(value.abs().max()))
                return elapsed

            sample = self._compute(reader, wanted, images[:2], self._labels[:2], (0, torch.arange(2)))
            forward = sorted(seconds({}, count) for _ in range(3))[1] / count
            # The first pass of a shape is the slow one.
            each = {name: min(seconds({name: kind}, few) for _ in range(2)) / few for name, kind in wanted.items()}
        self._shapes |= {name: tuple(value.shape[1:]) for name, value in sample.items()}
        width = np.dtype(self._dtype).itemsize
        sizes = {name: width * value[0].numel() for name, value in sample.items()}
        return {
            "seconds_per_sample": forward,
            "compute_seconds": each,
            "bytes_per_sample": sizes,
            "largest": largest,
            "read_seconds": {name: seconds_per_row(self._store.root, size, self._device) for name, size in sizes.items()},
        }

    def fill(self, view: int, kinds: Iterable[Knowledge], reading: Reading | None = None) -> None:
        """Seals view number `view` for these kinds; those that are missing share one forward pass.

        Args:
            reading: how the first trial will read the view; rows are filled in that order, or in that of their numbers.

        Raises:
            DiskFullError: the disk is full.
            UsageError: the number format of sealed views cannot hold the values.
        """
        started = time.perf_counter()
        missing: dict[str, Knowledge] = {}
        for kind in kinds:
            name, identity = kind.id, view_identity(self._base, kind, view)
            try:
                self._store.open(identity)
            except FileNotFoundError:
                missing[name] = kind
            except Damaged:
                self._store.unseal(identity)
                missing[name] = kind
        if not missing:
            return
        rows = len(self._images)
        with FeatureReader(self._teacher.model, layers_of(missing)) as reader, contextlib.ExitStack() as stack:
            if unknown := {name: kind for name, kind in missing.items() if name not in self._shapes}:
                few = self.forward(reader, unknown, view, np.arange(min(2, rows)))
                self._shapes |= {name: value.shape[1:] for name, value in few.items()}
            identities = {name: view_identity(self._base, kind, view) for name, kind in missing.items()}
            writers: dict[str, ViewWriter] = {}
            # In the order of their keys, so that two services do not wait for each other's locks.
            for name in sorted(missing, key=lambda name: self._store.key(identities[name])):
                writer = self._store.writer(
                    identities[name],
                    rows=rows,
                    shape=self._shapes[name],
                    dtype=self._dtype,
                    # Other services that fill some of these kinds must mean the same rows by a batch.
                    order=next((each.order for each in writers.values() if each.order is not None), reading),
                    counted=self._is_counted,
                    shared=True,
                )
                writers[name] = stack.enter_context(writer)
            self._fill_missing(view, missing, reader, writers)
            for writer in writers.values():
                writer.seal()
        self.fill_seconds += time.perf_counter() - started

    def _fill_missing(
        self, view: int, kinds: Mapping[str, Knowledge], reader: FeatureReader, writers: Mapping[str, ViewWriter]
    ) -> None:
        """Forwards the missing rows, batch by batch; a stretch of batches is made durable and counted at once.

        While a batch is written, the next one is computed. Each batch is claimed first, so that several services fill the view
        together and none repeats the work of another.
        """
        rows = len(self._images)
        # A view that another service began keeps its order, and so its batches: the same rows are rounded in the same way.
        reading = next((writer.order for writer in writers.values() if writer.order is not None), None)
        order = np.arange(rows) if reading is None else reading_order(reading[0], reading[1], rows)
        batches = FillBatches([order[first : first + FILL_BATCH] for first in range(0, rows, FILL_BATCH)], writers)
        self._stretch_batches = 1
        ahead = (self._views.reads(torch.from_numpy(rows), view) for rows in batches.ahead())
        with read_ahead(self._images, ahead), BackgroundWriter() as background:
            while batches.left:
                if self.resting:
                    raise FillingStopped
                stretch: list[FillBatch] = []
                clocks: list[DeviceClock] = []
                while len(stretch) < self._stretch_batches and (batch := batches.take()) is not None:
                    clocks.append(self._fill_batch(view, kinds, reader, writers, batch, background))
                    stretch.append(batch)
                if stretch:
                    background.submit(partial(self._finish_stretch, view, writers, batches, stretch, clocks))
                else:
                    # Other services fill all that is left; if one of them dies, its batches can be claimed.
                    background.wait()
                    time.sleep(_POLL_S)

    def _fill_batch(
        self,
        view: int,
        kinds: Mapping[str, Knowledge],
        reader: FeatureReader,
        writers: Mapping[str, ViewWriter],
        batch: FillBatch,
        background: BackgroundWriter,
    ) -> DeviceClock:
        """Computes a batch and has it written in the background; the clock measures computing alone."""
        wanted = {name: kinds[name] for name, some in batch.missing.items() if some.any()}
        clock, finiteness = DeviceClock(self._device), Finiteness()
        with self._lock:
            copy = HostCopy(self._outputs(reader, wanted, view, batch.rows, finiteness), self._dtype, finiteness, clock)

        def put() -> None:
            copy.wait()
            for name, kind in wanted.items():
                missing = batch.missing[name]
                values = in_format(copy.rows(name)[missing], self._dtype, str(kind), copy.largest(name))
                writers[name].put(batch.rows[missing], values)

        background.submit(put)
        return clock

    def _finish_stretch(
        self,
        view: int,
        writers: Mapping[str, ViewWriter],
        batches: FillBatches,
        stretch: Sequence[FillBatch],
        clocks: Sequence[DeviceClock],
    ) -> None:
        """Makes the batches durable and counts them, after they were put."""
        count = sum(len(batch.rows) for batch in stretch)
        seconds = sum(clock.seconds for clock in clocks)
        started = time.perf_counter()
        token = secrets.token_hex(8)
        written = {name: writer.commit(token) for name, writer in writers.items()}
        self._note(view, count, written, seconds, token)
        batches.finish(stretch)
        self.samples_forwarded += count
        self.bytes_written += sum(written.values())
        if time.perf_counter() - started > _COMMIT_SHARE * seconds and seconds < _STRETCH_S:
            self._stretch_batches *= 2

    def forward(
        self, reader: FeatureReader, kinds: Mapping[str, Knowledge], view: int, indices: NDArray[np.int64]
    ) -> dict[str, NDArray[np.float32]]:
        """The knowledge of the view's samples `indices` [B], float32 {kind: [B, ...]}.

        Raises:
            TrialError: the teacher's outputs are not all finite.
        """
        with self._lock:
            outputs = self._outputs(reader, kinds, view, indices)
            return {name: output.float().cpu().numpy() for name, output in outputs.items()}

    def _outputs(
        self,
        reader: FeatureReader,
        kinds: Mapping[str, Knowledge],
        view: int,
        indices: NDArray[np.int64],
        finiteness: Finiteness | None = None,
    ) -> dict[str, torch.Tensor]:
        """As `forward`, on the teacher's device, where it may still be computed; the caller holds the lock."""
        places = torch.from_numpy(indices)
        images, labels = self.view_images(view, indices), self._labels[places.to(self._device)]
        return self._compute(reader, kinds, images, labels, (view, places), finiteness=finiteness)

    def view_images(self, view: int, indices: NDArray[np.int64]) -> torch.Tensor:
        places = torch.from_numpy(indices)
        if isinstance(self._images, torch.Tensor):
            places = places.to(self._device)
        return self._task.inputs(self._data, self._views, self._images, places, view)

    def _note(self, view: int, rows: int, written: Mapping[str, int], seconds: float, token: str) -> None:
        """Writes one line per stretch into the log of fills: the count of forwarded samples survives every crash."""
        line = {
            "teacher": self._teacher.weights_hash,
            "view": view,
            "rows": rows,
            "bytes": sum(written.values()),
            "seconds": seconds,
            "kinds": sorted(name for name, num_bytes in written.items() if num_bytes),
            "time": time.time(),
            "stretch": token,
            "sweeps": sorted(self._sweeps_of(view)),
        }
        self._note_fill(json.dumps(line))

    def _append_to_log(self, line: str) -> None:
        log = fill_log(self._store.root)
        with room_for(len(line), log):
            append_line(log, line)

    def _is_counted(self, token: str) -> bool:
        """Whether the log has the stretch. What a crash left between journal and log is computed again, and counted once."""
        if token not in self._counted:
            self._counted = logged_stretches(self._store.root, self._teacher.weights_hash)
        return token in self._counted
