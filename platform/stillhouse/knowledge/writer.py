"""Filling a view in place: rows in any order, durable in stretches, by any number of attempts and processes."""

import errno
import fcntl
import hashlib
import os
import secrets
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from stillhouse.durable import Damaged, canonical_json, set_aside, write_atomic, write_checked
from stillhouse.errors import DISK_FULL_ERRNOS, DiskFullError, InfrastructureError
from stillhouse.knowledge.layout import (
    CLAIMS,
    FILLERS,
    LAYOUT,
    LOCK,
    MANIFEST,
    JournalReader,
    Layout,
    Stretch,
    allocate_part,
    block_checksum,
    journals,
    map_part,
)
from stillhouse.knowledge.number_format import in_format
from stillhouse.knowledge.view import stamps_of, stretch_checksum, trust


class Hold:
    """Files whose locks are held until `close`."""

    def __init__(self, *files: IO[bytes]) -> None:
        self._files = files

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        for file in self._files:
            file.close()


class ViewWriter:
    """Fills one view until `close`: alone, or with other processes that share the work by claiming blocks of rows.

    The disk space of the whole view is allocated first. Rows of earlier attempts remain if they match their checksums. Rows are
    `put` and then made durable together by `commit`: first their values, then a line of the journal, so the values of each line
    in the journal are on the disk. `put` and `commit` may be called in another thread than `claim`.

    Args:
        layout: of the view; the `order` of an earlier attempt takes precedence.
        counted: whether the stretch with this token is in the log of fills; one that is not is computed again.
        shared: whether other processes may fill the view too; then only claimed rows may be put.

    Raises:
        DiskFullError: the disk is full.
    """

    def __init__(self, folder: Path, layout: Layout, *, counted: Callable[[str], bool], shared: bool = False) -> None:
        self._folder = folder
        self._layout = layout
        self._parts: list[NDArray[Any]] = []
        self._descriptors: list[int] = []
        self._sealed = False
        self._journal: int | None = None
        self._done = np.zeros(layout.rows, dtype=np.bool_)
        self._counted = counted
        self._journals = JournalReader(folder, layout.rows)
        self._uncounted: list[Stretch] = []
        self._claims: IO[bytes] | None = None
        self._start_stretch()
        if not shared:
            self._lock = hold(folder)
            try:
                self._begin(layout, alone=True)
            except BaseException:
                self.close()
                raise
            return
        gate = _gate(folder)
        try:
            self._lock, alone = _join(folder)
            try:
                self._begin(layout, alone=alone)
                self._claims = (folder / CLAIMS).open("ab")
            except BaseException:
                self.close()
                raise
        finally:
            gate.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self.close()

    @property
    def order(self) -> Any:
        """The description of the filling order by the first attempt."""
        return self._layout.order

    @property
    def missing(self) -> NDArray[np.bool_]:
        """The rows that are not durable yet, as flags [rows]."""
        return ~self._done

    def claim(self, block: int, rows: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        """Which of the rows [B] of a block this writer must fill, as flags [B]; None while another writer fills the block.

        Args:
            block: the number of the block; for all writers it must mean the same rows, in the order `order`.
        """
        if self._claims is None:
            return ~self._done[rows]
        try:
            _lock_range(self._claims, fcntl.F_WRLCK, block, 1)
        except (BlockingIOError, PermissionError):
            return None
        self._learn()
        missing = ~self._done[rows]
        if not missing.any():
            self.release([block])
        return missing

    def release(self, blocks: Iterable[int]) -> None:
        """Gives up the claims; committed rows of the blocks must be in the log of fills before."""
        if self._claims is not None:
            for block in blocks:
                _lock_range(self._claims, fcntl.F_UNLCK, block, 1)

    def put(self, rows: NDArray[np.int64], values: NDArray[Any]) -> None:
        """Writes the values [B, ...] of the rows [B] in place; they are durable after the next `commit`.

        Raises:
            UsageError: the view's number format cannot hold the values.
        """
        if values.shape[1:] != self._layout.shape:
            raise ValueError(f"a row must have shape {self._layout.shape}, got {values.shape[1:]}")
        assert not self._done[rows].any(), "a durable row is not written again"
        # Checked in the stored format: a finite value may be infinite there.
        values = in_format(values, self._layout.dtype, "values")
        for number, part in enumerate(self._parts):
            first, last = self._layout.part_stretch(number)
            there = (rows >= first) & (rows < last)
            part[rows[there] - first] = values[there]
        self._digest.update(values.reshape(-1).view(np.uint8).data)
        self._put.append(rows)

    def commit(self, token: str = "") -> int:
        """Makes the rows that were put durable and visible to readers; returns their bytes.

        Args:
            token: the caller's name for this stretch; if this process dies before it is `counted`, it is computed again.

        Raises:
            DiskFullError: the disk is full.
        """
        if not self._put:
            return 0
        rows = np.concatenate(self._put)
        stretch = Stretch(rows, self._digest.hexdigest(), token)
        num_bytes = len(rows) * self._layout.row_bytes
        with room_for(num_bytes, self._folder):
            for descriptor in self._descriptors:
                os.fsync(descriptor)
            self._append(stretch.line().encode())
        self._done[rows] = True
        self._start_stretch()
        return num_bytes

    def seal(self) -> None:
        """Publishes the view; all rows must be durable."""
        assert self._done.all(), "a view is sealed when all of its rows are durable"
        if not self._sealed:
            checksums = []
            # Stamps of the parts that are compared: a part that is written to later is not trusted.
            stamps = stamps_of(self._folder, self._layout)
            for part, first, last in self._layout.blocks():
                begin, _ = self._layout.part_stretch(part)
                checksums.append(block_checksum(self._parts[part][first - begin : last - begin]))
            document = self._layout.document(blocks=checksums)
            with room_for(len(document), self._folder):
                write_checked(self._folder / MANIFEST, document)
            trust(stamps)
            self._sealed = True

    def close(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors, self._parts = [], []
        if self._journal is not None:
            os.close(self._journal)
            self._journal = None
        if self._claims is not None:
            self._claims.close()
            self._claims = None
        self._lock.close()

    def _begin(self, wanted: Layout, *, alone: bool) -> None:
        self._sealed = (self._folder / MANIFEST).exists()
        if self._sealed:
            self._done[:] = True
            return
        self._layout = _layout_to_fill(self._folder, wanted)
        self._open_parts()
        if alone:
            self._recover()
        else:
            self._learn()

    def _open_parts(self) -> None:
        allocated: list[Path] = []
        for number in range(self._layout.num_parts):
            path = self._folder / self._layout.part_file(number)
            try:
                _, offset = map_part(path, self._layout, number)
            except Damaged:
                try:
                    with room_for(self._layout.num_bytes, self._folder):
                        allocate_part(path, self._layout, number)
                except InfrastructureError:
                    for other in allocated:
                        other.unlink(missing_ok=True)
                    raise
                allocated.append(path)
                _, offset = map_part(path, self._layout, number)
            first, last = self._layout.part_stretch(number)
            shape = (last - first, *self._layout.shape)
            self._parts.append(np.memmap(path, self._layout.dtype, mode="r+", offset=offset, shape=shape))
            self._descriptors.append(os.open(path, os.O_RDWR))

    def _recover(self) -> None:
        """Takes over earlier attempts: one new journal has the lines of theirs that match the values."""
        old = journals(self._folder)
        if not old:
            return
        found = self._learn()
        self._uncounted.clear()
        write_journal(self._folder, found, instead_of=old)

    def _learn(self) -> list[Stretch]:
        """Reads the journals; returns new stretches that match their values and are counted."""
        known = [*self._uncounted, *self._journals.fresh()]
        self._uncounted = []
        fresh = []
        for stretch in known:
            if self._done[stretch.rows].all():
                continue
            if stretch.token and not self._counted(stretch.token):
                # Its writer will count it soon, or died.
                self._uncounted.append(stretch)
            elif stretch_checksum(self._parts, self._layout, stretch) == stretch.checksum:
                self._done[stretch.rows] = True
                fresh.append(stretch)
        return fresh

    def _start_stretch(self) -> None:
        self._put: list[NDArray[np.int64]] = []
        self._digest = hashlib.blake2b(digest_size=16)

    def _append(self, line: bytes) -> None:
        if self._journal is None:
            path = self._folder / _journal_name()
            self._journal = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o644)
        if os.write(self._journal, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._folder))
        os.fsync(self._journal)


