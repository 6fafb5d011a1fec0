"""Packing: copies the files of an image folder unchanged into a pack; interrupted packing continues."""

import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from stillhouse.data.decode import probe_image
from stillhouse.data.folders import ImageFolder, Listing
from stillhouse.data.packs import PACK_VERSION, SOURCE, MappedShard, PackShard, read_manifest
from stillhouse.durable import Damaged, bytes_hash, canonical_json, content_hash, write_atomic, write_checked
from stillhouse.errors import DiskFullError, UsageError, is_disk_full

SHARD_BYTES = 128 << 20


@dataclass(frozen=True, kw_only=True)
class Packed:
    """What packing did."""

    root: Path
    num_classes: int
    images: dict[str, int]
    num_bytes: int
    shards: int
    written: int


def pack_folder(
    folder: Path,
    to: Path,
    *,
    test_share: float = 0.2,
    shard_bytes: int = SHARD_BYTES,
    threads: int | None = None,
    progress: Callable[[int, int], None] = lambda _done, _of: None,
) -> Packed:
    """Packs an image folder (see `ImageFolder`). The files are stored unchanged.

    The same call continues packing that was interrupted, and replaces damaged shards of a complete pack.

    Args:
        test_share: the share of the images that becomes the test split if the folder has none.
        shard_bytes: the approximate size of a shard.
        threads: number of threads that check whether images can be decoded; None uses all cores.
        progress: called with the number of packed images and the number of all images.

    Raises:
        UsageError: the folder or an image in it cannot be used, or `to` has another pack.
        DiskFullError: the disk is full; complete shards remain.
    """
    folder, to = folder.expanduser().resolve(), to.expanduser().resolve()
    if to == folder or folder in to.parents:
        raise UsageError(f"--to must be outside of the images' folder {folder}, got {to}; name another folder")
    names, *listings = ImageFolder(root=folder, test_share=test_share).listings()
    splits = dict(zip(("train", "test"), listings, strict=True))
    sizes = {split: [os.stat(file) for file in listing.files] for split, listing in splits.items()}  # noqa: PTH116
    source = _source_hash(folder, splits, sizes)
    earlier = _complete_shards(to, source, folder)
    total, done, written = sum(map(len, sizes.values())), 0, 0
    shards: list[PackShard] = []
    dimensions: set[tuple[int, int]] = set()
    with _disk_errors(to), ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        for split, listing in splits.items():
            for first, last in _stretches([status.st_size for status in sizes[split]], shard_bytes):
                shard, found = earlier.pop((split, first), None) or (None, set())
                if shard is None or shard.rows != last - first:
                    part = Listing(listing.files[first:last], listing.labels[first:last])
                    shard, found = _write_shard(to, split, first, part, folder, source, pool)
                    written += 1
                shards.append(shard)
                dimensions |= found
                done += last - first
                progress(done, total)
        _write_manifest(to, source, names, shards, dimensions)
    return Packed(
        root=to,
        num_classes=len(names),
        images={split: len(listing.files) for split, listing in splits.items()},
        num_bytes=sum(shard.num_bytes for shard in shards),
        shards=len(shards),
        written=written,
    )


def _source_hash(folder: Path, splits: Mapping[str, Listing], sizes: Mapping[str, Sequence[os.stat_result]]) -> str:
    """Changes with the name, class, length or modification time of any image."""
    return content_hash(
        [
            [split, file.removeprefix(f"{folder}{os.sep}"), int(label), status.st_size, status.st_mtime_ns]
            for split, listing in splits.items()
            for file, label, status in zip(listing.files, listing.labels, sizes[split], strict=True)
        ]
    )


def _write_manifest(
    to: Path, source: str, names: Sequence[str], shards: Sequence[PackShard], dimensions: set[tuple[int, int]]
) -> None:
    """Writes the manifest, which makes the pack complete, and removes other shards."""
    manifest = {
        "version": PACK_VERSION,
        "source": source,
        "class_names": list(names),
        "dimensions": list(next(iter(dimensions))) if len(dimensions) == 1 else None,
        "shards": [vars(shard) for shard in shards],
    }
    content = [[shard.split, shard.rows, shard.checksum] for shard in shards]
    manifest["key"] = content_hash({"version": PACK_VERSION, "class_names": list(names), "shards": content})
    write_checked(to / "manifest", canonical_json(manifest).encode())
    for path in to.glob("*.arrow"):
        if path.name not in {shard.file for shard in shards}:
            path.unlink()


