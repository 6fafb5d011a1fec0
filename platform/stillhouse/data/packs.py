"""Packs: data sets larger than memory, as Arrow shards of encoded images, decoded batch by batch when they are needed.

    <root>/<split>-<first row>-<checksum>.arrow     uncompressed Arrow IPC, one record batch: image, label, crc, file
    <root>/manifest                                 a checked file; written last, so a pack with it is complete

A shard's name contains its checksum, so interrupted packing can continue after the complete shards. Opening a pack checks
the manifest, the length of every shard and its index of labels, positions and image checksums; the bytes of an image are
checked whenever it is decoded. So damaged data is never used, and a start does not read hundreds of gigabytes.
"""

import json
import threading
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillhouse.data.decode import WHITE, Ground, ImageTraits, decode_image, scan_image
from stillhouse.data.listing import SPLITS, TRAIN, VALIDATION
from stillhouse.durable import Damaged, bytes_hash, read_checked
from stillhouse.errors import UsageError

PACK_VERSION = 1
_BATCHES_AHEAD = 3
# Images per decoding task: enough that the task's overhead is small, few enough that threads can share a batch.
_CHUNK = 8
SOURCE = b"source"
"""The key in a shard's metadata under which the hash of its source files is stored."""


@dataclass(frozen=True, kw_only=True)
class PackTraits:
    """In how many images of a pack the ground is visible, and how many are turned upright."""

    transparent: int
    rotated: int

    @classmethod
    def of(cls, images: Iterable[ImageTraits]) -> "PackTraits":
        found = list(images)
        return cls(transparent=sum(image.transparent for image in found), rotated=sum(image.rotated for image in found))

    def decoding(self, ground: Ground) -> dict[str, Any]:
        """What determines the pixels besides bytes and libraries; nothing for images that are upright and opaque."""
        turned = {"orientation": "upright"} if self.rotated else {}
        return {**turned, "ground": list(ground)} if self.transparent else turned


@dataclass(frozen=True)
class PackShard:
    """A stretch of a split's rows in one file; `index` is the hash of everything in it except the images."""

    file: str
    split: str
    first: int
    rows: int
    num_bytes: int
    checksum: str
    index: str


class MappedShard:
    """One memory-mapped shard."""

    def __init__(self, path: Path, source: str | None = None) -> None:
        try:
            batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
            images = batch.column("image")
            self.offsets = np.frombuffer(images.buffers()[1], np.int32)[: len(images) + 1]
            self.labels: NDArray[np.int64] = batch.column("label").to_numpy()
            self.crcs: NDArray[np.uint32] = batch.column("crc").to_numpy()
            self.files = batch.column("file")
            self.content = memoryview(images.buffers()[2] or b"")
        except (pa.ArrowException, OSError, KeyError, ValueError, IndexError) as error:
            raise Damaged(f"{path} is not a shard of a pack: {error}") from error
        if source is not None and (batch.schema.metadata or {}).get(SOURCE) != source.encode():
            raise Damaged(f"{path} was packed from other images")

    def image(self, place: int) -> bytes:
        """The bytes of one image as they were in its file."""
        return bytes(self.content[self.offsets[place] : self.offsets[place + 1]])

    def name(self, place: int) -> str:
        """The name of the file of one image, below the packed folder."""
        return str(self.files[place].as_py())

    def index_hash(self) -> str:
        parts = (np.ascontiguousarray(part) for part in (self.offsets, self.labels, self.crcs))
        return bytes_hash(b"".join(part.tobytes() for part in parts))


