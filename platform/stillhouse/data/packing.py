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

from stillhouse.data.decode import ImageTraits, probe_image, scan_image
from stillhouse.data.decoded_files import name_problems
from stillhouse.data.listing import SPLITS, Listing, list_folder
from stillhouse.data.packs import PACK_VERSION, SOURCE, MappedShard, PackShard, PackTraits, read_manifest
from stillhouse.durable import Damaged, bytes_hash, canonical_json, content_hash, write_atomic, write_checked
from stillhouse.errors import DiskFullError, UsageError, is_disk_full, printable
from stillhouse.user_paths import is_utf8, resolve_path, show_path

SHARD_BYTES = 128 << 20


@dataclass(frozen=True, kw_only=True)
class Packed:
    """What packing did; `notes` are sentences about what was left out."""

    root: Path
    num_classes: int
    images: dict[str, int]
    num_bytes: int
    shards: int
    written: int
    notes: tuple[str, ...] = ()


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
    folder, to = resolve_path(folder, "the folder"), resolve_path(to, "the folder")
    if not is_utf8(to):
        raise UsageError(f"--to must be a path in UTF-8, got {show_path(to)}; name another folder")
    if to == folder or folder in to.parents:
        raise UsageError(f"--to must be outside of the images' folder {folder}, got {to}; name another folder")
    found = list_folder(folder, test_share)
    splits = found.splits
    sizes = {split: [os.stat(file) for file in listing.files] for split, listing in splits.items()}  # noqa: PTH116
    source = _source_hash(folder, splits, sizes)
    earlier = _complete_shards(to, source, folder, splits)
    total, done, written = sum(map(len, sizes.values())), 0, 0
    shards: list[PackShard] = []
    images: list[ImageTraits] = []
    problems: list[UsageError] = []
    with _disk_errors(to), ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        for split, listing in splits.items():
            for first, last in _stretches([status.st_size for status in sizes[split]], shard_bytes):
                shard, traits = earlier.pop((split, first), None) or (None, [])
                if shard is None or shard.rows != last - first:
                    part = Listing(listing.files[first:last], listing.labels[first:last])
                    encoded, traits = _read_images(part.files, pool, problems)
                    # After the first image that cannot be used, the others are only checked.
                    if problems:
                        continue
                    shard = _write_shard(to, split, first, part, folder, source, encoded, traits)
                    written += 1
                shards.append(shard)
                images += traits
                done += last - first
                progress(done, total)
        if problems:
            raise name_problems(problems)
        _write_manifest(to, source, found.class_names, shards, images)
    return Packed(
        root=to,
        num_classes=len(found.class_names),
        images={split: len(listing.files) for split, listing in splits.items()},
        num_bytes=sum(shard.num_bytes for shard in shards),
        shards=len(shards),
        written=written,
        notes=found.notes,
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
    to: Path, source: str, names: Sequence[str], shards: Sequence[PackShard], images: Sequence[ImageTraits]
) -> None:
    """Writes the manifest, which makes the pack complete, and removes other shards."""
    dimensions = {(image.width, image.height) for image in images}
    manifest = {
        "version": PACK_VERSION,
        "source": source,
        "class_names": list(names),
        "dimensions": list(next(iter(dimensions))) if len(dimensions) == 1 else None,
        "traits": vars(PackTraits.of(images)),
        "shards": [vars(shard) for shard in shards],
    }
    content = [[shard.split, shard.rows, shard.checksum] for shard in shards]
    manifest["key"] = content_hash({"version": PACK_VERSION, "class_names": list(names), "shards": content})
    write_checked(to / "manifest", canonical_json(manifest).encode())
    for path in to.glob("*.arrow"):
        if path.name not in {shard.file for shard in shards}:
            path.unlink()


_Shards = dict[tuple[str, int], tuple[PackShard, list[ImageTraits]]]


