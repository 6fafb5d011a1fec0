"""The files of a view: their names, the format of a part, the lines of a journal.

- `layout`: a checked file with identity, rows, shape, number format and the order of filling; written first.
- `part-<number>.arrow`: uncompressed Arrow IPC, one record batch with one fixed-shape tensor column, rows in index order;
  has its full size from the start, at most about 1 GiB.
- `journal-<attempt>`: one line for each stretch of rows that is durable: which rows, and the checksum of their values.
- `manifest`: a checked file with the layout and a checksum of every block of about 32 MiB; its presence seals the view.
- `lock`: held by a process that begins to fill the view or needs it exclusively; `fillers`: held during the filling, by several
  processes if they share the work; `claims`: the blocks of rows on which they work.
"""

import base64
import json
import math
import mmap
import os
import secrets
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stillhouse.durable import Damaged, bytes_hash, canonical_json, fsync_folder, move_into_place, read_checked

STORE_VERSION = 2
LAYOUT, MANIFEST, LOCK = "layout", "manifest", "lock"
FILLERS, CLAIMS = "fillers", "claims"
_PART_BYTES = 1 << 30
_BLOCK_BYTES = 32 << 20
_COLUMN = "knowledge"
_ENVELOPE_BYTES = 1 << 13
"""An upper bound for the schema and the footer of a part."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The content of a view and its division into parts and blocks.

    Attributes:
        identity: everything that determines the content.
        dtype: NumPy's name of the number format.
        order: the description of the filling order by the process that began; processes that continue use it.
        part_rows: rows of every part but the last.
        block_rows: rows with one checksum; a part has whole blocks.
    """

    identity: Mapping[str, Any]
    rows: int
    shape: tuple[int, ...]
    dtype: str
    order: Any
    part_rows: int
    block_rows: int

    @classmethod
    def make(cls, *, identity: Mapping[str, Any], rows: int, shape: Sequence[int], dtype: str, order: Any = None) -> "Layout":
        row_bytes = max(1, np.dtype(dtype).itemsize * math.prod(shape))
        block_rows = max(1, min(rows, _BLOCK_BYTES // row_bytes))
        return cls(
            identity=dict(identity),
            rows=rows,
            shape=tuple(shape),
            dtype=np.dtype(dtype).name,
            order=order,
            part_rows=block_rows * max(1, _PART_BYTES // (row_bytes * block_rows)),
            block_rows=block_rows,
        )

    @classmethod
    def read(cls, path: Path) -> tuple["Layout", dict[str, Any]]:
        """The layout in a checked file, and everything else in the file.

        Raises:
            FileNotFoundError: there is no such file.
            Damaged: the file is not what was written, or another version wrote it.
        """
        try:
            content: dict[str, Any] = json.loads(read_checked(path))
            return cls._of_document(path, content), content
        except (TypeError, KeyError, AttributeError, json.JSONDecodeError) as error:
            raise Damaged(f"{path} describes no view ({type(error).__name__}: {error})") from error

    @classmethod
    def _of_document(cls, path: Path, content: Mapping[str, Any]) -> "Layout":
        if content.get("version") != STORE_VERSION:
            raise Damaged(f"{path} was written by store version {content.get('version')}, this is {STORE_VERSION}")
        fields = content["layout"]
        return cls(**{**fields, "shape": tuple(fields["shape"])})

    def document(self, **besides: Any) -> bytes:
        """The content of the file that `read` reads."""
        fields = {**vars(self), "identity": dict(self.identity), "shape": list(self.shape)}
        return canonical_json({"version": STORE_VERSION, "layout": fields, **besides}).encode()

    @property
    def row_bytes(self) -> int:
        return int(np.dtype(self.dtype).itemsize) * math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.rows * self.row_bytes

    @property
    def num_parts(self) -> int:
        return max(1, -(-self.rows // self.part_rows))

    def part_file(self, number: int) -> str:
        return f"part-{number:03d}.arrow"

    def part_stretch(self, number: int) -> tuple[int, int]:
        """The first row of a part, and the first row after it."""
        first = number * self.part_rows
        return first, min(first + self.part_rows, self.rows)

    def blocks(self) -> Iterator[tuple[int, int, int]]:
        """(part, first row, first row after it) of every block, in order."""
        for part in range(self.num_parts):
            first, last = self.part_stretch(part)
            for start in range(first, last, self.block_rows):
                yield part, start, min(start + self.block_rows, last)


class _Sink:
    """A file to which the values of an Arrow array are not written: their allocated space stays unchanged."""

    def __init__(self, file: BinaryIO, values_address: int) -> None:
        self._file = file
        self._values_address = values_address
        self.closed = False

    def write(self, content: Any) -> int:
        size = memoryview(content).nbytes
        if isinstance(content, pa.Buffer) and content.address == self._values_address:
            self._file.seek(size, os.SEEK_CUR)
        else:
            self._file.write(content)
        return size

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self.closed = True


def allocate_part(path: Path, layout: Layout, number: int) -> None:
    """Makes the file of a part with all the space that it needs, without values.

    Raises:
        OSError: the disk is full; the file was removed.
    """
    first, last = layout.part_stretch(number)
    count = (last - first) * math.prod(layout.shape)
    size = max(1, (last - first) * layout.row_bytes)
    # Never accessed, so it uses no memory: Arrow needs only its length.
    nothing = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ)
    beside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    try:
        values = pa.py_buffer(nothing)
        kind = pa.from_numpy_dtype(np.dtype(layout.dtype))
        flat = pa.Array.from_buffers(kind, count, [None, values])
        storage = pa.FixedSizeListArray.from_arrays(flat, math.prod(layout.shape))
        column = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(kind, layout.shape or (1,)), storage)
        batch = pa.record_batch({_COLUMN: column})
        with beside.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size + _ENVELOPE_BYTES)
            with pa.ipc.new_file(pa.PythonFile(_Sink(file, values.address), mode="w"), batch.schema) as writer:
                writer.write_batch(batch)
            file.truncate(file.tell())
            file.flush()
            os.fsync(file.fileno())
        move_into_place(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def map_part(path: Path, layout: Layout, number: int) -> tuple[NDArray[Any], int]:
    """A part's rows [rows, *shape] over the memory map, read-only, and their offset in the file.

    The file must not be truncated while it is mapped: reading past the end raises SIGBUS. No code does that; a part that is
    rewritten is another file that is renamed to its name, and processes keep their mapping of the old one.

    Raises:
        Damaged: the file is missing, truncated or not of this layout.
    """
    first, last = layout.part_stretch(number)
    shape = (last - first, *layout.shape)
    try:
        file = pa.memory_map(str(path))
        batch = pa.ipc.open_file(file).get_batch(0)
        # Damaged metadata may claim any number of values, and Arrow would end the process (pyarrow 25).
        batch.validate()
        values = batch.column(_COLUMN).storage.flatten()
        file.seek(0)
        begin = file.read_buffer(1).address
    except (pa.ArrowException, OSError, KeyError, AttributeError, ValueError) as error:
        raise Damaged(f"{path} is not a part of a view: {error}") from error
    if len(values) != math.prod(shape) or values.type != pa.from_numpy_dtype(np.dtype(layout.dtype)):
        raise Damaged(f"{path} has {len(values)} values of {values.type}, not {shape} of {layout.dtype}")
    return values.to_numpy(zero_copy_only=True).reshape(shape), values.buffers()[1].address - begin


def part_stamp(path: Path) -> tuple[str, int, int, int]:
    """Changes when the file is replaced or written to."""
    status = path.stat()
    return str(path), status.st_ino, status.st_size, status.st_mtime_ns


def block_checksum(rows: NDArray[Any]) -> str:
    return bytes_hash(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)


@dataclass(frozen=True)
class Stretch:
    """Rows that are durable.

    Attributes:
        rows: their numbers, in the order of the checksum.
        checksum: of their values.
        token: the filler's name for the stretch; empty if it was counted before.
    """

    rows: NDArray[np.int64]
    checksum: str
    token: str = ""

    def line(self) -> str:
        """The stretch as one line of a journal, which begins with the line's checksum."""
        first, last = (int(self.rows[0]), int(self.rows[-1]) + 1) if len(self.rows) else (0, 0)
        plain = last - first == len(self.rows) and bool((np.diff(self.rows) == 1).all())
        packed = base64.b64encode(zlib.compress(self.rows.astype("<i4").tobytes(), 1)).decode()
        said = canonical_json({"rows": [first, last] if plain else packed, "sum": self.checksum, "token": self.token})
        return f"{bytes_hash(said.encode(), digits=16)} {said}\n"

    @classmethod
    def parse(cls, line: bytes, num_rows: int) -> "Stretch | None":
        """The stretch in `line`; None if the line is torn or garbled, or names rows that do not exist."""
        checksum, _, said = line.rstrip(b"\n").partition(b" ")
        if bytes_hash(said, digits=16).encode() != checksum:
            return None
        try:
            fields = json.loads(said)
            if isinstance(fields["rows"], str):
                rows = np.frombuffer(zlib.decompress(base64.b64decode(fields["rows"])), "<i4").astype(np.int64)
            else:
                rows = np.arange(*fields["rows"], dtype=np.int64)
            stretch = cls(rows, fields["sum"], fields["token"])
        except (ValueError, TypeError, KeyError, zlib.error):
            return None
        if len(rows) and not (rows.min() >= 0 and rows.max() < num_rows):
            return None
        return stretch


def journals(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("journal-*") if path.is_file())


class JournalReader:
    """Reads a view's growing journals: each complete line once, from any number of writers."""

    def __init__(self, folder: Path, num_rows: int) -> None:
        self._folder = folder
        self._num_rows = num_rows
        self._read: dict[str, int] = {}

    def fresh(self) -> Iterator[Stretch]:
        """The stretches that were added since the last call."""
        for path in journals(self._folder):
            done = self._read.get(path.name, 0)
            # A journal that vanishes was replaced by another one with the same content.
            with suppress(FileNotFoundError), path.open("rb") as file:
                file.seek(done)
                content = file.read()
                whole = content[: content.rfind(b"\n") + 1]
                self._read[path.name] = done + len(whole)
                for line in whole.splitlines():
                    stretch = Stretch.parse(line, self._num_rows)
                    if stretch is not None:
                        yield stretch