class Pack:
    """A pack that is opened for reading.

    Attributes:
        key: the hash of its whole content.
        dimensions: width and height of the images; None if they differ.
        traits: None for a pack of an earlier release, which recorded none.

    Raises:
        UsageError: there is no complete pack at `root`, or it is damaged.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            manifest = read_manifest(root)
            self._shards = {split: _open_shards(root, manifest, split) for split in SPLITS}
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError(
                f"{root} has no complete pack; make or complete one with: stillhouse data pack FOLDER --to {root}"
            ) from None
        except Damaged as error:
            raise UsageError(f"{error}; repair it with the command that packed it") from error
        self.key: str = manifest["key"]
        self.class_names: tuple[str, ...] = tuple(manifest["class_names"])
        self.dimensions: tuple[int, int] | None = tuple(manifest["dimensions"]) if manifest["dimensions"] else None
        self.traits = PackTraits(**manifest["traits"]) if "traits" in manifest else None
        self._firsts = {
            split: np.cumsum([0, *(len(shard.labels) for shard in shards)]) for split, shards in self._shards.items()
        }

    @property
    def has_validation(self) -> bool:
        """Whether the folder had a validation split of its own."""
        return bool(self._shards[VALIDATION])

    def scan(self) -> PackTraits:
        """The traits of all images, from their headers where the format allows it.

        Raises:
            UsageError: an image is damaged.
        """
        rows = ((split, row) for split, firsts in self._firsts.items() for row in range(int(firsts[-1])))
        encoded = (self.encoded(split, row) for split, row in rows)
        return PackTraits.of(scan_image(content, where=where) for content, where in encoded)

    def checksums(self, split: str) -> NDArray[np.uint32]:
        """The CRC-32 of each image's bytes, [N], in the order of the rows."""
        checksums: NDArray[np.uint32] = np.concatenate([shard.crcs for shard in self._shards[split]])
        return checksums

    def labels(self, split: str) -> NDArray[np.int64]:
        """int64 [N], in the order of the rows."""
        return np.concatenate([shard.labels for shard in self._shards[split]])

    def encoded(self, split: str, row: int) -> tuple[bytes, str]:
        """The bytes of one image as they were in its file, and the file's name.

        Raises:
            UsageError: they differ from what was packed.
        """
        number = int(np.searchsorted(self._firsts[split], row, side="right")) - 1
        shard, place = self._shards[split][number], row - int(self._firsts[split][number])
        content = shard.image(place)
        where = f"{self.root}: {shard.name(place)}"
        if zlib.crc32(content) != shard.crcs[place]:
            raise UsageError(f"{where} does not match its checksum; repair it with the command that packed it")
        return content, where


@lru_cache(maxsize=4)
def open_pack(root: Path) -> Pack:
    """The pack at `root`, opened once in each process."""
    return Pack(root)


class PackFacts(TypedDict):
    """What another process needs to read the same images; plain JSON data. That process checks `key`."""

    root: str
    key: str
    size: int | None
    grey: bool
    ground: NotRequired[Sequence[int]]


@dataclass(frozen=True, eq=False)
class _Decoding:
    """A batch that threads are decoding into `pixels`."""

    indices: Tensor
    pixels: NDArray[np.uint8]
    parts: Sequence[Future[None]]

    def result(self) -> Tensor:
        for part in self.parts:
            part.result()
        return torch.from_numpy(self.pixels)


