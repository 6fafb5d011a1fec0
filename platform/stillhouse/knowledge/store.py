"""Sealed views: the knowledge of one (teacher, view), all samples in index order, memory-mapped and never half-read.

A view's folder is named by the hash of its identity and holds shards and a manifest:

    <root>/<key>/shard-<first row>-<checksum>.arrow     uncompressed Arrow IPC, one record batch
    <root>/<key>/manifest                               a checked file; written last, so its presence seals the view

A shard's name carries its checksum, so a filling that was interrupted goes on with the shards that are whole.
"""

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillhouse.durable import Damaged, bytes_hash, canonical_json, content_hash, read_checked, write_atomic, write_checked
from stillhouse.errors import InfrastructureError

STORE_VERSION = 1
_SHARD_BYTES = 32 << 20
_SHARD_ROWS = 65536
_COLUMN = "knowledge"


@dataclass(frozen=True)
class Shard:
    """A stretch of a view's rows in one file."""

    file: str
    first: int
    rows: int
    checksum: str


class SealedView:
    """The knowledge of one view, read by memory map.

    Args:
        folder: holds a manifest and its shards.
        verify: whether every shard is checked against its checksum now; a second opening in the same process may skip it.

    Raises:
        FileNotFoundError: the view is not sealed.
        Damaged: the manifest or a shard is not what was written.
    """

    def __init__(self, folder: Path, *, verify: bool = True) -> None:
        manifest = _read_manifest(folder)
        self.rows: int = manifest["rows"]
        self.shape: tuple[int, ...] = tuple(manifest["shape"])
        self.dtype = np.dtype(manifest["dtype"])
        self.identity: dict[str, Any] = manifest["identity"]
        self._shard_rows: int = manifest["shard_rows"]
        self._shards: list[Tensor] = []
        for shard in (Shard(**entry) for entry in manifest["shards"]):
            if verify:
                _verify_shard(folder, shard)
            self._shards.append(_map_shard(folder / shard.file, shard.rows, self.shape, self.dtype))

    @property
    def bytes_per_sample(self) -> int:
        return int(self.dtype.itemsize) * math.prod(self.shape)

    def gather(self, indices: Tensor) -> Tensor:
        """The rows [B, ...] of the samples `indices` [B] (int64, on the CPU), copied out of the map."""
        if len(self._shards) == 1:
            return self._shards[0].index_select(0, indices)
        rows = torch.empty((len(indices), *self.shape), dtype=self._shards[0].dtype)
        shard_of = torch.div(indices, self._shard_rows, rounding_mode="floor")
        for number in torch.unique(shard_of).tolist():
            places = torch.nonzero(shard_of == number).squeeze(1)
            local = indices.index_select(0, places) - number * self._shard_rows
            rows.index_copy_(0, places, self._shards[number].index_select(0, local))
        return rows


