"""The data set in a pack: its labels are read when it is opened, its images when they are used."""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stillhouse.data.decode import WHITE, Ground, decoder_identity
from stillhouse.data.hashing import array_hash
from stillhouse.data.images import ImageData, Split, channel_histograms, read_ahead, statistics_of
from stillhouse.data.listing import TEST, TRAIN, VALIDATION
from stillhouse.data.memory import check_memory
from stillhouse.data.packs import Pack, PackedImages, PackTraits
from stillhouse.data.published import limited
from stillhouse.data.splitting import Splitting, own_validation_note
from stillhouse.durable import canonical_json, content_hash, read_checked, write_checked
from stillhouse.errors import UsageError

# The error of a mean over n images is about a standard deviation / sqrt(n): 1 % of one with this many decoded images.
_IMAGES_FOR_STATISTICS = 10_000
_DECODED_AT_ONCE = 256


def packed_data(
    root: Path,
    limits: tuple[int | None, int | None],
    splitting: Splitting,
    *,
    size: int | None,
    options: Mapping[str, Any],
    cache: Path | None,
    task: str | None,
) -> ImageData:
    """The data set in the pack at `root`: its labels are read now, its images when they are used.

    Args:
        limits: how many training and how many test images are used; None for all.
        options: `grey` and `ground`, a colour.
        cache: a folder for what is computed from all images once.

    Raises:
        UsageError: the pack is missing or damaged, or does not suit the arguments.
    """
    pack = Pack(root)
    grey, ground = bool(options.get("grey")), options.get("ground", WHITE)
    traits = _traits(pack, cache)
    if size is None and traits.rotated and pack.traits is None:
        raise UsageError(f"the pack {root} has rotated images; set dataset.size, or pack its folder again")
    rows, labels = _rows(pack, TRAIN, limits[0])
    num_outputs, class_names = splitting.targets.outputs(labels, pack.class_names, len(pack.class_names))
    labels = splitting.convert(labels, num_outputs, class_names)

    def split(name: str, chosen: NDArray[np.int64], labels: NDArray[Any]) -> Split:
        images = PackedImages(pack, name, chosen, size=size, grey=grey, ground=ground)
        return Split.of_pack(images, torch.from_numpy(labels))

    def own_split(name: str, limit: int | None) -> Split:
        rows, labels = _rows(pack, name, limit)
        return split(name, rows, splitting.convert(labels, num_outputs, class_names, split=name))

    if pack.has_validation:
        splitting.check_training(labels, class_names)
        train, validation = split(TRAIN, rows, labels), own_split(VALIDATION, limits[0])
    else:
        rest, taken = splitting.split(labels, class_names)
        train, validation = split(TRAIN, rows[rest], labels[rest]), split(TRAIN, rows[taken], labels[taken])
    channels, height, width = train.images.shape[1:]
    check_memory((_DECODED_AT_ONCE, channels, height, width), what=f"the batches that are decoded at once from {root}")
    fingerprint = content_hash(
        {
            "pack": pack.key,
            "decoder": decoder_identity() | traits.decoding(ground),
            "input_shape": [channels, height, width],
            "rows": [array_hash(_rows_of(train)), array_hash(_rows_of(validation))],
        }
    )
    mean, std = _statistics(train, splitting.targets.strata(train.labels.numpy()), fingerprint, cache)
    return ImageData(
        name="pack",
        num_classes=num_outputs,
        input_shape=(channels, height, width),
        class_names=class_names,
        fingerprint=fingerprint,
        mean=mean,
        std=std,
        train=train,
        validation=validation,
        read_test=lambda: own_split(TEST, limits[1]),
        task=task,
        notes=[*_notes(root, traits, ground), *([own_validation_note(str(root))] if pack.has_validation else [])],
    )


def _notes(root: Path, traits: PackTraits, ground: Ground) -> Iterator[str]:
    if traits.transparent:
        yield (
            f"{root}: {traits.transparent} images have transparent parts, shown on the ground {list(ground)}. "
            f"If they hold something of that colour, set dataset.options.ground."
        )


def _rows_of(split: Split) -> NDArray[np.int64]:
    assert isinstance(split.images, PackedImages), "the images of a pack are decoded when they are read"
    return split.images.rows


def _traits(pack: Pack, cache: Path | None) -> PackTraits:
    """The traits of a pack's images: from its manifest, or computed once where an earlier release packed it."""
    if pack.traits is not None:
        return pack.traits
    cached = None if cache is None else cache / f"{pack.key}.traits"
    if cached is not None:
        with suppress(OSError, ValueError, TypeError):
            return PackTraits(**json.loads(read_checked(cached)))
    traits = pack.scan()
    if cached is not None:
        with suppress(OSError):
            write_checked(cached, canonical_json(vars(traits)).encode())
    return traits


def _rows(pack: Pack, split: str, limit: int | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows of a pack's split that are used, and their labels."""
    labels = pack.labels(split)
    rows = limited(labels, limit)
    return rows, labels[rows]


def _statistics(
    train: Split, strata: NDArray[np.int64], fingerprint: str, cache: Path | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel over the training split, or over 10,000 images of it; stored in `cache`."""
    cached = None if cache is None else cache / f"{fingerprint}.statistics"
    if cached is not None:
        with suppress(OSError, ValueError):
            mean, std = json.loads(read_checked(cached))
            return tuple(mean), tuple(std)
    chosen = torch.from_numpy(limited(strata, _IMAGES_FOR_STATISTICS))
    batches = torch.split(chosen, _DECODED_AT_ONCE)
    with read_ahead(train.images, batches):
        statistics = statistics_of(channel_histograms(train.images.index_select(0, batch).numpy()) for batch in batches)
    if cached is not None:
        with suppress(OSError):
            write_checked(cached, canonical_json(statistics).encode())
    return statistics
