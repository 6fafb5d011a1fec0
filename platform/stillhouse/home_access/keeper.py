"""The keeper: an actor on the driver's node through which nodes that cannot access the home read and write its files."""

import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from stillhouse.durable import write_atomic
from stillhouse.errors import InfrastructureError, StillhouseError
from stillhouse.home_access.home_address import HomeAddress
from stillhouse.home_access.leases import EXPIRE_S, Leased
from stillhouse.home_access.ray_process import NAMESPACE
from stillhouse.knowledge.fill_log import append_line, fill_log, logged_stretches
from stillhouse.knowledge.layout import block_checksum
from stillhouse.knowledge.store import KnowledgeStore
from stillhouse.knowledge.view import View
from stillhouse.knowledge.writer import ViewWriter, room_for

_THREADS = 64
_CHUNK_BYTES = 32 << 20
_IDLE_S = 120.0
"""A writer that made no call for this long is closed when another one waits for its view."""

_FILES = re.compile(
    r"teachers/[0-9a-f]+/(card|weights\.safetensors|checkpoint|outputs-[0-9a-f]+)"
    r"|given/[0-9a-f]+"
    r"|sweeps/[^/]+/(ledger/[^/]+\.record|(students|outputs)/[^/]+\.safetensors|trials/[^/]+/checkpoint)"
)
"""The files besides views that nodes may read and write: those of teachers, and the records, weights and states of trials."""


class WriterGoneError(StillhouseError):
    """The keeper closed this writer or restarted since; open another one."""


