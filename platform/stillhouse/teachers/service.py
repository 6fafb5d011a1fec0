"""A loaded teacher that fills views on request and answers calls. Plain PyTorch; `TeacherActor` is a thin Ray wrapper."""

import heapq
import itertools
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse import tasks
from stillhouse.data.datasets import ImageData
from stillhouse.data.views import Views
from stillhouse.device import Float32Precision
from stillhouse.distill.calls import Procedure
from stillhouse.distill.sources import Reading, layers_of
from stillhouse.errors import InfrastructureError, StillhouseError, as_disk_full
from stillhouse.home_access.node_home import NodeHome
from stillhouse.knowledge.kinds import Knowledge
from stillhouse.knowledge.store import KnowledgeStore
from stillhouse.models.features import FeatureReader
from stillhouse.teachers.call_queue import FairLock
from stillhouse.teachers.definition import base_identity, view_identity
from stillhouse.teachers.library import LoadedTeacher, score
from stillhouse.teachers.model_server import ModelServer
from stillhouse.teachers.stored_outputs import compute_outputs, outputs_file
from stillhouse.teachers.ticket import FillRequest
from stillhouse.teachers.verify import verify_sealed
from stillhouse.teachers.view_filler import FillingStopped, ViewFiller
from stillhouse.user_code import user_code

_REQUESTED, _AHEAD = 0, 1


class TeacherService:
    """One loaded teacher. It fills the views that trials request, and those that they will read later.

    Several threads may call it: one thread fills, and a lock guards the model. It fills until `close`.

    Args:
        dtype: number format of sealed views, float32 or float16.
        merged_rows: the largest batch that calls of trials are merged into; by default `ModelServer` decides.
        note_fill: adds a line to the log of fills; by default to the file in the store's folder.
        precision: of the teacher's convolutions while it fills views on a GPU; part of the views' identities.
        on_error: called in the filling thread when filling failed, before trials learn of it.
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
        on_error: Callable[[], None] = lambda: None,
        precision: Float32Precision = "ieee",
    ) -> None:
        self.teacher = teacher
        self._data = data
        self._views = views
        self._store = store
        self._device = device
        self._on_error = on_error
        self.base = base_identity(
            weights_hash=teacher.weights_hash,
            definition=teacher.definition,
            data=data,
            views=views,
            dtype=dtype,
            precision=precision,
        )
        self._kinds: dict[int, dict[str, Knowledge]] = {}
        self._sweeps: dict[int, set[str]] = {}
        self._queue: list[tuple[int, int, int, Reading | None]] = []
        self._order = itertools.count()
        self._wanted = threading.Lock()
        self._model_lock = FairLock()
        self._server = ModelServer(
            teacher.model, lock=self._model_lock, device=device, merged_rows=merged_rows, task=tasks.of(data)
        )
        self.filler = ViewFiller(
            teacher,
            data,
            views,
            store,
            base=self.base,
            dtype=dtype,
            device=device,
            lock=self._model_lock,
            sweeps_of=self._sweeps_of,
            note_fill=note_fill,
            precision=precision,
        )
        self._thread: threading.Thread | None = None
        self._closed = False
        self._error: InfrastructureError | None = None

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
            self.filler.resting = False
            if not any(queued == view and urgent <= urgency for urgent, _, queued, _ in self._queue):
                heapq.heappush(self._queue, (urgency, next(self._order), view, request.reading))
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._fill_queue, name="filler", daemon=True)
                self._thread.start()
        return error

    def rest(self) -> None:
        """Drops all requests, and returns when the current stretch is durable and counted; new requests may follow."""
        with self._wanted:
            self._queue.clear()
            self._kinds.clear()
            self.filler.resting = True
            thread = self._thread
        if thread is not None:
            thread.join()

    def close(self) -> None:
        """Drops the requests that were not begun, and waits until the current view is sealed."""
        with self._wanted:
            self._closed = True
            self._queue.clear()
            thread = self._thread
        if thread is not None:
            thread.join()

    def measure(self, kinds: Iterable[Knowledge]) -> dict[str, Any]:
        """`ViewFiller.measure`."""
        return self.filler.measure(kinds)

    def fill(self, view: int, kinds: Iterable[Knowledge], reading: Reading | None = None) -> None:
        """`ViewFiller.fill`."""
        self.filler.fill(view, kinds, reading)

    def verify(self, kinds: Iterable[Knowledge], *, pairs: int, seed: int) -> dict[str, Any]:
        """`verify_sealed` of all views of these kinds."""
        wanted = {kind.id: kind for kind in kinds}
        with FeatureReader(self.teacher.model, layers_of(wanted)) as reader:
            return verify_sealed(
                self._store,
                self.base,
                wanted,
                partial(self.filler.forward, reader),
                rows=len(self._data.train),
                num_views=self._views.count,
                pairs=pairs,
                seed=seed,
            )

    def evaluate(self, split: str) -> float:
        """The value of the task's metric on `validation` or `test`."""
        with self._model_lock:
            return score(self.teacher.model, self._data, split, self._device)

    def store_outputs(self, home: NodeHome) -> Path:
        """The file with the teacher's outputs on the validation and test splits; they are computed unless it exists."""
        teacher = self.teacher
        path = outputs_file(
            teacher.path.parent,
            self._data,
            weights_hash=teacher.weights_hash,
            normalization=teacher.definition.normalization,
        )
        with self._model_lock:
            compute_outputs(teacher.model, self._data, path, self._device, home)
        return path

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
            caller: identifies the caller; callers share the teacher equally.

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

    def run(
        self, caller: str, procedure: Procedure, arrays: Sequence[NDArray[Any]], options: Mapping[str, Any]
    ) -> list[NDArray[Any]]:
        """`ModelServer.run`."""
        return self._server.run(caller, procedure, arrays, options)

    @property
    def num_waiting(self) -> int:
        """Calls that wait to be served."""
        return self._server.queue.num_waiting

    def counters(self) -> dict[str, float]:
        """`samples_forwarded`, `bytes_written` and `fill_seconds` of this service's life, and what it served."""
        served = self._server.counters()
        return {
            **served,
            "samples_forwarded": self.filler.samples_forwarded + served["samples_served"],
            "bytes_written": self.filler.bytes_written,
            "fill_seconds": self.filler.fill_seconds,
        }

    def _sweeps_of(self, view: int) -> Iterable[str]:
        with self._wanted:
            return set(self._sweeps.get(view, ()))

    def _fill_queue(self) -> None:
        while True:
            with self._wanted:
                if not self._queue:
                    # Under the lock, so that the next request starts another thread.
                    self._thread = None
                    return
                *_, view, reading = heapq.heappop(self._queue)
                # A later request names its kinds again: what one sweep requested is not filled for another.
                kinds = list(self._kinds.pop(view, {}).values())
            try:
                with user_code():
                    self.fill(view, kinds, reading)
            except FillingStopped:
                continue
            except Exception as error:  # the reason must reach the trials that wait
                self._on_error()
                with self._wanted:
                    self._error = as_disk_full(error, self._store.root) or InfrastructureError(
                        str(error) if isinstance(error, StillhouseError) else f"{type(error).__name__}: {error}"
                    )
