"""The store of sealed views: the knowledge of a (teacher, view), all samples in index order, memory-mapped.

A view's folder is named by the hash of its identity. Its files are described in `layout`, reading in `view`, and filling in
`writer`.
"""

import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from stillhouse.durable import Damaged, canonical_json, content_hash
from stillhouse.knowledge.layout import MANIFEST, STORE_VERSION, Layout
from stillhouse.knowledge.stored_views import stored_views
from stillhouse.knowledge.view import View, distrust, open_growing, open_sealed
from stillhouse.knowledge.writer import ViewWriter, hold, unseal

DISK_SHARE = 0.5
"""The default limit of all views, as a share of their size plus the free space."""


class KnowledgeStore:
    """All views under one folder, addressed by content.

    Args:
        root: an absolute path.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @staticmethod
    def key(identity: Mapping[str, Any]) -> str:
        """The address of the view that `identity` describes: every difference gives another key."""
        return content_hash({"store": STORE_VERSION, **identity})

    def folder(self, identity: Mapping[str, Any]) -> Path:
        return self.root / self.key(identity)

    def open(self, identity: Mapping[str, Any]) -> View:
        """The sealed view of `identity`; its blocks are checked when this process opens it for the first time.

        Raises:
            FileNotFoundError: it is not sealed.
            Damaged: it is not what was written; `unseal` it and fill it again.
        """
        folder = self.folder(identity)
        view = _of(identity, open_sealed(folder), folder)
        # The manifest's time is that of the view's last use, which `prune` compares.
        with suppress(OSError):
            os.utime(folder / MANIFEST)
        return view

    def follow(self, identity: Mapping[str, Any]) -> View:
        """The view of `identity`, sealed or being filled: its rows become ready one after another.

        Raises:
            FileNotFoundError: its filling has not begun.
            Damaged: it is not what was written.
        """
        try:
            return self.open(identity)
        except FileNotFoundError:
            return _of(identity, open_growing(self.folder(identity)), self.folder(identity))

    def distrust(self, identity: Mapping[str, Any]) -> None:
        """Makes the next `open` check the view again."""
        distrust(self.folder(identity))

    def is_sealed(self, identity: Mapping[str, Any]) -> bool:
        return (self.folder(identity) / MANIFEST).exists()

    def writer(
        self,
        identity: Mapping[str, Any],
        *,
        rows: int,
        shape: Sequence[int],
        dtype: str,
        order: Any = None,
        counted: Callable[[str], bool] = lambda _token: True,
        shared: bool = False,
    ) -> ViewWriter:
        """A writer that continues earlier attempts; waits while another process fills the view without sharing the work.

        Args:
            order: plain data that describes the filling order, for processes that continue.
            counted, shared: as for `ViewWriter`.
        """
        layout = Layout.make(identity=identity, rows=rows, shape=shape, dtype=dtype, order=order)
        return ViewWriter(self.folder(identity), layout, counted=counted, shared=shared)

    def unseal(self, identity: Mapping[str, Any]) -> None:
        """Takes a damaged view out of use; its intact blocks remain for the next writer."""
        unseal(self.folder(identity))

    def remove(self, key: str) -> bool:
        """Removes a view unless it is being filled; returns whether it was removed."""
        try:
            with hold(self.root / key, wait=False):
                shutil.rmtree(self.root / key, ignore_errors=True)
        except BlockingIOError:
            return False
        return True

    def entries(self) -> Iterator[dict[str, Any]]:
        """The stored views: `key`, `bytes`, `sealed`, `last_used` (seconds since the epoch) and the identity of each."""
        return stored_views(self.root)

    def budget(self, max_bytes: int | None) -> int:
        """Disk space for all views together: at most `max_bytes`, and what the disk has; None means a share of the disk."""
        disk = self.disk_bytes()
        return int(DISK_SHARE * disk) if max_bytes is None else min(max_bytes, disk)

    def disk_bytes(self) -> int:
        """The size of all views plus the free disk space."""
        folder = next(each for each in (self.root, *self.root.parents) if each.exists())
        return int(sum(entry["bytes"] for entry in self.entries())) + shutil.disk_usage(folder).free

    def prune(self, keep_bytes: int, spare: Collection[str] = ()) -> list[dict[str, Any]]:
        """Removes the least recently used views until at most `keep_bytes` remain; returns the entries of removed views.

        A process that reads a removed view keeps its mapping; one that needs it later requests it again. A view that is being
        filled is not removed.

        Args:
            spare: keys of views that are not removed.
        """
        entries = sorted(self.entries(), key=lambda entry: entry["last_used"])
        total = sum(entry["bytes"] for entry in entries)
        removed = []
        for entry in entries:
            if total <= keep_bytes:
                break
            if entry["key"] not in spare and self.remove(entry["key"]):
                total -= entry["bytes"]
                removed.append(entry)
        return removed


def _of(identity: Mapping[str, Any], view: View, folder: Path) -> View:
    if canonical_json(dict(view.identity)) != canonical_json(dict(identity)):
        raise Damaged(f"{folder} has the knowledge of another identity")
    return view
