"""The teacher at work: it fills sealed views and answers forward passes. Plain PyTorch; the actor is a thin coat."""

import contextlib
import heapq
import itertools
import json
import secrets
import threading
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
from stillhouse.data.images import read_ahead
from stillhouse.data.views import Views
from stillhouse.distill.sources import Reading, compute_knowledge, layers_of
from stillhouse.durable import Damaged
from stillhouse.errors import InfrastructureError, StillhouseError, as_disk_full
from stillhouse.knowledge.fill_log import append_line, fill_log, logged_stretches
from stillhouse.knowledge.kinds import Knowledge
from stillhouse.knowledge.speed import seconds_per_row
from stillhouse.knowledge.store import KnowledgeStore
from stillhouse.knowledge.writer import ViewWriter, room_for
from stillhouse.models.features import FeatureReader
from stillhouse.teachers.call_queue import FairLock
from stillhouse.teachers.definition import base_identity, view_identity
from stillhouse.teachers.fill_batches import FillBatch, FillBatches
from stillhouse.teachers.library import LoadedTeacher, score
from stillhouse.teachers.model_server import ModelServer
from stillhouse.teachers.ticket import FillRequest
from stillhouse.teachers.verify import verify_sealed

FILL_BATCH = 512
_MEASURED, _MEASURED_FEW = 256, 64
"""Samples in the measured batches: of a forward pass, and of each kind of knowledge."""
_COMMIT_SHARE = 0.05
"""Stretches grow until making them durable takes no more than this part of computing them."""
_STRETCH_S = 1.0
"""Stretches that take this long to compute do not grow: trials wait for them."""
_POLL_S = 0.02
_REQUESTED, _AHEAD = 0, 1


