"""The shared teacher as a Ray actor: named by its content, so that every sweep finds it, and restarted when it dies."""

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import ObjectLostError

from stillhouse.data.images import ImageData
from stillhouse.data.views import Views
from stillhouse.device import is_lost, limit_memory
from stillhouse.distill.calls import Procedure
from stillhouse.durable import bytes_hash, content_hash
from stillhouse.errors import InfrastructureError, StillhouseError, as_disk_full, as_stillhouse_error
from stillhouse.home_access.home_address import HomeAddress
from stillhouse.home_access.leases import EXPIRE_S, Leased
from stillhouse.home_access.node_home import NodeHome, node_home
from stillhouse.home_access.ray_process import NAMESPACE, NoActorError, find_actor, own_device
from stillhouse.knowledge.kinds import Knowledge
from stillhouse.models.checkpoint_files import checkpoint_file
from stillhouse.provenance import code_facts
from stillhouse.teachers.actor_registry import PREFIX
from stillhouse.teachers.call_queue import MAX_WAITING, QueueFull, unless_full
from stillhouse.teachers.definition import TeacherDefinition
from stillhouse.teachers.library import TeacherLibrary
from stillhouse.teachers.service import TeacherService
from stillhouse.teachers.ticket import FillRequest
from stillhouse.user_code import user_code

Answer = TypeVar("Answer")

_THREADS = MAX_WAITING + 16
_POLL_S = 0.1