def write_journal(folder: Path, stretches: Sequence[Stretch], *, instead_of: Sequence[Path]) -> None:
    """Replaces other journals by one with these stretches."""
    content = "".join(stretch.line() for stretch in stretches).encode()
    with room_for(len(content), folder):
        write_atomic(folder / _journal_name(), content)
    for path in instead_of:
        path.unlink(missing_ok=True)


def unseal(folder: Path) -> None:
    """Takes a damaged view out of use; blocks that match their checksums remain for the next writer."""
    with hold(folder):
        try:
            layout, content = Layout.read(folder / MANIFEST)
        except FileNotFoundError:
            return
        except Damaged:
            # The journals still have the checksum of every stretch.
            set_aside(folder / MANIFEST)
            return
        whole = []
        for (part, first, last), checksum in zip(layout.blocks(), content["blocks"], strict=True):
            with suppress(Damaged):
                array, _ = map_part(folder / layout.part_file(part), layout, part)
                begin, _ = layout.part_stretch(part)
                if block_checksum(array[first - begin : last - begin]) == checksum:
                    whole.append(Stretch(np.arange(first, last), checksum))
        write_checked(folder / LAYOUT, layout.document())
        write_journal(folder, whole, instead_of=journals(folder))
        (folder / MANIFEST).unlink()


