"""The teacher at work: it fills sealed views and answers forward passes. Plain PyTorch; the actor is a thin coat."""

import contextlib
import errno
import heapq
import itertools
import json
import os
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stillhouse.data.datasets import ImageData
from stillhouse.data.views import Views
from stillhouse.distill.sources import compute_knowledge, layers_of
from stillhouse.durable import Damaged, canonical_json
from stillhouse.knowledge.kinds import Knowledge
from stillhouse.knowledge.store import KnowledgeStore, default_shard_rows, room_for
from stillhouse.models.features import FeatureReader
from stillhouse.teachers.definition import base_identity, view_identity
from stillhouse.teachers.library import LoadedTeacher, accuracy

FILL_BATCH = 512
_REQUESTED, _AHEAD = 0, 1


def kind_id(kind: Knowledge) -> str:
    """The name of a kind of knowledge that is equal for equal knowledge."""
    return canonical_json(kind.identity())


class TeacherService:
    """One loaded teacher, filling the views that trials ask for, and running ahead with those they will ask for.

    Safe to call from several threads: one thread fills, a lock guards the model.

    Args:
        dtype: number format of sealed views, float32 or float16.
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
    ) -> None:
        self.teacher = teacher
        self._data = data
        self._views = views
        self._store = store
        self._dtype = dtype
        self._device = device
        self._images = data.train.images.to(device)
        self.base = base_identity(
            weights_hash=teacher.weights_hash, definition=teacher.definition, data=data, views=views, dtype=dtype
        )
        self._kinds: dict[str, Knowledge] = {}
        self._queue: list[tuple[int, int, int]] = []
        self._order = itertools.count()
        self._wanted = threading.Condition()
        self._model_lock = threading.Lock()
        self._filler: threading.Thread | None = None
        self._error: str | None = None
        self._samples_forwarded = 0
        self._bytes_written = 0
        self._fill_seconds = 0.0

    def measure(self, kinds: Iterable[Knowledge]) -> dict[str, Any]:
        """What a forward pass costs and what each kind weighs: `seconds_per_sample`, `bytes_per_sample` by kind."""
        wanted = {kind_id(kind): kind for kind in kinds}
        count = min(256, len(self._images))
        images = self._view_images(0, np.arange(count))
        with self._model_lock, FeatureReader(self.teacher.model, layers_of(wanted)) as reader:
            sample = compute_knowledge(reader, wanted, images[:2])
            times = []
            for _ in range(3):
                started = time.perf_counter()
                compute_knowledge(reader, {}, images)
                if self._device != "cpu":
                    torch.cuda.synchronize()
                times.append(time.perf_counter() - started)
        width = np.dtype(self._dtype).itemsize
        return {
            "seconds_per_sample": sorted(times)[1] / count,
            "bytes_per_sample": {name: width * value[0].numel() for name, value in sample.items()},
        }

    def request(self, view: int, kinds: Iterable[Knowledge], *, ahead: bool = False, damaged: bool = False) -> str | None:
        """Asks for a sealed view of `kinds`; returns at once, with the reason if filling has failed.

        A request goes before everything that only runs ahead. Repeating a request does no harm and costs nothing.

        Args:
            view: number of the view.
            kinds: what is wanted of it.
            ahead: whether nobody waits for it yet.
            damaged: whether the caller found it damaged; it is then checked against its checksums again.
        """
        urgency = _AHEAD if ahead else _REQUESTED
        with self._wanted:
            for kind in kinds:
                self._kinds.setdefault(kind_id(kind), kind)
                if damaged:
                    self._store.distrust(view_identity(self.base, kind, view))
            error, self._error = self._error, None
            if not any(queued == view and urgent <= urgency for urgent, _, queued in self._queue):
                heapq.heappush(self._queue, (urgency, next(self._order), view))
            if self._filler is None or not self._filler.is_alive():
                self._filler = threading.Thread(target=self._fill_queue, name="filler", daemon=True)
                self._filler.start()
            self._wanted.notify()
        return error

    def fill(self, view: int) -> None:
        """Seals view number `view` for every kind that was ever requested; kinds that miss share one forward pass.

        Raises:
            InfrastructureError: the disk is full.
        """
        started = time.perf_counter()
        missing: dict[str, Knowledge] = {}
        for name, kind in list(self._kinds.items()):
            identity = view_identity(self.base, kind, view)
            try:
                self._store.open(identity)
            except FileNotFoundError:
                missing[name] = kind
            except Damaged:
                self._store.unseal(identity)
                missing[name] = kind
        if not missing:
            return
        with FeatureReader(self.teacher.model, layers_of(missing)) as reader:
            self._fill_missing(view, missing, reader)
        self._fill_seconds += time.perf_counter() - started

    def _fill_missing(self, view: int, missing: Mapping[str, Knowledge], reader: FeatureReader) -> None:
        rows = len(self._images)
        sample = self._forward(reader, missing, view, np.arange(min(2, rows)))
        shapes = {name: sample[name].shape[1:] for name in missing}
        # Shards of all kinds end at the same rows, so that one forward pass serves them all.
        shard_rows = min(default_shard_rows(shape, self._dtype) for shape in shapes.values())
        writers = {
            name: self._store.writer(
                view_identity(self.base, kind, view), rows=rows, shape=shapes[name], dtype=self._dtype, shard_rows=shard_rows
            )
            for name, kind in missing.items()
        }
        for first, last in sorted({stretch for writer in writers.values() for stretch in writer.missing()}):
            started = time.perf_counter()
            open_writers = {name: writer for name, writer in writers.items() if (first, last) in set(writer.missing())}
            if not open_writers:
                continue
            still = {name: missing[name] for name in open_writers}
            parts = [
                self._forward(reader, still, view, np.arange(start, min(start + FILL_BATCH, last)))
                for start in range(first, last, FILL_BATCH)
            ]
            written = 0
            seconds = time.perf_counter() - started
            for name, writer in open_writers.items():
                written += writer.write(first, np.concatenate([part[name] for part in parts]))
            self._samples_forwarded += last - first
            self._bytes_written += written
            self._note(view, last - first, written, seconds, open_writers)
        for name, writer in writers.items():
            writer.seal()
            self._store.trust(view_identity(self.base, missing[name], view))

    def evaluate(self, split: str) -> float:
        """Top-1 accuracy in [0, 1] on `validation` or `test`."""
        with self._model_lock:
            return accuracy(self.teacher.model, self._data, split, self._device)

    def forward(self, images: NDArray[np.float32], kinds: Mapping[str, Knowledge]) -> dict[str, NDArray[np.float32]]:
        """Knowledge of normalised images [B, C, H, W] that exist in no view; pure, so safe to repeat."""
        pixels = torch.from_numpy(np.array(images)).to(self._device)
        with self._model_lock, FeatureReader(self.teacher.model, layers_of(kinds)) as reader:
            answer = {name: value.float().cpu().numpy() for name, value in compute_knowledge(reader, kinds, pixels).items()}
            self._samples_forwarded += len(images)
        return answer

    def counters(self) -> dict[str, float]:
        """`samples_forwarded`, `bytes_written` and `fill_seconds` of this service's life."""
        return {
            "samples_forwarded": self._samples_forwarded,
            "bytes_written": self._bytes_written,
            "fill_seconds": self._fill_seconds,
        }

    def _forward(
        self, reader: FeatureReader, kinds: Mapping[str, Knowledge], view: int, indices: NDArray[np.int64]
    ) -> dict[str, NDArray[np.float32]]:
        with self._model_lock:
            outputs = compute_knowledge(reader, kinds, self._view_images(view, indices))
            return {name: output.float().cpu().numpy() for name, output in outputs.items()}

    def _view_images(self, view: int, indices: NDArray[np.int64]) -> torch.Tensor:
        places = torch.from_numpy(indices).to(self._device)
        return self._data.normalise(self._views.augment(self._images, places, view))

    def _fill_queue(self) -> None:
        while True:
            with self._wanted:
                while not self._queue:
                    self._wanted.wait()
                *_, view = heapq.heappop(self._queue)
            try:
                self.fill(view)
            except Exception as error:  # the reason must reach the trials that wait
                with self._wanted:
                    self._error = f"{type(error).__name__}: {error}"

    def _note(self, view: int, rows: int, num_bytes: int, seconds: float, kinds: Iterable[str]) -> None:
        """One line per shard in the store's log: the count of forwarded samples outlives every crash."""
        line = {
            "teacher": self.teacher.weights_hash,
            "view": view,
            "rows": rows,
            "bytes": num_bytes,
            "seconds": seconds,
            "kinds": sorted(kinds),
            "time": time.time(),
        }
        log, text = fill_log(self._store.root), json.dumps(line)
        with room_for(len(text), log):
            append_line(log, text)


def fill_log(store: Path) -> Path:
    return store / "fills.jsonl"


def append_line(path: Path, line: str) -> None:
    """Appends one line durably; lines of several processes do not mix, and a torn one does not swallow the next.

    Raises:
        OSError: the disk is full.
    """
    content = f"\n{line}\n".encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        if os.write(descriptor, content) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def count_fills(store: Path, weights_hash: str, *, since_byte: int = 0) -> dict[str, float]:
    """`samples`, `bytes` and `seconds` of the teacher with these weights, by the log behind byte `since_byte`."""
    counts = {"samples": 0.0, "bytes": 0.0, "seconds": 0.0}
    with contextlib.suppress(FileNotFoundError), fill_log(store).open("rb") as file:
        file.seek(since_byte)
        for line in file:
            with contextlib.suppress(ValueError, TypeError, KeyError):
                entry = json.loads(line)
                if entry["teacher"] == weights_hash:
                    counts["samples"] += entry["rows"]
                    counts["bytes"] += entry["bytes"]
                    counts["seconds"] += entry["seconds"]
    return counts