class TeacherService:
    """One loaded teacher, filling the views that trials ask for, and running ahead with those they will ask for.

    Safe to call from several threads: one thread fills, a lock guards the model. It fills until `close`.

    Args:
        dtype: number format of sealed views, float32 or float16.
        merged_rows: the largest batch that calls of trials are merged into; by default `ModelServer` decides.
        note_fill: adds a line to the log of fills; by default to the file in the store's folder.
    """

    def __init__(
        self,
        teacher: LoadedTeacher,
        data: ImageData,
        views: Views,
        store: KnowledgeStore,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        merged_rows: int | None = None,
        note_fill: Callable[[str], None] | None = None,
    ) -> None:
        self.teacher = teacher
        self._note_fill = note_fill or self._append_to_log
        self._data = data
        self._views = views
        self._store = store
        self._dtype = dtype
        self._device = device
        self._images = data.train.images.to(device)
        self._labels = data.train.labels.to(device)
        self.base = base_identity(
            weights_hash=teacher.weights_hash, definition=teacher.definition, data=data, views=views, dtype=dtype
        )
        self._kinds: dict[int, dict[str, Knowledge]] = {}
        self._sweeps: dict[int, set[str]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._queue: list[tuple[int, int, int, Reading | None]] = []
        self._counted: set[str] = set()
        self._order = itertools.count()
        self._wanted = threading.Lock()
        self._model_lock = FairLock()
        self._task = tasks.of(data)
        self._server = ModelServer(
            teacher.model, lock=self._model_lock, device=device, merged_rows=merged_rows, task=self._task
        )
        self._filler: threading.Thread | None = None
        self._closed = False
        self._resting = False
        self._error: InfrastructureError | None = None
        self._samples_forwarded = 0
        self._bytes_written = 0
        self._fill_seconds = 0.0
        self._compute = partial(compute_knowledge, task=self._task)

    def measure(self, kinds: Iterable[Knowledge]) -> dict[str, Any]:
        """What a forward pass costs, and what each kind costs and weighs.

        `seconds_per_sample` of a forward pass alone, and by kind: `compute_seconds` of one sample, with all passes that the
        kind takes, `bytes_per_sample`, and `read_seconds` to gather one sample from the store.
        """
        wanted = {kind.id: kind for kind in kinds}
        count = min(_MEASURED, len(self._images))
        images, few = self._view_images(0, np.arange(count)), min(_MEASURED_FEW, count)
        with self._model_lock, FeatureReader(self.teacher.model, layers_of(wanted)) as reader:

            def seconds(some: Mapping[str, Knowledge], rows: int) -> float:
                started = time.perf_counter()
                self._compute(reader, some, images[:rows], self._labels[:rows], (0, torch.arange(rows)))
                if self._device != "cpu":
                    torch.cuda.synchronize()
                return time.perf_counter() - started

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
            "read_seconds": {name: seconds_per_row(self._store.root, size) for name, size in sizes.items()},
        }

    def request(self, request: FillRequest) -> InfrastructureError | None:
        """Queues a sealed view to be filled; returns at once, with the error if filling has failed since the last request.

        A request that a trial waits for goes before all those that only run ahead. Repeating a request is harmless and cheap.
        All kinds that are requested of a view before its turn comes share one forward pass.
        """
        view, urgency = request.view, _AHEAD if request.ahead else _REQUESTED
        with self._wanted:
            assert not self._closed, "a service that was closed fills no more"
            if request.sweep:
                self._sweeps.setdefault(view, set()).add(request.sweep)
            for kind in request.kinds:
                self._kinds.setdefault(view, {}).setdefault(kind.id, kind)
                if request.damaged:
                    self._store.distrust(view_identity(self.base, kind, view))
            error, self._error = self._error, None
            self._resting = False
            if not any(queued == view and urgent <= urgency for urgent, _, queued, _ in self._queue):
                heapq.heappush(self._queue, (urgency, next(self._order), view, request.reading))
            if self._filler is None or not self._filler.is_alive():
                self._filler = threading.Thread(target=self._fill_queue, name="filler", daemon=True)
                self._filler.start()
        return error

    def rest(self) -> None:
        """Forgets what was requested, and returns when what is under way is durable and counted; requests may come again."""
        with self._wanted:
            self._queue.clear()
            self._kinds.clear()
            self._resting = True
            filler = self._filler
        if filler is not None:
            filler.join()

    def close(self) -> None:
        """Forgets what was requested and not begun, and waits until the view under way is sealed."""
        with self._wanted:
            self._closed = True
            self._queue.clear()
            filler = self._filler
        if filler is not None:
            filler.join()

    def fill(self, view: int, kinds: Iterable[Knowledge], reading: Reading | None = None) -> None:
        """Seals view number `view` for these kinds; those that miss share one forward pass.

        Args:
            reading: how the first trial will read the view: rows are filled in that order, else by their numbers.

        Raises:
            DiskFullError: the disk is full.
        """
        started = time.perf_counter()
        missing: dict[str, Knowledge] = {}
        for kind in kinds:
            name, identity = kind.id, view_identity(self.base, kind, view)
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
        with FeatureReader(self.teacher.model, layers_of(missing)) as reader, contextlib.ExitStack() as stack:
            if unknown := {name: kind for name, kind in missing.items() if name not in self._shapes}:
                few = self._forward(reader, unknown, view, np.arange(min(2, rows)))
                self._shapes |= {name: value.shape[1:] for name, value in few.items()}
            identities = {name: view_identity(self.base, kind, view) for name, kind in missing.items()}
            writers: dict[str, ViewWriter] = {}
            # In the order of their keys, so that two services do not wait for each other's locks.
            for name in sorted(missing, key=lambda name: self._store.key(identities[name])):
                writer = self._store.writer(
                    identities[name],
                    rows=rows,
                    shape=self._shapes[name],
                    dtype=self._dtype,
                    # Others who fill some of these kinds must mean the same rows by a batch.
                    order=next((each.order for each in writers.values() if each.order is not None), reading),
                    counted=self._is_counted,
                    shared=True,
                )
                writers[name] = stack.enter_context(writer)
            self._fill_missing(view, missing, reader, writers)
            for writer in writers.values():
                writer.seal()
        self._fill_seconds += time.perf_counter() - started

    def _fill_missing(
        self, view: int, kinds: Mapping[str, Knowledge], reader: FeatureReader, writers: Mapping[str, ViewWriter]
    ) -> None:
        """Forwards the rows that miss, batch by batch; a stretch of batches is made durable and counted in one go.

        Each batch is claimed first, so that several services fill the view and none forwards what another one does.
        """
        rows = len(self._images)
        # Who goes on fills in the order, and so in the batches, of who began: rows are rounded as if nothing had happened.
        reading = next((writer.order for writer in writers.values() if writer.order is not None), None)
        order = np.arange(rows) if reading is None else reading_order(reading[0], reading[1], rows)
        todo = FillBatches([order[first : first + FILL_BATCH] for first in range(0, rows, FILL_BATCH)], writers)
        num_batches = 1
        with read_ahead(self._images, (self._views.reads(torch.from_numpy(rows), view) for rows in todo.ahead())):
            while todo.left:
                if self._resting:
                    raise _IdleError
                started = time.perf_counter()
                stretch: list[FillBatch] = []
                while len(stretch) < num_batches and (batch := todo.take()) is not None:
                    self._fill_batch(view, kinds, reader, writers, batch)
                    stretch.append(batch)
                if not stretch:
                    # Others are at all that is left; should one of them die, its batches can be claimed.
                    time.sleep(_POLL_S)
                    continue
                count = sum(len(batch.rows) for batch in stretch)
                computed = time.perf_counter()
                token = secrets.token_hex(8)
                written = {name: writer.commit(token) for name, writer in writers.items()}
                self._note(view, count, written, computed - started, token)
                todo.finish(stretch)
                self._samples_forwarded += count
                self._bytes_written += sum(written.values())
                seconds = computed - started
                if time.perf_counter() - computed > _COMMIT_SHARE * seconds and seconds < _STRETCH_S:
                    num_batches *= 2

    def _fill_batch(
        self,
        view: int,
        kinds: Mapping[str, Knowledge],
        reader: FeatureReader,
        writers: Mapping[str, ViewWriter],
        batch: "FillBatch",
    ) -> None:
        wanted = {name: kinds[name] for name, some in batch.missing.items() if some.any()}
        values = self._forward(reader, wanted, view, batch.rows)
        for name, array in values.items():
            writers[name].put(batch.rows[batch.missing[name]], array[batch.missing[name]])

    def verify(self, kinds: Iterable[Knowledge], *, pairs: int, seed: int) -> dict[str, Any]:
        """`verify_sealed` of all views of these kinds."""
        wanted = {kind.id: kind for kind in kinds}
        with FeatureReader(self.teacher.model, layers_of(wanted)) as reader:
            return verify_sealed(
                self._store,
                self.base,
                wanted,
                lambda some, view, indices: self._forward(reader, some, view, indices),
                rows=len(self._images),
                num_views=self._views.count,
                pairs=pairs,
                seed=seed,
            )

    def evaluate(self, split: str) -> float:
        """The value of the task's metric on `validation` or `test`."""
        with self._model_lock:
            return score(self.teacher.model, self._data, split, self._device)

    def forward(
        self,
        images: NDArray[np.float32],
        kinds: Mapping[str, Knowledge],
        labels: NDArray[np.int64] | None = None,
        caller: str = "",
    ) -> dict[str, NDArray[np.float32]]:
        """Knowledge of normalised images [B, C, H, W] that exist in no view; pure, so safe to repeat.

        Args:
            labels: [B], for kinds that depend on the class.
            caller: who asks, for a fair share.

        Raises:
            QueueFullError: too many calls are waiting.
        """
        return self._server.knowledge(caller, images, kinds, labels)

    def call(self, caller: str, images: NDArray[Any], layers: Sequence[str], token: str | None = None) -> list[NDArray[Any]]:
        """`ModelServer.forward`."""
        return self._server.forward(caller, images, layers, token)

    def pull_back(
        self, caller: str, images: NDArray[Any], layers: Sequence[str], gradients: Sequence[NDArray[Any]], token: str | None
    ) -> NDArray[Any]:
        """`ModelServer.pull_back`."""
        return self._server.pull_back(caller, images, layers, gradients, token)

    @property
    def num_waiting(self) -> int:
        """Calls that wait to be served."""
        return self._server.queue.num_waiting

    def counters(self) -> dict[str, float]:
        """`samples_forwarded`, `bytes_written` and `fill_seconds` of this service's life, and what it served."""
        served = self._server.counters()
        return {
            **served,
            "samples_forwarded": self._samples_forwarded + served["samples_served"],
            "bytes_written": self._bytes_written,
            "fill_seconds": self._fill_seconds,
        }

    def _forward(
        self, reader: FeatureReader, kinds: Mapping[str, Knowledge], view: int, indices: NDArray[np.int64]
    ) -> dict[str, NDArray[np.float32]]:
        with self._model_lock:
            places = torch.from_numpy(indices).to(self._device)
            outputs = self._compute(reader, kinds, self._view_images(view, indices), self._labels[places], (view, places))
            return {name: output.float().cpu().numpy() for name, output in outputs.items()}

    def _view_images(self, view: int, indices: NDArray[np.int64]) -> torch.Tensor:
        places = torch.from_numpy(indices).to(self._device)
        return self._task.inputs(self._data, self._views, self._images, places, view)

    def _fill_queue(self) -> None:
        while True:
            with self._wanted:
                if not self._queue:
                    # Under the lock: whoever requests next starts another thread.
                    self._filler = None
                    return
                *_, view, reading = heapq.heappop(self._queue)
                # Whoever asks for the view later says again what for: what one sweep asked is not filled for another.
                kinds = list(self._kinds.pop(view, {}).values())
            try:
                self.fill(view, kinds, reading)
            except _IdleError:
                continue
            except Exception as error:  # the reason must reach the trials that wait
                with self._wanted:
                    self._error = as_disk_full(error, self._store.root) or InfrastructureError(
                        str(error) if isinstance(error, StillhouseError) else f"{type(error).__name__}: {error}"
                    )

    def _note(self, view: int, rows: int, written: Mapping[str, int], seconds: float, token: str) -> None:
        """One line per stretch in the store's log: the count of forwarded samples outlives every crash."""
        with self._wanted:
            sweeps = sorted(self._sweeps.get(view, ()))
        line = {
            "teacher": self.teacher.weights_hash,
            "view": view,
            "rows": rows,
            "bytes": sum(written.values()),
            "seconds": seconds,
            "kinds": sorted(name for name, num_bytes in written.items() if num_bytes),
            "time": time.time(),
            "stretch": token,
            "sweeps": sweeps,
        }
        self._note_fill(json.dumps(line))

    def _append_to_log(self, line: str) -> None:
        log = fill_log(self._store.root)
        with room_for(len(line), log):
            append_line(log, line)

    def _is_counted(self, token: str) -> bool:
        """Whether the log has the stretch: what a crash left between journal and log is made again, and counted once."""
        if token not in self._counted:
            self._counted = logged_stretches(self._store.root, self.teacher.weights_hash)
        return token in self._counted


class _IdleError(Exception):
    """Nobody wants the rest of the view for now."""