def hold(folder: Path, *, wait: bool = True) -> Hold:
    """Exclusive use of the view's folder, which is made if it does not exist.

    Raises:
        BlockingIOError: another process uses or fills it, and `wait` is false.
    """
    gate = _gate(folder, wait=wait)
    fillers = (folder / FILLERS).open("ab")
    try:
        fcntl.flock(fillers, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BaseException:
        fillers.close()
        gate.close()
        raise
    return Hold(gate, fillers)


def _gate(folder: Path, *, wait: bool = True) -> IO[bytes]:
    """The lock that a process takes briefly when it begins to fill the view, or holds while it needs the view exclusively."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file = (folder / LOCK).open("ab")
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # Its last holder may have removed the folder.
            if os.fstat(file.fileno()).st_ino == (folder / LOCK).stat().st_ino:
                return file
        except FileNotFoundError:
            pass
        except BaseException:
            file.close()
            raise
        file.close()


def _join(folder: Path) -> tuple[Hold, bool]:
    """Joins the processes that fill the view; also returns whether there are no others. The caller holds the gate meanwhile."""
    fillers = (folder / FILLERS).open("ab")
    try:
        fcntl.flock(fillers, fcntl.LOCK_EX | fcntl.LOCK_NB)
        alone = True
    except BlockingIOError:
        alone = False
    # The caller holds the gate, so no other process can take this lock exclusively in between.
    fcntl.flock(fillers, fcntl.LOCK_SH)
    return Hold(fillers), alone


def _lock_range(file: IO[bytes], kind: int, first: int, count: int) -> None:
    """Locks, or unlocks, bytes that represent blocks; a lock belongs to the open file and ends with its process.

    Raises:
        BlockingIOError, PermissionError: another process holds some of them.
    """
    fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, first, count, 0))


@contextmanager
def room_for(num_bytes: int, folder: Path) -> Iterator[None]:
    """Turns an error of a full disk into a `DiskFullError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in (*DISK_FULL_ERRNOS, errno.EFBIG):
            raise
        raise DiskFullError(f"no space for {num_bytes} bytes of knowledge in {folder.parent}") from error


def _layout_to_fill(folder: Path, wanted: Layout) -> Layout:
    """The layout of an earlier attempt if it differs only in the order; otherwise the wanted one, and an empty folder."""
    with suppress(FileNotFoundError, Damaged):
        found, _ = Layout.read(folder / LAYOUT)
        if _regardless_of_order(found) == _regardless_of_order(wanted):
            return found
    for path in folder.iterdir():
        if path.name not in (LOCK, FILLERS, CLAIMS):
            path.unlink()
    document = wanted.document()
    with room_for(len(document), folder):
        write_checked(folder / LAYOUT, document)
    return wanted


def _regardless_of_order(layout: Layout) -> Mapping[str, Any]:
    fields = {**vars(layout), "shape": list(layout.shape), "identity": canonical_json(dict(layout.identity))}
    del fields["order"]
    return fields


def _journal_name() -> str:
    return f"journal-{os.getpid()}-{secrets.token_hex(4)}"
