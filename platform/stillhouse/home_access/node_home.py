"""The home as a node has it: the folder itself where the node sees it, else a scratch folder and the home's keeper."""

import os
import re
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError
from torch import Tensor

from stillhouse.durable import Damaged, write_atomic
from stillhouse.errors import InfrastructureError
from stillhouse.knowledge.layout import Layout, block_checksum
from stillhouse.knowledge.store import KnowledgeStore
from stillhouse.knowledge.view import View

SCRATCH_VARIABLE = "STILLHOUSE_SCRATCH"
COMMON_VARIABLE = "STILLHOUSE_COMMON_HOME"
"""0 on nodes that are not to use the home's folder even where they see one."""
TIMEOUT_S = 120.0
_MARK = ".mark"
_NAMESPACE = "stillhouse"
_POLL_S = 0.05
_LONGEST_PAUSE_S = 5.0


@dataclass(frozen=True, kw_only=True)
class HomeAddress:
    """How a process on any node finds a home.

    Attributes:
        path: the absolute folder, as the driver sees it.
        mark: what stands in the folder's mark; a folder at this path without it is another one.
        keeper: the name of the actor that nodes without the folder ask; None where every process sees the folder.
        max_bytes: what the copies of sealed views may take on each node without the folder; None: a share of its disk.
    """

    path: str
    mark: str = ""
    keeper: str | None = None
    max_bytes: int | None = None

    @property
    def is_common(self) -> bool:
        """Whether this process sees the folder."""
        if self.keeper is None:
            return True
        if common_home_is_off():
            return False
        with suppress(OSError):
            return (Path(self.path) / _MARK).read_text() == self.mark and os.access(self.path, os.W_OK)
        return False


def shared_home(home: Path, max_bytes: int | None = None) -> HomeAddress:
    """The address of this home for processes on any node; gives the home its mark if it has none.

    Args:
        max_bytes: as for `HomeAddress`.

    Raises:
        InfrastructureError: the home can not be written.
    """
    try:
        with suppress(FileNotFoundError):
            if re.fullmatch("[0-9a-f]{16}", mark := (home / _MARK).read_text()):
                return HomeAddress(path=str(home), mark=mark, keeper=f"keeper-{mark}", max_bytes=max_bytes)
        mark = secrets.token_hex(8)
        write_atomic(home / _MARK, mark.encode())
    except OSError as error:
        raise InfrastructureError(
            f"can not write into {home}: {error.strerror or error}; choose another with --home"
        ) from error
    return HomeAddress(path=str(home), mark=mark, keeper=f"keeper-{mark}", max_bytes=max_bytes)


