"""The shared teacher as a Ray actor: named by its content, restarted when it dies, found again by whoever needs it."""

import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from stillhouse.data.images import ImageData
from stillhouse.data.views import Views
from stillhouse.distill.sources import Reading
from stillhouse.durable import content_hash
from stillhouse.errors import InfrastructureError, StillhouseError
from stillhouse.knowledge.kinds import Knowledge
from stillhouse.knowledge.store import KnowledgeStore
from stillhouse.knowledge.top_k import TopK
from stillhouse.teachers.definition import TeacherDefinition, TeacherTicket
from stillhouse.teachers.library import TeacherLibrary
from stillhouse.teachers.service import TeacherService
from stillhouse.teachers.serving import MAX_WAITING, Busy, unless_busy

NAMESPACE = "stillhouse"
_THREADS = MAX_WAITING + 16


class TeacherActor:
    """Runs a `TeacherService` in an actor. `prepare` loads or trains; all else needs it, and a restarted actor redoes it.

    Args:
        data: the reference of what `ImageData.to_arrays` gave, in a list, so that a node holds one copy and a restart reads it.
        home: the absolute folder of teachers and knowledge.
    """

    def __init__(
        self,
        definition: TeacherDefinition,
        data: list[Any],
        views: Views,
        home: str,
        dtype: str,
        threads: int,
        import_paths: list[str],
        method_folders: list[str],
    ) -> None:
        from stillhouse.workers import prepare_worker

        prepare_worker(import_paths, threads, method_folders)
        self._definition = definition
        self._data = ImageData.from_arrays(*ray.get(data[0]))
        self._views = views
        self._home = Path(home)
        self._dtype = dtype
        self._device = "cuda" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu"
        self._service: TeacherService | None = None
        self._status = ""
        self._preparing = threading.Lock()
        self._ending = threading.Event()
        self._facts: dict[str, Any] = {}

    def prepare(self) -> dict[str, Any]:
        """Loads or trains the teacher once; gives its facts. A `StillhouseError` comes back as `{"error", "exit_code"}`."""
        self._ending.clear()
        if self._service is None:
            try:
                teacher = TeacherLibrary(self._home / "teachers").obtain(
                    self._definition,
                    self._data,
                    self._views,
                    device=self._device,
                    progress=self._note,
                    ending=self._ending.is_set,
                )
            except StillhouseError as error:
                return {"error": str(error), "exit_code": error.exit_code}
            except OSError as error:
                return {"error": f"{error.strerror or error} ({error.filename})", "exit_code": InfrastructureError.exit_code}
            store = KnowledgeStore(self._home / "knowledge")
            store.root.mkdir(parents=True, exist_ok=True)
            self._service = TeacherService(teacher, self._data, self._views, store, dtype=self._dtype, device=self._device)
            self._facts = {
                "key": teacher.key,
                "weights_path": str(teacher.path),
                "weights_hash": teacher.weights_hash,
                "validation_accuracy": teacher.validation_accuracy,
                "train_seconds": teacher.train_seconds,
                "trained_now": teacher.trained_now,
                "device": self._device,
                "seconds_per_sample": self._service.measure(())["seconds_per_sample"],
                "base": self._service.base,
            }
        return self._facts

    def end(self) -> None:
        """Lets `prepare` write a checkpoint and give up, behind the epoch under way."""
        self._ending.set()

    def status(self) -> str:
        """The last line of progress of `prepare`."""
        return self._status

    def measure(self, kinds: Iterable[Knowledge]) -> dict[str, Any]:
        return self._ready().measure(kinds)

    def request(
        self,
        view: int,
        kinds: Iterable[Knowledge],
        ahead: bool = False,
        damaged: bool = False,
        reading: Reading | None = None,
    ) -> str | None:
        return self._ready().request(view, kinds, ahead=ahead, damaged=damaged, reading=reading)

    def forward(
        self,
        images: NDArray[np.float32],
        kinds: Mapping[str, Knowledge],
        labels: NDArray[np.int64] | None = None,
        caller: str = "",
    ) -> dict[str, NDArray[np.float32]] | Busy:
        return unless_busy(self._ready().forward, images, kinds, labels, caller)

    def call(self, caller: str, images: NDArray[Any], layers: Sequence[str], token: str | None) -> list[NDArray[Any]] | Busy:
        return unless_busy(self._ready().call, caller, images, layers, token)

    def pull_back(
        self, caller: str, images: NDArray[Any], layers: Sequence[str], gradients: Sequence[NDArray[Any]], token: str | None
    ) -> NDArray[Any] | Busy:
        return unless_busy(self._ready().pull_back, caller, images, layers, gradients, token)

    def verify(self, kinds: Iterable[Knowledge], pairs: int, seed: int) -> dict[str, Any]:
        return self._ready().verify(kinds, pairs=pairs, seed=seed)

    def evaluate(self, split: str) -> float:
        return self._ready().evaluate(split)

    def counters(self) -> dict[str, float]:
        return self._ready().counters()

    def process_id(self) -> int:
        return os.getpid()

    def _ready(self) -> TeacherService:
        # Behind a restart many trials ask at once, and the teacher is loaded for all of them.
        with self._preparing:
            if self._service is None:
                facts = self.prepare()
                if "error" in facts:
                    raise StillhouseError(facts["error"])
        assert self._service is not None
        return self._service

    def _note(self, text: str) -> None:
        self._status = text


def actor_name(definition: TeacherDefinition, data: ImageData, views: Views, *, home: Path, dtype: str) -> str:
    """Equal for sweeps that can share the actor: the same teacher, data, views, number format, home and code."""
    from stillhouse import __version__

    parts = {
        "teacher": definition.key(data, views),
        "views": views.identity(),
        "home": str(home),
        "dtype": dtype,
        "code": __version__,
    }
    return f"teacher-{content_hash(parts, digits=16)}"


def start_actor(
    definition: TeacherDefinition,
    data: ImageData,
    data_reference: Any,
    views: Views,
    *,
    home: Path,
    dtype: str,
    cpus: float,
    gpus: float,
    placement: Mapping[str, Any],
    import_paths: list[str],
    method_folders: list[str],
) -> tuple[str, Any]:
    """Starts the shared actor, or finds the one that another sweep started. Returns its name and handle.

    Args:
        placement: Ray's options that say on which nodes it may run.
    """
    name = actor_name(definition, data, views, home=home, dtype=dtype)
    handle = (
        ray.remote(TeacherActor)
        .options(
            name=name,
            namespace=NAMESPACE,
            get_if_exists=True,
            num_cpus=cpus,
            num_gpus=gpus,
            **placement,
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=_THREADS,
        )
        .remote(definition, [data_reference], views, str(home), dtype, int(cpus), import_paths, method_folders)
    )
    return name, handle


def make_ticket(
    definition: TeacherDefinition,
    facts: Mapping[str, Any],
    *,
    home: Path,
    dtype: str,
    actor: str,
    ways: Mapping[str, str],
    calling_way: str = "inline",
    top_k: TopK | None = None,
) -> TeacherTicket:
    """What trials need to know of the teacher that the actor has prepared."""
    return TeacherTicket(
        definition=definition,
        weights_path=facts["weights_path"],
        weights_hash=facts["weights_hash"],
        base=facts["base"],
        dtype=dtype,
        store=str(home / "knowledge"),
        actor=actor,
        namespace=NAMESPACE,
        ways=dict(ways),
        calling_way=calling_way,
        top_k=top_k,
    )
