"""Image folders: one sub-folder per class, decoded once and cached as one array."""

import contextlib
import json
import os
import secrets
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.data.decode import SUFFIXES, decode_image
from stillhouse.data.hashing import derive_key
from stillhouse.data.images import Arrays
from stillhouse.data.published import Published, limited
from stillhouse.data.splits import stratified_split
from stillhouse.durable import Damaged, bytes_hash, content_hash, fsync_folder, read_checked, write_checked
from stillhouse.errors import UsageError

_CACHE_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ImageFolder:
    """Image files below `root`, by class.

    With a folder `root/train`, the test split is `root/test`, or `root/val` if there is no `root/test`. Otherwise the class
    folders are in `root`, and a share `test_share` of their images becomes the test split.

    Attributes:
        size: height and width of the images; of other images, the middle square is cut out and resized.
        grey: one channel instead of three.
        cache: folder for decoded images.
    """

    root: Path
    size: int | None = None
    grey: bool = False
    test_share: float = 0.2
    cache: Path | None = None

    def find(self) -> Published:
        """Lists the files; nothing is decoded yet.

        Raises:
            UsageError: there is no such folder, or its classes cannot be used.
        """
        names, train, test = self.listings()
        return Published(
            num_classes=len(names),
            class_names=names,
            train=lambda limit: self._read(train.only(limited(train.labels, limit))),
            test=lambda limit: self._read(test.only(limited(test.labels, limit))),
        )

    def listings(self) -> tuple[tuple[str, ...], "Listing", "Listing"]:
        """The class names, and the files of the training and of the test split.

        Raises:
            UsageError: as for `find`.
        """
        if not self.root.is_dir():
            raise UsageError(f"dataset.root {self.root} does not exist; name a folder with one sub-folder of images per class")
        if (self.root / "train").is_dir():
            test_folder = next((self.root / name for name in ("test", "val") if (self.root / name).is_dir()), None)
            if test_folder is None:
                raise UsageError(f"{self.root} has a folder train but neither test nor val; add one of them")
            names, train = _listing(self.root / "train")
            _, test = _listing(test_folder, names)
            return names, train, test
        names, everything = _listing(self.root)
        size = round(self.test_share * len(everything.files))
        if not 0 < size < len(everything.files):
            raise UsageError(f"{self.root} has {len(everything.files)} images, too few for a test share of {self.test_share}")
        rest, taken = stratified_split(everything.labels, size, derive_key("image_folder", "test"))
        return names, everything.only(rest), everything.only(taken)

    def _read(self, listing: "Listing") -> Arrays:
        if self.cache is None:
            return self._decode(listing.files), listing.labels
        files = [[file.removeprefix(f"{self.root}{os.sep}"), *_version(file)] for file in listing.files]
        key = content_hash({"version": _CACHE_VERSION, "files": files, "size": self.size, "grey": self.grey})
        with contextlib.suppress(OSError, ValueError):
            return _read_cached(self.cache / key), listing.labels
        images = self._decode(listing.files)
        try:
            _write_cached(self.cache / key, images)
        except OSError as error:
            message = f"decoded images cannot be stored in {self.cache} ({error.strerror}); they are decoded again next time"
            warnings.warn(message, stacklevel=2)
        return images, listing.labels

    def _decode(self, files: Sequence[str]) -> NDArray[np.uint8]:
        first = self._decode_one(files[0])
        images = np.empty((len(files), *first.shape), np.uint8)
        for place, file in enumerate(files):
            image = self._decode_one(file)
            if image.shape != first.shape:
                height, width = image.shape[1:]
                raise UsageError(
                    f"{file} is {width}x{height} and {files[0]} is {first.shape[2]}x{first.shape[1]}; "
                    f"set dataset.size, to resize them"
                )
            images[place] = image
        return images

    def _decode_one(self, file: str) -> NDArray[np.uint8]:
        """uint8 [C, H, W]."""
        return decode_image(file, size=self.size, grey=self.grey, where=file)


@dataclass(frozen=True)
class Listing:
    """Image files and their classes."""

    files: Sequence[str]
    labels: NDArray[np.int64]

    def only(self, chosen: NDArray[np.int64]) -> "Listing":
        return Listing([self.files[place] for place in chosen], self.labels[chosen])


def _listing(folder: Path, names: tuple[str, ...] | None = None) -> tuple[tuple[str, ...], Listing]:
    """The class names, sorted, and the image files below them; labels are positions in `names`, if it is given."""
    found = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")))
    names = found if names is None else names
    if len(names) < 2:
        raise UsageError(f"{folder} must have at least two folders, one per class, it has {len(names)}")
    if strange := [name for name in found if name not in names]:
        raise UsageError(f"{folder} has a class folder '{strange[0]}' that the training images lack; rename or remove it")
    files: list[str] = []
    labels: list[int] = []
    for name in found:
        below = sorted(_images(folder / name))
        if not below:
            raise UsageError(f"class folder {folder / name} has no image ({', '.join(SUFFIXES)}); fill or remove it")
        files += below
        labels += [names.index(name)] * len(below)
    return names, Listing(files, np.array(labels, dtype=np.int64))


def _images(folder: Path) -> list[str]:
    return [
        os.path.join(where, file)  # noqa: PTH118 - sixty thousand Path objects take seconds
        for where, _, files in os.walk(folder, followlinks=True)
        for file in files
        if file.lower().endswith(SUFFIXES) and not file.startswith(".")
    ]


def _version(file: str) -> tuple[int, int]:
    status = os.stat(file)  # noqa: PTH116
    return status.st_size, status.st_mtime_ns


def _read_cached(folder: Path) -> NDArray[np.uint8]:
    """The images that `_write_cached` wrote.

    Raises:
        OSError: there is no cache.
        ValueError: it is damaged.
    """
    facts = json.loads(read_checked(folder / "meta.json"))
    images: NDArray[np.uint8] = np.load(folder / "images.npy", allow_pickle=False)
    if list(images.shape) != facts["shape"] or images.dtype != np.uint8 or _hash(images) != facts["hash"]:
        raise Damaged(f"{folder / 'images.npy'} does not match its checksum")
    return images


def _write_cached(folder: Path, images: NDArray[np.uint8]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f".images.{os.getpid()}.{secrets.token_hex(4)}.part"
    try:
        with beside.open("wb") as file:
            np.save(file, images)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(folder / "images.npy")
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    fsync_folder(folder)
    facts: dict[str, Any] = {"shape": list(images.shape), "hash": _hash(images)}
    write_checked(folder / "meta.json", json.dumps(facts).encode())


def _hash(images: NDArray[np.uint8]) -> str:
    return bytes_hash(np.ascontiguousarray(images).data.cast("B"))