_Shards = dict[tuple[str, int], tuple[PackShard, set[tuple[int, int]]]]


def _complete_shards(to: Path, source: str, folder: Path) -> _Shards:
    """The complete shards of the same images in `to`, by split and first row.

    Raises:
        UsageError: `to` has a pack of other images.
    """
    with suppress(FileNotFoundError, Damaged):
        if read_manifest(to)["source"] != source:
            raise UsageError(
                f"{to} has a pack of other images than {folder}; name another folder with --to, or remove that pack"
            )
    found: _Shards = {}
    for path in sorted(to.glob("*.arrow")):
        try:
            shard, sizes = _read_shard(path, source)
        except Damaged:
            continue
        found[shard.split, shard.first] = shard, sizes
    return found


def _read_shard(path: Path, source: str) -> tuple[PackShard, set[tuple[int, int]]]:
    """The shard in a file of an earlier attempt, and the sizes of its images.

    Raises:
        Damaged: the file is not a complete shard of these images.
    """
    name = re.fullmatch(r"(train|test)-(\d{9,})-([0-9a-f]+)\.arrow", path.name)
    if name is None:
        raise Damaged(f"{path} does not have the name of a shard")
    with path.open("rb") as file:
        payload = file.read()
    if bytes_hash(payload) != name[3]:
        raise Damaged(f"{path} does not match its checksum")
    mapped = MappedShard(path, source)
    sizes = pa.ipc.open_file(pa.memory_map(str(path))).schema.metadata[b"dimensions"]
    shard = PackShard(path.name, name[1], int(name[2]), len(mapped.labels), len(payload), name[3], mapped.index_hash())
    return shard, {(width, height) for width, height in json.loads(sizes)}


def _write_shard(
    to: Path, split: str, first: int, listing: Listing, folder: Path, source: str, pool: ThreadPoolExecutor
) -> tuple[PackShard, set[tuple[int, int]]]:
    names = [file.removeprefix(f"{folder}{os.sep}") for file in listing.files]

    def read(file: str) -> tuple[bytes, tuple[int, int]]:
        try:
            content = Path(file).read_bytes()
        except OSError as error:
            raise UsageError(f"{file} cannot be read ({error.strerror}); repair or remove it") from error
        return content, probe_image(content, where=file)

    read_all = list(pool.map(read, listing.files))
    images = [content for content, _ in read_all]
    # Two sizes are enough to know that the images differ.
    sizes = set(sorted({size for _, size in read_all})[:2])
    columns = {
        "image": pa.array(images, pa.binary()),
        "label": pa.array(listing.labels, pa.int64()),
        "crc": pa.array([zlib.crc32(image) for image in images], pa.uint32()),
        "file": pa.array(names, pa.string()),
    }
    batch = pa.record_batch(columns).replace_schema_metadata({SOURCE: source, b"dimensions": json.dumps(sorted(sizes))})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    payload = sink.getvalue().to_pybytes()
    checksum = bytes_hash(payload)
    path = to / f"{split}-{first:09d}-{checksum}.arrow"
    write_atomic(path, payload)
    index = MappedShard(path).index_hash()
    return PackShard(path.name, split, first, len(images), len(payload), checksum, index), sizes


def _stretches(sizes: Sequence[int], shard_bytes: int) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of each shard: at least one file, and otherwise at most `shard_bytes`."""
    first, held = 0, 0
    for place, size in enumerate(sizes):
        if place > first and held + size > shard_bytes:
            yield first, place
            first, held = place, 0
        held += size
    if first < len(sizes):
        yield first, len(sizes)


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Turns errors of a disk that is full or not writable into errors that name the remedy."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise DiskFullError(
                f"no space for the pack in {folder}; free some space and run the same command again, which continues from here"
            ) from error
        raise UsageError(f"{folder} cannot be written ({error.strerror}); name another folder with --to") from error