class TeacherActor(Leased):
    """A thin Ray wrapper around `TeacherService`. `prepare` loads or trains the teacher; a restarted actor does so again.

    Args:
        data: a list with the reference of `ImageData.to_arrays` in Ray's object store: one copy per node, which a restart reads
            again. It is lost with the driver that put it there; every other holder of a lease brings its own.
        home: of teachers and knowledge.
        expire_s: how long a lease lasts; None for an actor that needs none.
        gpu_share: the largest share of one GPU's memory that it may take; 0 or 1 sets no limit.
    """

    def __init__(
        self,
        definition: TeacherDefinition,
        data: list[Any],
        views: Views,
        home: HomeAddress,
        dtype: str,
        threads: int,
        import_paths: list[str],
        method_folders: list[str],
        expire_s: float | None = None,
        gpu_share: float = 0.0,
    ) -> None:
        from stillhouse.workers import prepare_worker

        super().__init__(expire_s)
        prepare_worker(import_paths, threads, method_folders)
        self._definition = definition
        self._references = {"": data}
        self._data_timeout_s = EXPIRE_S if expire_s is None else expire_s
        self._views = views
        self._home_address = home
        self._dtype = dtype
        self._device = own_device()
        self._gpu_share = gpu_share
        self._service: TeacherService | None = None
        self._status = ""
        self._preparing = threading.Lock()
        self._ending = threading.Event()
        self._facts: dict[str, Any] = {}

    def prepare(self) -> dict[str, Any]:
        """Loads or trains the teacher once; returns its facts. A `StillhouseError` is returned as `{"error": the error}`."""
        try:
            self._answer(self._ready)
        except (StillhouseError, OSError) as error:
            return {"error": as_disk_full(error, self._home_address.path) or as_stillhouse_error(error)}
        return self._facts

    def lease(self, holder: str, about: Mapping[str, Any], data: list[Any] | None = None) -> bool:
        """Keeps the actor alive for `holder`, which brings its own data reference; False when the actor is about to end."""
        if data is not None:
            self._references[holder] = data
        return super().lease(holder, about)

    def release(self, holder: str) -> None:
        self._references.pop(holder, None)
        super().release(holder)
        if self._book.over and self._service is not None:
            # The last holder is about to count what was filled.
            self._service.rest()

    def about(self) -> dict[str, Any]:
        """What the actor is, and which sweeps use it."""
        return {
            "name": self._definition.name,
            "model": self._definition.model,
            "status": self._status,
            "device": self._device,
            "node": ray.get_runtime_context().get_node_id(),
            "pid": os.getpid(),
            "leases": self.leases(),
        }

    def load(self) -> tuple[str, int]:
        """The node of the actor, and how many calls wait in its queue."""
        return ray.get_runtime_context().get_node_id(), self._service.num_waiting if self._service else 0

    def end(self) -> None:
        """Makes `prepare` write a checkpoint after the current epoch and end."""
        self._ending.set()

    def status(self) -> str:
        """The latest line of progress of `prepare`."""
        return self._status

    def measure(self, kinds: Iterable[Knowledge]) -> dict[str, Any]:
        return self._answer(self._ready().measure, kinds)

    def request(self, request: FillRequest, replicas: Iterable[str] = ()) -> InfrastructureError | None:
        """`TeacherService.request`, forwarded to each actor in `replicas`, among which this actor's own name may be."""
        for name in replicas:
            # A replica that is gone gets the next request instead, or this one when it is its turn to be called.
            if name != ray.get_runtime_context().get_actor_name():
                with suppress(NoActorError):
                    find_actor(name).request.remote(request)
        return self._ready().request(request)

    def forward(
        self,
        images: NDArray[np.float32],
        kinds: Mapping[str, Knowledge],
        labels: NDArray[np.int64] | None = None,
        caller: str = "",
    ) -> dict[str, NDArray[np.float32]] | QueueFull:
        return self._answer(unless_full, self._ready().forward, images, kinds, labels, caller)

    def call(
        self, caller: str, images: NDArray[Any], layers: Sequence[str], token: str | None
    ) -> list[NDArray[Any]] | QueueFull:
        return self._answer(unless_full, self._ready().call, caller, images, layers, token)

    def pull_back(
        self, caller: str, images: NDArray[Any], layers: Sequence[str], gradients: Sequence[NDArray[Any]], token: str | None
    ) -> NDArray[Any] | QueueFull:
        return self._answer(unless_full, self._ready().pull_back, caller, images, layers, gradients, token)

    def run(
        self, caller: str, procedure: Procedure, arrays: Sequence[NDArray[Any]], options: Mapping[str, Any]
    ) -> list[NDArray[Any]] | QueueFull:
        return self._answer(unless_full, self._ready().run, caller, procedure, arrays, options)

    def verify(self, kinds: Iterable[Knowledge], pairs: int, seed: int) -> dict[str, Any]:
        return self._answer(self._ready().verify, kinds, pairs=pairs, seed=seed)

    def evaluate(self, split: str) -> float:
        return self._answer(self._ready().evaluate, split)

    def store_outputs(self) -> str:
        """The file of `TeacherService.store_outputs`, as the driver sees it."""
        home = node_home(self._home_address)
        return str(home.there(self._answer(self._ready().store_outputs, home)))

    def counters(self) -> dict[str, float]:
        return self._ready().counters()

    def process_id(self) -> int:
        return os.getpid()

    def _answer(self, act: Callable[..., Answer], *arguments: Any, **options: Any) -> Answer:
        """The result of `act`, which uses the GPU."""
        try:
            with user_code():
                return act(*arguments, **options)
        except Exception:
            _end_if_lost()
            raise

    def _ready(self) -> TeacherService:
        """The service. Several drivers, and trials after a restart, need it at once: the teacher is loaded once for all."""
        with self._preparing:
            if self._service is None:
                self._ending.clear()
                self._service = self._load()
            return self._service

    def _load(self) -> TeacherService:
        # Not in the constructor, whose errors do not reach a driver as they are.
        limit_memory(self._gpu_share)
        data = self._obtain_data()
        home = node_home(self._home_address)
        teacher = TeacherLibrary(home.folder / "teachers", home).obtain(
            self._definition_here(home),
            data,
            self._views,
            device=self._device,
            progress=self._note,
            ending=self._ending.is_set,
        )
        home.store.root.mkdir(parents=True, exist_ok=True)
        service = TeacherService(
            teacher,
            data,
            self._views,
            home.store,
            dtype=self._dtype,
            device=self._device,
            note_fill=home.note_fill,
            on_error=_end_if_lost,
        )
        self._facts = {
            "key": teacher.key,
            "weights_path": str(home.there(teacher.path)),
            "weights_hash": teacher.weights_hash,
            "validation_value": teacher.validation_value,
            "train_seconds": teacher.train_seconds,
            "trained_now": teacher.trained_now,
            "doubts": list(teacher.doubts),
            "unfit_outputs": teacher.unfit_outputs,
            "device": self._device,
            "seconds_per_sample": service.measure(())["seconds_per_sample"],
            "base": service.base,
        }
        return service

    def _definition_here(self, home: NodeHome) -> TeacherDefinition:
        """The definition with the path that given weights have on this node."""
        if self._definition.weights is None:
            return self._definition
        file, key = checkpoint_file(self._definition.weights)
        if (path := home.here(file)) == file:
            return self._definition
        home.pull(path)
        return replace(self._definition, weights=f"{path}#{key}" if key else str(path))

    def _obtain_data(self) -> ImageData:
        """The data set, from any driver that still lives.

        Raises:
            InfrastructureError: no such driver lives.
        """
        deadline = time.monotonic() + self._data_timeout_s
        while True:
            for data in list(self._references.values()):
                with suppress(ObjectLostError):
                    return ImageData.from_arrays(*ray.get(data[0]))
            if time.monotonic() > deadline:
                raise InfrastructureError("the data set was lost with the driver that put it into the cluster's memory")
            # A driver that still holds a lease brings it with the next renewal.
            time.sleep(_POLL_S)

    def _note(self, text: str) -> None:
        self._status = text


