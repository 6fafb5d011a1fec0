"""Finds a data set by name, splits it, and resizes its images to one size."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.data import sets
from stillhouse.data.catalogue import dataset_facts, dataset_names, dataset_problems
from stillhouse.data.decode import WHITE, parse_ground
from stillhouse.data.folders import ImageFolder
from stillhouse.data.hashing import array_hash
from stillhouse.data.images import Arrays, ImageData, Split, channel_statistics, split_of
from stillhouse.data.memory import check_memory
from stillhouse.data.packed_data import packed_data
from stillhouse.data.published import TORCHVISION, Published, Reader, digits, user_function
from stillhouse.data.shipped import DatasetFacts, Request
from stillhouse.data.splitting import Splitting, own_validation_note
from stillhouse.data.targets import CLASS_LABELS, TargetRule
from stillhouse.durable import content_hash
from stillhouse.errors import UsageError
from stillhouse.user_paths import resolve_path

__all__ = ["DatasetFacts", "ImageData", "Split", "dataset_facts", "dataset_names", "dataset_problems", "load_dataset"]


def load_dataset(
    name: str,
    *,
    root: str | Path | None = None,
    validation: float = 0.1,
    seed: int = 0,
    download: bool = False,
    size: int | None = None,
    options: Mapping[str, Any] | None = None,
    cache: str | Path | None = None,
    task: str | None = None,
    targets: TargetRule = CLASS_LABELS,
) -> ImageData:
    """Reads a data set's training images and splits off the validation images; the test split is read when it is used.

    Args:
        name: one of `dataset_names()`, or "module:function" for a user-defined one, see `user_function`.
        root: the folder with the data: torchvision's root, or that of an image folder.
        validation: how many training samples to split off, or their share; stratified, chosen by `seed`. With 0 the validation
            split is empty. Without effect for an image folder or pack with a validation split of its own.
        seed: determines only the validation split.
        download: whether torchvision may download missing files.
        size: height and width to resize to (antialiased, in integer arithmetic).
        options: `limit` and `limit_test` take so many samples of the published training (validation included) and test split,
            stratified, the same ones for every seed. `grey`, `ground` and `test_share` are options of `ImageFolder`. A
            user-defined function gets the others.
        cache: a folder for decoded image files.
        task: the name of what models are trained to do with the data; None for the default task.
        targets: what that task requires of the targets.

    Raises:
        UsageError: data is missing, damaged or too small, or an argument is wrong.
    """
    options = dict(options or {})
    if problems := dataset_problems(name, root=root, validation=validation, download=download, size=size, options=options):
        raise UsageError("\n".join(map(str, problems)))
    cache = None if cache is None else Path(cache)
    limits = options.pop("limit", None), options.pop("limit_test", None)
    options = _with_ground(name, options)
    folder = None if root is None else resolve_path(root, "dataset.root")
    where = name if folder is None else f"{name} in {folder}"
    splitting = Splitting(where, targets, validation, seed, limited=limits[0] is not None)
    if (own := sets.find(name)) is not None:
        assert folder is not None, "the catalogue requires a root"
        splitting = replace(splitting, sample=own.sample)
        with _readable(where):
            data = own.read(
                Request(root=folder, limits=limits, splitting=splitting, size=size, options=options, cache=cache, task=task)
            )
        data.sample = own.sample
    elif name == "pack":
        assert folder is not None, "a pack has a root"
        splitting = replace(splitting, where=f"the pack {folder}")
        with _readable(f"pack in {folder}"):
            data = packed_data(folder, limits, splitting, size=size, options=options, cache=cache, task=task)
    else:
        with _readable(where):
            published = _find(name, folder, download=download, size=size, options=options, cache=cache, targets=targets)
        data = _in_memory(name, published, limits, splitting, size, task)
    if ":" not in name and own is None:
        data.ground = options.get("ground", WHITE)
    if folder is not None and name not in TORCHVISION:
        data.folder = folder.name
    return data


def _in_memory(
    name: str,
    published: Published,
    limits: tuple[int | None, int | None],
    splitting: Splitting,
    size: int | None,
    task: str | None,
) -> ImageData:
    """The data set with its training and validation images in memory; the test split is read when it is used."""
    where = splitting.where

    def read(reader: Reader, limit: int | None) -> Arrays:
        with _readable(where):
            images, labels = reader(limit)
        return _resized(images, size, where), labels

    images, labels = read(published.train, limits[0])
    num_outputs, class_names = splitting.targets.outputs(labels, published.class_names, published.num_classes)
    labels = splitting.convert(labels, num_outputs, class_names)
    channels, height, width = input_shape = images.shape[1:]

    def read_split(split: str, reader: Reader, limit: int | None) -> Arrays:
        """The images of another split, which must be like those for training."""
        others, targets = read(reader, limit)
        if others.shape[1:] != input_shape:
            raise UsageError(f"{split} images of {where} are {_by(others)} and training images {_by(images)}; set dataset.size")
        return others, splitting.convert(targets, num_outputs, class_names, split=split)

    if published.validation is None:
        rest, taken = splitting.split(labels, class_names)
        train, validation = (images[rest], labels[rest]), (images[taken], labels[taken])
    else:
        splitting.check_training(labels, class_names)
        train, validation = (images, labels), read_split("validation", published.validation, limits[0])
        published.notes.append(own_validation_note(where))
    mean, std = channel_statistics(train[0])
    return ImageData(
        name=name,
        num_classes=num_outputs,
        input_shape=(channels, height, width),
        class_names=class_names,
        fingerprint=content_hash(
            {
                "num_classes": num_outputs,
                "input_shape": [channels, height, width],
                "arrays": [array_hash(array) for array in (*train, *validation)],
            }
        ),
        mean=mean,
        std=std,
        train=split_of(train),
        validation=split_of(validation),
        read_test=lambda: read_split("test", published.test, limits[1]),
        task=task,
        notes=published.notes,
    )


@contextmanager
def _readable(where: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"{where} cannot be read ({error}); repair it, or name another dataset.root") from error


def _find(
    name: str,
    root: Path | None,
    *,
    download: bool,
    size: int | None,
    options: Mapping[str, Any],
    cache: Path | None,
    targets: TargetRule,
) -> Published:
    if name == "digits":
        return digits()
    if root is not None and name in TORCHVISION:
        return TORCHVISION[name].find(name, root, download)
    if root is not None and name == "image_folder":
        return ImageFolder(root=root, size=size, cache=cache, **options).find()
    return user_function(name, root, options, targets)


def _with_ground(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with the ground as a colour; a user-defined function gets its own option of that name unchanged."""
    if ":" in name or "ground" not in options:
        return dict(options)
    return {**options, "ground": parse_ground(options["ground"])}


def _resized(images: NDArray[np.uint8], size: int | None, where: str) -> NDArray[np.uint8]:
    """[N, C, H, W] resized to `size` x `size`; images that are not square are cropped to the middle of their longer side."""
    if size is None or images.shape[2:] == (size, size):
        return images
    from PIL import Image, ImageOps

    shape = (*images.shape[:2], size, size)
    # Twice: the splits for training and for validation are copies of their rows.
    check_memory(shape, what=f"{where} with dataset.size {size}", copies=2)
    resized = np.empty(shape, np.uint8)
    for place in np.ndindex(*images.shape[:2]):
        image = Image.fromarray(np.ascontiguousarray(images[place]))
        resized[place] = np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR))
    return resized


def _by(images: NDArray[np.uint8]) -> str:
    return "x".join(str(length) for length in images.shape[1:])
