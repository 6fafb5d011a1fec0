"""The files of a view: what lies where, how a part is made and mapped, what a line of a journal says.

- `layout`: a checked file with identity, rows, shape, number format and the order of filling; written first.
- `part-<number>.arrow`: uncompressed Arrow IPC, one record batch with one fixed-shape tensor column, rows in index order; of
  its full size from the start, at most about 1 GiB.
- `journal-<attempt>`: one line for each stretch of rows that is durable: which rows, and the checksum of their values.
- `manifest`: a checked file with the layout and a checksum of every block of about 32 MiB; its presence seals the view.
- `lock`: held by whoever begins to fill the view or must have it alone; `fillers`: held while it is being filled, by several at
  a time where they share the work; `claims`: which blocks of rows they are at.
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

from stillhouse.durable import Damaged, bytes_hash, canonical_json, fsync_folder, read_checked

STORE_VERSION = 2
LAYOUT, MANIFEST, LOCK = "layout", "manifest", "lock"
FILLERS, CLAIMS = "fillers", "claims"
_PART_BYTES = 1 << 30
_BLOCK_BYTES = 32 << 20
_COLUMN = "knowledge"
_ENVELOPE_BYTES = 1 << 13
"""More than the schema and the footer of a part take."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a view holds and how it is cut into parts and blocks.

    Attributes:
        identity: all that decides the content.
        dtype: NumPy's name of the number format.
        order: how whoever began the filling described its order; it is kept for those who go on.
        part_rows: rows of every part but the last.
        block_rows: rows under one checksum; a part holds whole blocks.
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
        """The layout in a checked file, and all that the file says besides.

        Raises:
            FileNotFoundError: there is none.
            Damaged: the file is not what was written, or another version wrote it.
        """
        content: dict[str, Any] = json.loads(read_checked(path))
        if content.get("version") != STORE_VERSION:
            raise Damaged(f"{path} was written by store version {content.get('version')}, this is {STORE_VERSION}")
        fields = content["layout"]
        return cls(**{**fields, "shape": tuple(fields["shape"])}), content

    def document(self, **besides: Any) -> bytes:
        """What `read` reads."""
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
        """The first row of a part, and the first behind it."""
        first = number * self.part_rows
        return first, min(first + self.part_rows, self.rows)

    def blocks(self) -> Iterator[tuple[int, int, int]]:
        """(part, first row, first row behind) of every block, in order."""
        for part in range(self.num_parts):
            first, last = self.part_stretch(part)
            for start in range(first, last, self.block_rows):
                yield part, start, min(start + self.block_rows, last)


class _Sink:
    """A file in which the values of an Arrow array are left out: their place stays as it was allocated."""

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
    """Makes the file of a part with all the room it will need, its values unwritten.

    Raises:
        OSError: the disk is full; nothing is left of the file.
    """
    first, last = layout.part_stretch(number)
    count = (last - first) * math.prod(layout.shape)
    size = max(1, (last - first) * layout.row_bytes)
    # Never touched, so that it takes no memory: Arrow only wants to know how long it is.
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
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def map_part(path: Path, layout: Layout, number: int) -> tuple[NDArray[Any], int]:
    """A part's rows [rows, *shape] over the memory map, not to be written to, and where in the file they begin.

    The file must not be cut in place while it is mapped: whoever reads behind its end dies of SIGBUS. Nothing here does that; a
    part that is made again is another file, renamed into its place, and whoever has the old one mapped keeps it.

    Raises:
        Damaged: the file is missing, cut off or none of this layout.
    """
    first, last = layout.part_stretch(number)
    shape = (last - first, *layout.shape)
    try:
        file = pa.memory_map(str(path))
        batch = pa.ipc.open_file(file).get_batch(0)
        # A garbled envelope may promise any number of values, and Arrow ends the process when it is believed (pyarrow 25).
        batch.validate()
        values = batch.column(_COLUMN).storage.flatten()
        file.seek(0)
        begin = file.read_buffer(1).address
    except (pa.ArrowException, OSError, KeyError, AttributeError, ValueError) as error:
        raise Damaged(f"{path} is not a part of a view: {error}") from error
    if len(values) != math.prod(shape) or values.type != pa.from_numpy_dtype(np.dtype(layout.dtype)):
        raise Damaged(f"{path} holds {len(values)} values of {values.type}, not {shape} of {layout.dtype}")
    return values.to_numpy(zero_copy_only=True).reshape(shape), values.buffers()[1].address - begin


def part_stamp(path: Path) -> tuple[str, int, int, int]:
    """Differs when the file is another one or was written to since."""
    status = path.stat()
    return str(path), status.st_ino, status.st_size, status.st_mtime_ns


def block_checksum(rows: NDArray[Any]) -> str:
    return bytes_hash(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)


@dataclass(frozen=True)
class Stretch:
    """Rows that are durable.

    Attributes:
        rows: their numbers, in the order in which the checksum takes them.
        checksum: of their values.
        token: the filler's name for what it computed in one go; empty for what was accounted for before.
    """

    rows: NDArray[np.int64]
    checksum: str
    token: str = ""

    def line(self) -> str:
        """The stretch as one line of a journal, led by its own checksum."""
        first, last = (int(self.rows[0]), int(self.rows[-1]) + 1) if len(self.rows) else (0, 0)
        plain = last - first == len(self.rows) and bool((np.diff(self.rows) == 1).all())
        packed = base64.b64encode(zlib.compress(self.rows.astype("<i4").tobytes(), 1)).decode()
        said = canonical_json({"rows": [first, last] if plain else packed, "sum": self.checksum, "token": self.token})
        return f"{bytes_hash(said.encode(), digits=16)} {said}\n"

    @classmethod
    def parse(cls, line: bytes, num_rows: int) -> "Stretch | None":
        """What `line` says; None if it is torn, garbled or speaks of rows that are not there."""
        checksum, _, said = line.rstrip(b"\n").partition(b" ")
        if bytes_hash(said, digits=16).encode() != checksum:
            return None
        fields = json.loads(said)
        if isinstance(fields["rows"], str):
            rows = np.frombuffer(zlib.decompress(base64.b64decode(fields["rows"])), "<i4").astype(np.int64)
        else:
            rows = np.arange(*fields["rows"], dtype=np.int64)
        if len(rows) and not (rows.min() >= 0 and rows.max() < num_rows):
            return None
        return cls(rows, fields["sum"], fields["token"])


def journals(folder: Path) -> list[Path]:
    return sorted(folder.glob("journal-*"))


class JournalReader:
    """Reads a view's journals as they grow: each whole line once, from however many writers."""

    def __init__(self, folder: Path, num_rows: int) -> None:
        self._folder = folder
        self._num_rows = num_rows
        self._read: dict[str, int] = {}

    def fresh(self) -> Iterator[Stretch]:
        """The stretches that were added since the last time."""
        for path in journals(self._folder):
            done = self._read.get(path.name, 0)
            # A journal that vanishes was replaced by another, which says the same.
            with suppress(FileNotFoundError), path.open("rb") as file:
                file.seek(done)
                content = file.read()
                whole = content[: content.rfind(b"\n") + 1]
                self._read[path.name] = done + len(whole)
                for line in whole.splitlines():
                    stretch = Stretch.parse(line, self._num_rows)
                    if stretch is not None:
                        yield stretch
