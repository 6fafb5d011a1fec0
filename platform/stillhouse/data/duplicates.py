"""Images that are in a data set more than once: in two splits, or in two classes."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from weakref import WeakKeyDictionary

import numpy as np

from stillhouse.data.images import ImageData, Split
from stillhouse.data.packs import PackedImages
from stillhouse.durable import bytes_hash

_hashes: WeakKeyDictionary[Split, list[str]] = WeakKeyDictionary()


def shared_with_training(data: ImageData, split: Split) -> int:
    """How many images of `split` are among the training images too: by their pixels, or by the bytes of a pack's files."""
    if isinstance(data.train.images, PackedImages) and isinstance(split.images, PackedImages):
        return _shared_in_pack(data.train.images, split.images)
    trained = set(_train_hashes(data))
    return sum(content in trained for content in _pixel_hashes(split))


def in_two_classes(data: ImageData) -> int:
    """How many training images in memory have the same pixels as one of another class; 0 for a pack, which is not decoded."""
    if isinstance(data.train.images, PackedImages):
        return 0
    labels: dict[str, set[int]] = defaultdict(set)
    contents = _train_hashes(data)
    for content, label in zip(contents, data.train.labels.tolist(), strict=True):
        labels[content].add(label)
    return sum(len(labels[content]) > 1 for content in contents)


def _train_hashes(data: ImageData) -> list[str]:
    """The hash of each training image, computed once for a data set: both the plan and the run need them."""
    if data.train not in _hashes:
        _hashes[data.train] = list(_pixel_hashes(data.train))
    return _hashes[data.train]


def _pixel_hashes(split: Split) -> Iterator[str]:
    for image in split.images.numpy():
        yield bytes_hash(np.ascontiguousarray(image).data.cast("B"))


def _shared_in_pack(train: PackedImages, other: PackedImages) -> int:
    """Compares the bytes of those images only whose checksums are equal: a pack may be larger than memory."""
    trained, rows = train.checksums(), other.checksums()
    alike = np.intersect1d(trained, rows)
    known = set(_contents(train, np.flatnonzero(np.isin(trained, alike))))
    return sum(content in known for content in _contents(other, np.flatnonzero(np.isin(rows, alike))))


def _contents(images: PackedImages, places: Iterable[int]) -> Iterator[str]:
    for place in places:
        content, _ = images.pack.encoded(images.split, int(images.rows[place]))
        yield bytes_hash(content)