class ViewWriter:
    """Fills one view, shard by shard, in any order, over any number of attempts.

    Args:
        folder: the view's own folder; shards that a broken attempt left there are kept when they are whole.
        shard_rows: rows of every shard but the last; kept from an earlier attempt on the same folder.
    """

    def __init__(
        self, folder: Path, *, identity: Mapping[str, Any], rows: int, shape: Sequence[int], dtype: str, shard_rows: int
    ) -> None:
        self._folder = folder
        self._identity = dict(identity)
        self._rows = rows
        self._shape = tuple(shape)
        self._dtype = np.dtype(dtype)
        self._shard_rows = shard_rows
        self._whole: dict[int, Shard] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob("shard-*.arrow")):
            try:
                shard = self._whole_shard(path)
            except Damaged:
                path.unlink()
            else:
                self._whole[shard.first] = shard

    def missing(self) -> Iterator[tuple[int, int]]:
        """The (first, last + 1) rows of the shards that are still to be written, in order."""
        for first in range(0, self._rows, self._shard_rows):
            if first not in self._whole:
                yield first, min(first + self._shard_rows, self._rows)

    def write(self, first: int, rows: NDArray[Any]) -> int:
        """Writes the shard that begins at row `first`; returns the bytes written.

        Raises:
            InfrastructureError: the disk is full.
        """
        rows = np.ascontiguousarray(rows, dtype=self._dtype)
        if rows.shape[1:] != self._shape:
            raise ValueError(f"a row must have shape {self._shape}, got {rows.shape[1:]}")
        payload = _to_ipc(rows)
        checksum = bytes_hash(payload)
        name = f"shard-{first:09d}-{checksum}.arrow"
        with room_for(len(payload), self._folder):
            write_atomic(self._folder / name, payload)
        self._whole[first] = Shard(name, first, len(rows), checksum)
        return len(payload)

    def seal(self) -> None:
        """Publishes the view; all shards must be written."""
        assert not any(True for _ in self.missing()), "a view is sealed when all of its shards are written"
        shards = [vars(self._whole[first]) for first in sorted(self._whole)]
        manifest = {
            "version": STORE_VERSION,
            "identity": self._identity,
            "rows": self._rows,
            "shape": list(self._shape),
            "dtype": self._dtype.name,
            "shard_rows": self._shard_rows,
            "shards": shards,
        }
        payload = canonical_json(manifest).encode()
        with room_for(len(payload), self._folder):
            write_checked(self._folder / "manifest", payload)

    def _whole_shard(self, path: Path) -> Shard:
        """The shard in the file `path` that an earlier attempt left.

        Raises:
            Damaged: it is not a whole shard of this view.
        """
        name = re.fullmatch(r"shard-(\d{9,})-([0-9a-f]+)\.arrow", path.name)
        if name is None:
            raise Damaged(f"{path} does not bear the name of a shard")
        first = int(name[1])
        if first % self._shard_rows or first >= self._rows:
            raise Damaged(f"{path} begins at row {first} of {self._rows}, shards have {self._shard_rows} rows")
        shard = Shard(path.name, first, min(self._shard_rows, self._rows - first), name[2])
        _verify_shard(self._folder, shard)
        _map_shard(path, shard.rows, self._shape, self._dtype)
        return shard