class PackedImages:
    """The images of one split of a pack, uint8 [N, C, H, W], decoded when they are read; never in memory as a whole.

    It has those members of a tensor of images that are used: `shape`, `dtype`, `device`, `to`, `len`, slices, `index_select`.

    Args:
        rows: int64 [N], the pack's rows in the order of the split.
        size: height and width to which images are cropped and resized; None if all images of the pack have one size.
        ground: the colour on which transparent images are laid.
        device: where decoded pixels are put.
    """

    dtype = torch.uint8

    def __init__(
        self,
        pack: Pack,
        split: str,
        rows: NDArray[np.int64],
        *,
        size: int | None,
        grey: bool,
        ground: Ground = WHITE,
        device: str | torch.device = "cpu",
    ) -> None:
        if size is None and pack.dimensions is None:
            raise UsageError(f"the images of {pack.root} differ in size; set dataset.size to resize them")
        width, height = (size, size) if size is not None else pack.dimensions or (0, 0)
        self.pack = pack
        self.split = split
        self.rows = rows
        self.size = size
        self.grey = grey
        self.ground = ground
        self.device = torch.device(device)
        self.shape = torch.Size((len(rows), 1 if grey else 3, height, width))
        self.samples_decoded = 0
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._coming: Iterator[Tensor] = iter(())
        self._started: deque[_Decoding] = deque()

    @classmethod
    def of_facts(cls, facts: PackFacts, pack: Pack, split: str, rows: NDArray[np.int64]) -> "PackedImages":
        """The images of a data set's split in another process."""
        of_train = split == VALIDATION and not pack.has_validation
        red, green, blue = facts.get("ground", WHITE)
        return cls(pack, TRAIN if of_train else split, rows, size=facts["size"], grey=facts["grey"], ground=(red, green, blue))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, places: slice) -> Tensor:
        return self.index_select(0, torch.arange(len(self))[places])

    def to(self, device: str | torch.device) -> "PackedImages":
        """The same images, decoded onto `device`."""
        if torch.device(device) == self.device:
            return self
        return PackedImages(self.pack, self.split, self.rows, size=self.size, grey=self.grey, ground=self.ground, device=device)

    def index_select(self, dim: int, indices: Tensor) -> Tensor:
        """The pixels of the samples `indices` [B], uint8 [B, C, H, W].

        Raises:
            UsageError: an image is damaged.
        """
        assert dim == 0, "images are selected by sample"
        indices = indices.cpu()
        with self._lock:
            decoding = self._expected(indices) or self._decode(indices)
        pixels = decoding.result()
        return pixels if self.device.type == "cpu" else pixels.pin_memory().to(self.device, non_blocking=True)

    @contextmanager
    def ahead(self, batches: Iterable[Tensor]) -> Iterator[None]:
        """A context in which the batches that `index_select` will read next are decoded during the computation on others.

        Args:
            batches: their indices [B], in order. If a batch is not read in its turn, only work is lost.
        """
        with self._lock:
            self._coming = iter(batches)
            self._read_on()
        try:
            yield
        finally:
            with self._lock:
                self._coming = iter(())
                for decoding in self._started:
                    for part in decoding.parts:
                        part.cancel()
                self._started.clear()

    def checksums(self) -> NDArray[np.uint32]:
        """The CRC-32 of each image's bytes, [N]."""
        return self.pack.checksums(self.split)[self.rows]

    def facts(self) -> PackFacts:
        return {
            "root": str(self.pack.root),
            "key": self.pack.key,
            "size": self.size,
            "grey": self.grey,
            "ground": list(self.ground),
        }

    def _expected(self, indices: Tensor) -> _Decoding | None:
        if not self._started or not torch.equal(self._started[0].indices, indices):
            return None
        decoding = self._started.popleft()
        self._read_on()
        return decoding

    def _read_on(self) -> None:
        while len(self._started) < _BATCHES_AHEAD:
            indices = next(self._coming, None)
            if indices is None:
                return
            self._started.append(self._decode(indices.cpu()))

    def _decode(self, indices: Tensor) -> _Decoding:
        """Starts to decode the samples, on as many threads as the process uses for torch's operators."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(max(1, torch.get_num_threads()), thread_name_prefix="decode")
        pixels = np.empty((len(indices), *self.shape[1:]), np.uint8)
        rows = self.rows[indices.numpy()]

        def fill(start: int) -> None:
            for place in range(start, min(start + _CHUNK, len(rows))):
                encoded, where = self.pack.encoded(self.split, int(rows[place]))
                pixels[place], _ = decode_image(encoded, size=self.size, grey=self.grey, where=where, ground=self.ground)

        self.samples_decoded += len(rows)
        return _Decoding(indices, pixels, [self._pool.submit(fill, start) for start in range(0, len(rows), _CHUNK)])


def read_manifest(root: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads(read_checked(root / "manifest"))
    if manifest.get("version") != PACK_VERSION:
        raise Damaged(f"{root} was packed by version {manifest.get('version')}, this is {PACK_VERSION}")
    return manifest


def _open_shards(root: Path, manifest: dict[str, Any], split: str) -> list[MappedShard]:
    opened = []
    for shard in (PackShard(**entry) for entry in manifest["shards"]):
        if shard.split != split:
            continue
        path = root / shard.file
        try:
            length = path.stat().st_size
        except FileNotFoundError as error:
            raise Damaged(f"{path} is missing") from error
        if length != shard.num_bytes:
            raise Damaged(f"{path} has {length} bytes, expected {shard.num_bytes}")
        mapped = MappedShard(path)
        if mapped.index_hash() != shard.index or len(mapped.labels) != shard.rows:
            raise Damaged(f"the index of {path} does not match its checksum")
        opened.append(mapped)
    return opened