@dataclass
class _Session:
    """A writer that works for an actor on another node."""

    owner: str
    key: str
    writer: ViewWriter
    heard: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Keeper(Leased):
    """The keeper's methods. Every call may be repeated, and several threads may call at once.

    Args:
        home: the absolute folder, as the driver sees it.
        expire_s: how long a lease lasts; None for a keeper that needs none.
    """

    def __init__(self, home: str, expire_s: float | None = None) -> None:
        super().__init__(expire_s)
        self._home = Path(home)
        self._store = KnowledgeStore(self._home / "knowledge")
        self._store.root.mkdir(parents=True, exist_ok=True)
        self._growing: dict[str, tuple[threading.Lock, View]] = {}
        self._sessions: dict[str, _Session] = {}
        self._counter = 0
        self._lock = threading.Lock()
        self._log_lock = threading.Lock()

    # Files

    def fetch(self, file: str) -> bytes | None:
        """The content of a file, given its path in the home; None if there is none."""
        try:
            return self._path(file).read_bytes()
        except FileNotFoundError:
            return None

    def keep(self, file: str, content: bytes) -> None:
        """Writes `content` into a file of the home, durably.

        Raises:
            OSError: the disk is full; the file is as it was.
        """
        write_atomic(self._path(file), content)

    def drop(self, file: str) -> None:
        """Removes a file of the home; with its folder if it is the checkpoint of a trial."""
        path = self._path(file)
        if path.name == "checkpoint" and path.parent.parent.name == "trials":
            shutil.rmtree(path.parent, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def _path(self, file: str) -> Path:
        if not _FILES.fullmatch(file) or {".", ".."} & set(file.split("/")):
            raise ValueError(f"the keeper of a home does not serve {file!r}")
        return self._home / file

    # Reading views

    def layout(self, identity: Mapping[str, Any]) -> dict[str, Any] | None:
        """`rows`, `shape` and `dtype` of the view; None when its filling has not begun.

        Raises:
            Damaged: it is not what was written.
        """
        try:
            view = self._store.follow(identity)
        except FileNotFoundError:
            return None
        return {"rows": view.rows, "shape": view.shape, "dtype": view.dtype}

    def rows(self, identity: Mapping[str, Any], missing: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[Any], str]:
        """Some of the `missing` rows (packed bits) that are ready, perhaps none: their numbers, values and checksum.

        Raises:
            FileNotFoundError: the view's filling has not begun, or it was removed.
            Damaged: it is not what was written.
        """
        key = self._store.key(identity)
        if self._store.is_sealed(identity):
            # Opened each time, so that damage since is found.
            self._growing.pop(key, None)
            return _ready_rows(self._store.open(identity), missing)
        known = self._growing.get(key)
        if known is None:
            known = self._growing.setdefault(key, (threading.Lock(), self._store.follow(identity)))
        with known[0]:
            return _ready_rows(known[1], missing)

    def gather(self, identity: Mapping[str, Any], indices: NDArray[np.int64]) -> NDArray[Any]:
        """Rows of a sealed view."""
        return self._store.open(identity).gather(torch.from_numpy(indices.copy())).numpy()

    def examine(self, identity: Mapping[str, Any], doubted: bool) -> None:
        """Checks whether the view is sealed and, if it is `doubted`, compares it with its checksums again.

        Raises:
            FileNotFoundError: it is not sealed.
            Damaged: it is not what was written.
        """
        if doubted:
            self._store.distrust(identity)
        self._store.open(identity)

    def unseal(self, identity: Mapping[str, Any]) -> None:
        self._growing.pop(self._store.key(identity), None)
        self._store.unseal(identity)

    def remove(self, key: str) -> bool:
        self._growing.pop(key, None)
        return self._store.remove(key)

    # Writing views

    def open_writer(
        self, owner: str, identity: Mapping[str, Any], options: Mapping[str, Any]
    ) -> tuple[str, NDArray[np.uint8], Any]:
        """Opens a writer for `owner`, which has only one of each view: its name, the missing rows as packed bits, its order.

        Waits while another process fills the view.

        Raises:
            InfrastructureError: the disk is full.
        """
        key = self._store.key(identity)
        waiting = threading.Event()
        # An owner that died and restarted has the same name; one that does not come back must not block others.
        self._close_sessions(lambda session: session.key == key and session.owner == owner)
        watch = threading.Thread(target=self._close_idle, args=(key, waiting), daemon=True)
        watch.start()
        try:
            counted = _Counted(self._store.root, str(identity.get("teacher", {}).get("weights", "")))
            writer = self._store.writer(identity, counted=counted, **options)
        finally:
            waiting.set()
        self._growing.pop(key, None)
        with self._lock:
            self._counter += 1
            name = f"{owner}-{self._counter}-{time.time_ns()}"
            self._sessions[name] = _Session(owner, key, writer)
        return name, np.packbits(writer.missing), writer.order

    def claim(self, session: str, block: int, rows: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        """`ViewWriter.claim`."""
        with self._session(session) as writer:
            claimed = writer.claim(block, rows)
        if claimed is None:
            # The process that holds the block may have died with its node.
            key = self._sessions[session].key if session in self._sessions else ""
            self._close_sessions(lambda each: each.key == key and time.monotonic() - each.heard > _IDLE_S)
        return claimed

    def release_blocks(self, session: str, blocks: list[int]) -> None:
        """`ViewWriter.release`."""
        with self._session(session) as writer:
            writer.release(blocks)

    def write(self, session: str, rows: NDArray[np.int64], values: NDArray[Any], checksum: str, token: str) -> int:
        """Makes the rows durable; returns their bytes.

        Raises:
            InfrastructureError: the disk is full, or the values are not those that were sent.
            WriterGoneError: the writer was closed.
        """
        with self._session(session) as writer:
            if block_checksum(values) != checksum:
                raise InfrastructureError("knowledge was damaged on its way to the home")
            if writer.missing[rows].any():
                writer.put(np.array(rows), values)
                return writer.commit(token)
        # A repeated call, whose first answer was lost.
        return int(values.nbytes)

    def seal(self, session: str) -> None:
        with self._session(session) as writer:
            writer.seal()

    def close(self, session: str) -> None:
        self._close_sessions(lambda each: each is self._sessions.get(session))

    def note_fill(self, line: str) -> None:
        """Adds a line to the log of fills, unless the log has it.

        Raises:
            InfrastructureError: the disk is full.
        """
        entry = json.loads(line)
        log = fill_log(self._store.root)
        with self._log_lock, room_for(len(line), log):
            if entry["stretch"] not in logged_stretches(self._store.root, entry["teacher"]):
                append_line(log, line)

    def process_id(self) -> int:
        return os.getpid()

    def _session(self, name: str) -> "_InUse":
        session = self._sessions.get(name)
        if session is None:
            raise WriterGoneError("the home's keeper does not know this writer")
        return _InUse(session)

    def _close_sessions(self, which: Callable[[_Session], bool]) -> None:
        with self._lock:
            closing = {name: session for name, session in self._sessions.items() if which(session)}
            for name in closing:
                del self._sessions[name]
        for session in closing.values():
            with session.lock:
                session.writer.close()

    def _close_idle(self, key: str, done: threading.Event) -> None:
        while not done.wait(1.0):
            self._close_sessions(lambda session: session.key == key and time.monotonic() - session.heard > _IDLE_S)


class _InUse:
    """Gives a session's writer to one call at a time."""

    def __init__(self, session: _Session) -> None:
        self._session = session

    def __enter__(self) -> ViewWriter:
        self._session.lock.acquire()
        self._session.heard = time.monotonic()
        return self._session.writer

    def __exit__(self, *_: object) -> None:
        self._session.heard = time.monotonic()
        self._session.lock.release()


class _Counted:
    """Reports whether the log of fills has a stretch."""

    def __init__(self, store: Path, weights_hash: str) -> None:
        self._store = store
        self._weights_hash = weights_hash
        self._known: set[str] = set()

    def __call__(self, token: str) -> bool:
        if token not in self._known:
            self._known = logged_stretches(self._store, self._weights_hash)
        return token in self._known


def _ready_rows(view: View, missing: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[Any], str]:
    wanted = np.unpackbits(missing, count=view.rows).astype(bool)
    there = np.flatnonzero(wanted & view.ready_rows())[: max(1, _CHUNK_BYTES // max(1, view.bytes_per_sample))]
    values = view.gather(torch.from_numpy(there)).numpy()
    return there, values, block_checksum(values)


def start_keeper(address: HomeAddress) -> Any:
    """Starts the home's keeper on this node, or finds the one that another sweep started. Returns its handle, to be leased."""
    assert address.keeper is not None
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return (
        ray.remote(Keeper)
        .options(
            name=address.keeper,
            namespace=NAMESPACE,
            get_if_exists=True,
            num_cpus=0,
            lifetime="detached",
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=_THREADS,
            scheduling_strategy=here,
        )
        .remote(address.path, EXPIRE_S)
    )