class KnowledgeStore:
    """All sealed views under one folder, addressed by content.

    Args:
        root: an absolute path.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._verified: set[str] = set()

    @staticmethod
    def key(identity: Mapping[str, Any]) -> str:
        """The address of the view that `identity` describes: any difference gives another key."""
        return content_hash({"store": STORE_VERSION, **identity})

    def folder(self, identity: Mapping[str, Any]) -> Path:
        return self.root / self.key(identity)

    def open(self, identity: Mapping[str, Any]) -> SealedView:
        """The sealed view of `identity`; its shards are checked the first time this process opens it.

        Raises:
            FileNotFoundError: it is not sealed.
            Damaged: it is not what was written; `unseal` it and fill it again.
        """
        key = self.key(identity)
        view = SealedView(self.root / key, verify=key not in self._verified)
        if canonical_json(view.identity) != canonical_json(identity):
            raise Damaged(f"{self.root / key} holds the knowledge of something else")
        if key not in self._verified:
            # The manifest's time is when the view was last of use; `prune` goes by it.
            with suppress(OSError):
                os.utime(self.root / key / "manifest")
            self._verified.add(key)
        return view

    def trust(self, identity: Mapping[str, Any]) -> None:
        """Spares the view that this process has just written the check at its first opening."""
        self._verified.add(self.key(identity))

    def distrust(self, identity: Mapping[str, Any]) -> None:
        """Has the view checked again when it is opened next."""
        self._verified.discard(self.key(identity))

    def is_sealed(self, identity: Mapping[str, Any]) -> bool:
        return (self.folder(identity) / "manifest").exists()

    def writer(
        self, identity: Mapping[str, Any], *, rows: int, shape: Sequence[int], dtype: str, shard_rows: int | None = None
    ) -> ViewWriter:
        """A writer that goes on with what an earlier attempt left whole."""
        shard_rows = shard_rows or default_shard_rows(shape, dtype)
        return ViewWriter(self.folder(identity), identity=identity, rows=rows, shape=shape, dtype=dtype, shard_rows=shard_rows)

    def unseal(self, identity: Mapping[str, Any]) -> None:
        """Takes a damaged view out of use; its whole shards stay for the next writer."""
        (self.folder(identity) / "manifest").unlink(missing_ok=True)
        self._verified.discard(self.key(identity))

    def remove(self, key: str) -> None:
        shutil.rmtree(self.root / key, ignore_errors=True)
        self._verified.discard(key)

    def entries(self) -> Iterator[dict[str, Any]]:
        """What is kept: `key`, `bytes`, `sealed`, `last_used` (seconds since the epoch) and the identity of each view."""
        for folder in sorted(self.root.iterdir()) if self.root.is_dir() else []:
            if not folder.is_dir():
                continue
            files = [file.stat() for file in folder.iterdir()]
            entry: dict[str, Any] = {
                "key": folder.name,
                "bytes": sum(file.st_size for file in files),
                "last_used": max((file.st_mtime for file in files), default=folder.stat().st_mtime),
                "sealed": False,
                "identity": {},
            }
            with suppress(FileNotFoundError, Damaged):
                entry |= {"identity": _read_manifest(folder)["identity"], "sealed": True}
            yield entry

    def prune(self, keep_bytes: int) -> list[dict[str, Any]]:
        """Removes the views that were of no use for the longest time until at most `keep_bytes` are left; gives their entries.

        A sweep that is reading a removed view keeps its map; one that comes for it later has it filled again.
        """
        entries = sorted(self.entries(), key=lambda entry: entry["last_used"])
        total = sum(entry["bytes"] for entry in entries)
        removed = []
        for entry in entries:
            if total <= keep_bytes:
                break
            self.remove(entry["key"])
            total -= entry["bytes"]
            removed.append(entry)
        return removed


def default_shard_rows(shape: Sequence[int], dtype: str) -> int:
    """Rows of a shard of about 32 MiB: big enough to gather from one map, small enough to lose in a crash."""
    return max(1, min(_SHARD_ROWS, _SHARD_BYTES // max(1, np.dtype(dtype).itemsize * math.prod(shape))))


def _read_manifest(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads(read_checked(folder / "manifest"))
    if manifest.get("version") != STORE_VERSION:
        raise Damaged(f"{folder} was sealed by store version {manifest.get('version')}, this is {STORE_VERSION}")
    return manifest


def _verify_shard(folder: Path, shard: Shard) -> None:
    try:
        found = bytes_hash((folder / shard.file).read_bytes())
    except FileNotFoundError as error:
        raise Damaged(f"{folder / shard.file} is missing") from error
    if found != shard.checksum:
        raise Damaged(f"{folder / shard.file} does not match its checksum")


def _to_ipc(rows: NDArray[Any]) -> bytes:
    """Arrow IPC bytes of one record batch with one fixed-shape tensor column."""
    value_type = pa.from_numpy_dtype(rows.dtype)
    storage = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1), type=value_type), math.prod(rows.shape[1:]))
    column = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(value_type, rows.shape[1:] or (1,)), storage)
    batch = pa.record_batch({_COLUMN: column})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue().to_pybytes())


def _map_shard(path: Path, rows: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
    """The shard's rows [rows, *shape] as a tensor over the memory map: nothing is copied, nothing may be written."""
    try:
        values = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0).column(_COLUMN).storage.flatten()
    except (pa.ArrowException, KeyError) as error:
        raise Damaged(f"{path} is not a shard: {error}") from error
    if len(values) != rows * math.prod(shape) or values.type != pa.from_numpy_dtype(dtype):
        raise Damaged(f"{path} holds {len(values)} values of {values.type}, not {rows} rows of {shape} {dtype}")
    tensor: Tensor = torch.utils.dlpack.from_dlpack(values)
    return tensor.view(rows, *shape)


@contextmanager
def room_for(num_bytes: int, folder: Path) -> Iterator[None]:
    """Turns a full disk into one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InfrastructureError(
            f"no room for {num_bytes} bytes of knowledge under {folder.parent}; "
            f"free some space (`stillhouse teachers prune`) and run the same command again"
        ) from error