def _end_if_lost() -> None:
    """Ends the process where its GPU answers no more; Ray starts the actor again, and callers repeat their calls."""
    if is_lost():
        os._exit(1)


def actor_name(
    definition: TeacherDefinition,
    data: ImageData,
    views: Views,
    *,
    home: HomeAddress,
    dtype: str,
    method_folders: Iterable[str] = (),
) -> str:
    """Equal for sweeps that can share the actor: same teacher, data, views, number format, home, code, user-defined methods."""
    facts = code_facts()
    own = [path for folder in method_folders for path in sorted(Path(folder).glob("*.py"))]
    parts = {
        "teacher": [definition.key(data, views), definition.given()],
        "views": views.identity(),
        "home": home.path,
        "dtype": dtype,
        "code": [facts["version"], facts["commit"], *(bytes_hash(path.read_bytes()) for path in own)],
    }
    return f"{PREFIX}{content_hash(parts, digits=16)}"


def start_actor(
    definition: TeacherDefinition,
    data: ImageData,
    data_reference: Any,
    views: Views,
    *,
    home: HomeAddress,
    dtype: str,
    cpus: float,
    gpus: float,
    placement: Mapping[str, Any],
    import_paths: list[str],
    method_folders: list[str],
    expire_s: float | None = None,
    replica: int = 0,
) -> tuple[str, Any]:
    """Starts the shared actor, or finds the one that another sweep started. Returns its name and handle.

    Args:
        placement: Ray's options for the nodes on which it may run.
        expire_s: how long it lives after its last lease was renewed; None for an actor that ends with this driver.
        replica: the number of this actor among several that share the work.
    """
    name = actor_name(definition, data, views, home=home, dtype=dtype, method_folders=method_folders)
    name += f"-{replica}" if replica else ""
    handle = (
        ray.remote(TeacherActor)
        .options(
            name=name,
            namespace=NAMESPACE,
            get_if_exists=True,
            num_cpus=cpus,
            num_gpus=gpus,
            **placement,
            lifetime=None if expire_s is None else "detached",
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=_THREADS,
        )
        .remote(definition, [data_reference], views, home, dtype, int(cpus), import_paths, method_folders, expire_s, gpus)
    )
    return name, handle