def _complete_shards(to: Path, source: str, folder: Path, splits: Mapping[str, Listing]) -> _Shards:
    """The complete shards of the same images in `to`, by split and first row.

    Raises:
        UsageError: `to` has a pack of other images.
    """
    other = f"{to} has a pack of other images than {folder}; name another folder with --to, or remove that pack"
    complete = False
    with suppress(FileNotFoundError, Damaged):
        if read_manifest(to)["source"] != source:
            raise UsageError(other)
        complete = True
    found: _Shards = {}
    for path in sorted(to.glob("*.arrow")):
        try:
            shard, traits = _read_shard(path, source)
        except Damaged:
            continue
        if _has_content(path, splits[shard.split].files[shard.first : shard.first + shard.rows]):
            found[shard.split, shard.first] = shard, traits
        elif complete:
            raise UsageError(other)
    return found


def _has_content(path: Path, files: Sequence[str]) -> bool:
    """Whether the shard's images are the bytes of `files`; the source's hash knows only their size and time."""
    mapped = MappedShard(path)
    return len(files) == len(mapped.labels) and all(_read_file(file) == mapped.image(place) for place, file in enumerate(files))


def _read_shard(path: Path, source: str) -> tuple[PackShard, list[ImageTraits]]:
    """The shard in a file of an earlier attempt, and the traits of its images.

    Raises:
        Damaged: the file is not a complete shard of these images.
    """
    name = re.fullmatch(rf"({'|'.join(SPLITS)})-(\d{{9,}})-([0-9a-f]+)\.arrow", path.name)
    if name is None:
        raise Damaged(f"{path} does not have the name of a shard")
    with path.open("rb") as file:
        payload = file.read()
    if bytes_hash(payload) != name[3]:
        raise Damaged(f"{path} does not match its checksum")
    mapped = MappedShard(path, source)
    # The metadata of a shard of an earlier release has the dimensions before images were turned upright.
    traits = [scan_image(mapped.image(place), where=mapped.name(place)) for place in range(len(mapped.labels))]
    shard = PackShard(path.name, name[1], int(name[2]), len(mapped.labels), len(payload), name[3], mapped.index_hash())
    return shard, traits


def _read_images(
    files: Sequence[str], pool: ThreadPoolExecutor, problems: list[UsageError]
) -> tuple[list[bytes], list[ImageTraits]]:
    """Bytes and traits of the files that can be used; what is wrong with the others is added to `problems`."""

    def read(file: str) -> tuple[bytes, ImageTraits] | UsageError:
        try:
            content = _read_file(file)
            return content, probe_image(content, where=file)
        except UsageError as error:
            return error

    found = list(pool.map(read, files))
    problems += [each for each in found if isinstance(each, UsageError)]
    usable = [each for each in found if not isinstance(each, UsageError)]
    return [content for content, _ in usable], [traits for _, traits in usable]


def _read_file(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise UsageError(f"{file} cannot be read ({error.strerror}); repair or remove it") from error


def _write_shard(
    to: Path,
    split: str,
    first: int,
    listing: Listing,
    folder: Path,
    source: str,
    images: Sequence[bytes],
    traits: Sequence[ImageTraits],
) -> PackShard:
    # Two sizes are enough to know that the images differ.
    sizes = sorted({(image.width, image.height) for image in traits})[:2]
    columns = {
        "image": pa.array(images, pa.binary()),
        "label": pa.array(listing.labels, pa.int64()),
        "crc": pa.array([zlib.crc32(image) for image in images], pa.uint32()),
        "file": pa.array([printable(file.removeprefix(f"{folder}{os.sep}")) for file in listing.files], pa.string()),
    }
    batch = pa.record_batch(columns).replace_schema_metadata({SOURCE: source, b"dimensions": json.dumps(sizes)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    payload = sink.getvalue().to_pybytes()
    checksum = bytes_hash(payload)
    path = to / f"{split}-{first:09d}-{checksum}.arrow"
    write_atomic(path, payload)
    index = MappedShard(path).index_hash()
    return PackShard(path.name, split, first, len(images), len(payload), checksum, index)


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