class NodeHome:
    """The home of a sweep as this node has it. Files are named by their paths under `folder`.

    Where the folder is the home itself, `pull`, `push` and `drop` have nothing to do but to remove.

    Attributes:
        folder: the home, or this node's scratch folder for it.
        store: the sealed views: the home's, or this node's own copies of them.
    """

    def __init__(self, address: HomeAddress) -> None:
        self._there = Path(address.path)
        self._keeper: KeeperLink | None = None
        if address.is_common:
            self.folder = self._there
            self.store = KnowledgeStore(self.folder / "knowledge")
            return
        assert address.keeper is not None
        self._keeper = KeeperLink(address.keeper)
        self.folder = scratch_folder(address.mark)
        self.store = DistantStore(self.folder / "knowledge", self._keeper, max_bytes=address.max_bytes)

    def here(self, path: str | Path) -> Path:
        """Where a file of the home, by its path at the driver, lies on this node; others stay where they are."""
        path = Path(path)
        return self.folder / path.relative_to(self._there) if path.is_relative_to(self._there) else path

    def there(self, path: Path) -> Path:
        """The driver's path of a file that lies here."""
        return self._there / path.relative_to(self.folder)

    def pull(self, path: Path) -> None:
        """Brings the file from the home, if it is there; what lies here and not there is removed.

        Raises:
            InfrastructureError: the keeper does not answer.
        """
        if self._keeper is None or not path.is_relative_to(self.folder):
            return
        content = self._keeper.call("fetch", self._place(path))
        if content is None:
            path.unlink(missing_ok=True)
        else:
            write_atomic(path, content)

    def push(self, path: Path) -> None:
        """Brings the file to the home, durably.

        Raises:
            OSError: the home's disk is full.
            InfrastructureError: the keeper does not answer.
        """
        if self._keeper is not None:
            self._keeper.call("keep", self._place(path), path.read_bytes())

    def drop(self, path: Path) -> None:
        """Removes the file in the home; the caller removes its own.

        Raises:
            InfrastructureError: the keeper does not answer.
        """
        if self._keeper is not None:
            self._keeper.call("drop", self._place(path))

    @property
    def note_fill(self) -> Callable[[str], None] | None:
        """What adds a line to the home's log of fills; None where the log is a file here."""
        keeper = self._keeper
        return None if keeper is None else lambda line: keeper.call("note_fill", line)

    def _place(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


@cache
def node_home(address: HomeAddress) -> NodeHome:
    """The home in this process; one object, so that its trials share what is copied."""
    return NodeHome(address)


def common_home_is_off() -> bool:
    """Whether this node was told not to use the home's folder."""
    return os.environ.get(COMMON_VARIABLE) == "0"


def scratch_base() -> Path:
    """The folder in which this node makes its scratch folders."""
    return Path(os.environ.get(SCRATCH_VARIABLE) or tempfile.gettempdir())


def scratch_folder(mark: str) -> Path:
    """This node's own folder for a home with this mark, made if need be and readable by nobody else.

    Raises:
        InfrastructureError: it can not be made.
    """
    folder = scratch_base() / f"stillhouse-{os.getuid()}-{mark}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            raise InfrastructureError(f"{folder} belongs to somebody else; set {SCRATCH_VARIABLE} to a folder of your own")
    except OSError as error:
        raise InfrastructureError(
            f"can not make the scratch folder {folder}: {error.strerror}; set {SCRATCH_VARIABLE} on this node"
        ) from error
    return folder


class KeeperLink:
    """Calls of the home's keeper that outlive its restart: every one may be repeated."""

    def __init__(self, name: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self._name = name
        self._patience_s = timeout_s
        self._handle: Any = None

    def caller(self) -> str:
        """Who calls; an actor that was restarted is still the same."""
        context = ray.get_runtime_context()
        return str(context.get_actor_id() or context.get_worker_id())

    def call(self, method: str, *arguments: Any) -> Any:
        """The answer; what the keeper raised is raised here.

        Raises:
            InfrastructureError: it did not come back in time.
        """
        deadline, pause = time.monotonic() + self._patience_s, 0.1
        while True:
            try:
                self._handle = self._handle or ray.get_actor(self._name, namespace=_NAMESPACE)
            except ValueError as error:
                lost: Exception = error
            else:
                try:
                    return ray.get(getattr(self._handle, method).remote(*arguments))
                except RayTaskError as error:
                    raise error.cause from None
                except (RayActorError, ObjectLostError) as error:
                    lost = error
            self._handle = None
            if time.monotonic() + pause > deadline:
                raise InfrastructureError(f"the home's keeper did not answer for {self._patience_s:.0f} s: {lost}") from lost
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)


class DistantStore(KnowledgeStore):
    """The views of a home that this node does not see.

    Trials `follow` this node's own copy of a view: one of the node's processes copies its rows as they become ready at home,
    the others read what it has copied. All else, for whoever fills views, happens at home.

    Args:
        root: of this node's copies.
        max_bytes: what the copies may take together, as far as a view that is being read fits; the least recently used ones
            make room for a new one, and are copied again when they are needed. None: a share of the disk.
    """

    def __init__(self, root: Path, keeper: KeeperLink, *, max_bytes: int | None = None) -> None:
        super().__init__(root)
        self._copies = KnowledgeStore(root)
        self._max_bytes = max_bytes
        self._keeper = keeper
        self._doubted: set[str] = set()
        self._copying: dict[str, threading.Thread] = {}
        self._trouble: dict[str, Exception] = {}
        self._guard = threading.Lock()

    def follow(self, identity: Mapping[str, Any]) -> View:
        """This node's copy of the view, whole or still growing; what is damaged of it is copied again.

        Raises:
            FileNotFoundError: its filling has not begun.
            Damaged: it is damaged at home.
            InfrastructureError: it can not be copied.
        """
        key = self.key(identity)
        with self._guard:
            trouble = self._trouble.pop(key, None)
        if trouble is not None:
            raise trouble
        try:
            view = self._copies.follow(identity)
        except (FileNotFoundError, Damaged) as error:
            if isinstance(error, Damaged):
                self._copies.unseal(identity)
            self._copy(key, identity)
            raise FileNotFoundError(self.folder(identity)) from error
        if not view.complete:
            self._copy(key, identity)
        return view

    def open(self, identity: Mapping[str, Any]) -> View:
        """The sealed view at home.

        Raises:
            FileNotFoundError: it is not sealed.
            Damaged: it is not what was written.
        """
        key = self.key(identity)
        self._keeper.call("examine", dict(identity), key in self._doubted)
        self._doubted.discard(key)
        return _DistantView(self._keeper, identity)  # type: ignore[return-value]

    def distrust(self, identity: Mapping[str, Any]) -> None:
        self._doubted.add(self.key(identity))

    def writer(self, identity: Mapping[str, Any], **options: Any) -> Any:
        """A `ViewWriter` of the home; the keeper knows by itself what is counted."""
        options.pop("counted", None)
        return _DistantWriter(self._keeper, identity, options)

    def unseal(self, identity: Mapping[str, Any]) -> None:
        self._keeper.call("unseal", dict(identity))

    def remove(self, key: str) -> bool:
        removed: bool = self._keeper.call("remove", key)
        return removed

    def _copy(self, key: str, identity: Mapping[str, Any]) -> None:
        with self._guard:
            known = self._copying.get(key)
            busy = known is not None and known.is_alive()
            # Trouble is told before anybody tries again: else a second one is told when the first has been mended.
            if key not in self._trouble and not busy and not self._copies.is_sealed(identity):
                thread = threading.Thread(target=self._copy_rows, args=(key, dict(identity)), name="copier", daemon=True)
                self._copying[key] = thread
                thread.start()

    def _copy_rows(self, key: str, identity: Mapping[str, Any]) -> None:
        try:
            self._copy_whole(identity)
        except Exception as error:  # the reason must reach the trials that wait
            with self._guard:
                self._trouble[key] = error

    def _copy_whole(self, identity: Mapping[str, Any]) -> None:
        """Copies until this node's view is sealed, or the home has none: whoever still waits for it comes again."""
        layout = self._keeper.call("layout", identity)
        if layout is None:
            return
        self._make_room(identity, layout)
        # Waits while another process of this node copies, and goes on when that one dies.
        with self._copies.writer(identity, **layout) as writer:
            while writer.missing.any():
                try:
                    rows, values, checksum = self._keeper.call("rows", identity, np.packbits(writer.missing))
                except FileNotFoundError:
                    return
                if len(rows) and block_checksum(values) == checksum:
                    writer.put(rows, values)
                    writer.commit()
                else:
                    time.sleep(_POLL_S)
            writer.seal()

    def _make_room(self, identity: Mapping[str, Any], layout: Mapping[str, Any]) -> None:
        """For one more copy, unless its room is taken already."""
        if self._copies.folder(identity).exists():
            return
        needed = Layout.make(identity=identity, **layout).num_bytes
        self._copies.prune(max(0, self._copies.budget(self._max_bytes) - needed))


class _DistantView:
    """A sealed view at home, of which a few rows are wanted."""

    complete = True

    def __init__(self, keeper: KeeperLink, identity: Mapping[str, Any]) -> None:
        self._keeper = keeper
        self._identity = dict(identity)

    def gather(self, indices: Tensor) -> Tensor:
        return torch.from_numpy(np.array(self._keeper.call("gather", self._identity, indices.numpy())))


class _DistantWriter:
    """A `ViewWriter` whose view lies at home: what is committed is durable there, also when this node dies."""

    def __init__(self, keeper: KeeperLink, identity: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        self._keeper = keeper
        self._dtype = options["dtype"]
        self._session, missing, self.order = keeper.call("open_writer", keeper.caller(), dict(identity), dict(options))
        self.missing: NDArray[np.bool_] = np.unpackbits(missing, count=options["rows"]).astype(np.bool_)
        self._rows: list[NDArray[np.int64]] = []
        self._values: list[NDArray[Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self.close()

    def claim(self, block: int, rows: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        mine: NDArray[np.bool_] | None = self._keeper.call("claim", self._session, block, rows)
        return mine

    def release(self, blocks: Iterable[int]) -> None:
        self._keeper.call("release_blocks", self._session, list(blocks))

    def put(self, rows: NDArray[np.int64], values: NDArray[Any]) -> None:
        self._rows.append(rows)
        self._values.append(np.ascontiguousarray(values, dtype=self._dtype))

    def commit(self, token: str = "") -> int:
        if not self._rows:
            return 0
        rows, values = np.concatenate(self._rows), np.concatenate(self._values)
        written: int = self._keeper.call("write", self._session, rows, values, block_checksum(values), token)
        self.missing[rows] = False
        self._rows, self._values = [], []
        return written

    def seal(self) -> None:
        self._keeper.call("seal", self._session)

    def close(self) -> None:
        with suppress(InfrastructureError):
            self._keeper.call("close", self._session)
