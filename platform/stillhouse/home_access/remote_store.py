"""The knowledge store of a home that this node cannot see: copies of its views, and writers through the keeper."""

import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillhouse.durable import Damaged
from stillhouse.errors import InfrastructureError
from stillhouse.home_access.keeper_link import KeeperLink
from stillhouse.knowledge.layout import Layout, block_checksum
from stillhouse.knowledge.store import KnowledgeStore
from stillhouse.knowledge.view import View

_POLL_S = 0.05


class RemoteStore(KnowledgeStore):
    """The sealed views of a home that this node cannot access.

    Trials `follow` this node's copy of a view: one process of the node copies the rows as they become ready in the home, and
    the others read the copy. All other operations, which services that fill views need, are calls of the keeper.

    Args:
        root: of this node's copies.
        max_bytes: the most that all copies may take, beyond a view that is being read. The least recently used copies are
            removed for a new one, and are copied again when they are needed. None: a share of the disk.
    """

    def __init__(self, root: Path, keeper: KeeperLink, *, max_bytes: int | None = None) -> None:
        super().__init__(root)
        self._copies = KnowledgeStore(root)
        self._max_bytes = max_bytes
        self._keeper = keeper
        self._doubted: set[str] = set()
        self._copying: dict[str, threading.Thread] = {}
        self._errors: dict[str, Exception] = {}
        self._guard = threading.Lock()

    def follow(self, identity: Mapping[str, Any]) -> View:
        """This node's copy of the view, complete or still growing; a damaged copy is copied again.

        Raises:
            FileNotFoundError: its filling has not begun.
            Damaged: it is damaged in the home.
            InfrastructureError: it cannot be copied.
        """
        key = self.key(identity)
        with self._guard:
            error = self._errors.pop(key, None)
        if error is not None:
            raise error
        try:
            view = self._copies.follow(identity)
        except (FileNotFoundError, Damaged) as missing:
            if isinstance(missing, Damaged):
                self._copies.unseal(identity)
            self._copy(key, identity)
            raise FileNotFoundError(self.folder(identity)) from missing
        if not view.complete:
            self._copy(key, identity)
        return view

    def open(self, identity: Mapping[str, Any]) -> View:
        """The sealed view in the home.

        Raises:
            FileNotFoundError: it is not sealed.
            Damaged: it is not what was written.
        """
        key = self.key(identity)
        self._keeper.call("examine", dict(identity), key in self._doubted)
        self._doubted.discard(key)
        return _RemoteView(self._keeper, identity)  # type: ignore[return-value]

    def distrust(self, identity: Mapping[str, Any]) -> None:
        self._doubted.add(self.key(identity))

    def writer(self, identity: Mapping[str, Any], **options: Any) -> Any:
        """A `ViewWriter` of the home; the keeper itself knows which stretches are counted."""
        options.pop("counted", None)
        return _RemoteWriter(self._keeper, identity, options)

    def unseal(self, identity: Mapping[str, Any]) -> None:
        self._keeper.call("unseal", dict(identity))

    def remove(self, key: str) -> bool:
        removed: bool = self._keeper.call("remove", key)
        return removed

    def _copy(self, key: str, identity: Mapping[str, Any]) -> None:
        with self._guard:
            known = self._copying.get(key)
            busy = known is not None and known.is_alive()
            # An error is raised once before the copy is tried again, so that nobody sees an error that was resolved since.
            if key not in self._errors and not busy and not self._copies.is_sealed(identity):
                thread = threading.Thread(target=self._copy_rows, args=(key, dict(identity)), name="copier", daemon=True)
                self._copying[key] = thread
                thread.start()

    def _copy_rows(self, key: str, identity: Mapping[str, Any]) -> None:
        try:
            self._copy_whole(identity)
        except Exception as error:  # the reason must reach the trials that wait
            with self._guard:
                self._errors[key] = error

    def _copy_whole(self, identity: Mapping[str, Any]) -> None:
        """Copies until this node's view is sealed, or the home has none; a process that still waits for it calls again."""
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
        """Removes copies for one more, unless that one exists already."""
        if self._copies.folder(identity).exists():
            return
        needed = Layout.make(identity=identity, **layout).num_bytes
        self._copies.prune(max(0, self._copies.budget(self._max_bytes) - needed))


class _RemoteView:
    """A sealed view in the home, of which a few rows are needed."""

    complete = True

    def __init__(self, keeper: KeeperLink, identity: Mapping[str, Any]) -> None:
        self._keeper = keeper
        self._identity = dict(identity)

    def gather(self, indices: Tensor) -> Tensor:
        return torch.from_numpy(np.array(self._keeper.call("gather", self._identity, indices.numpy())))


class _RemoteWriter:
    """A `ViewWriter` of a view in the home: what is committed is durable there, even if this node dies."""

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
