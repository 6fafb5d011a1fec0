"""Finds a data set by name, splits it, and resizes its images to one size."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stillhouse.data.decode import decoder_identity
from stillhouse.data.folders import ImageFolder
from stillhouse.data.hashing import derive_key
from stillhouse.data.images import (
    Arrays,
    ImageData,
    Split,
    channel_histograms,
    channel_statistics,
    read_ahead,
    split_of,
    statistics_of,
)
from stillhouse.data.packs import Pack, PackedImages
from stillhouse.data.published import TORCHVISION, Published, declared_task, digits, limited, user_function
from stillhouse.data.splits import stratified_split
from stillhouse.data.targets import CLASS_LABELS, TargetRule
from stillhouse.durable import bytes_hash, canonical_json, content_hash, read_checked, write_checked
from stillhouse.errors import Problem, UnknownNameError, UsageError, did_you_mean, suggestion

__all__ = ["DatasetFacts", "ImageData", "Split", "dataset_facts", "dataset_names", "dataset_problems", "load_dataset"]

_LIMITS = ("limit", "limit_test")


@dataclass(frozen=True)
class DatasetFacts:
    """What is known of a data set before it is read; None where only its files can tell.

    Attributes:
        task: the task that the data set declares; None for the default task.
    """

    num_classes: int | None
    input_shape: tuple[int, int, int] | None
    task: str | None = None


_FACTS = {
    "digits": DatasetFacts(10, (1, 8, 8)),
    "mnist": DatasetFacts(10, (1, 28, 28)),
    "fashion_mnist": DatasetFacts(10, (1, 28, 28)),
    "cifar10": DatasetFacts(10, (3, 32, 32)),
    "cifar100": DatasetFacts(100, (3, 32, 32)),
    "svhn": DatasetFacts(10, (3, 32, 32)),
    "stl10": DatasetFacts(10, (3, 96, 96)),
    "image_folder": DatasetFacts(None, None),
    "pack": DatasetFacts(None, None),
}
_OPTIONS: dict[str, tuple[str, ...]] = {"image_folder": (*_LIMITS, "grey", "test_share"), "pack": (*_LIMITS, "grey")}
# The error of a mean over n images is about a standard deviation / sqrt(n): 1 % of one with this many decoded images.
_IMAGES_FOR_STATISTICS = 10_000
_DECODED_AT_ONCE = 256


def dataset_names() -> list[str]:
    """The names of the shipped data sets; any "module:function" names a user-defined one."""
    return list(_FACTS)


def dataset_facts(name: str, *, size: int | None = None, options: Mapping[str, Any] | None = None) -> DatasetFacts:
    """What is known of data set `name` without reading it, after resizing to `size`.

    Raises:
        UsageError: there is no data set of that name.
    """
    if ":" in name:
        return DatasetFacts(None, None, declared_task(name))
    if name not in _FACTS:
        raise _unknown(name)
    facts = _FACTS[name]
    if size is None:
        return facts
    if name in ("image_folder", "pack"):
        return DatasetFacts(None, (1 if (options or {}).get("grey") else 3, size, size))
    return DatasetFacts(facts.num_classes, (facts.input_shape[0], size, size) if facts.input_shape else None)


def dataset_problems(
    name: str,
    *,
    root: str | Path | None = None,
    validation: float = 0.1,
    download: bool = False,
    size: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[Problem]:
    """What is wrong with the arguments of `load_dataset`, without reading any data; keys begin with `dataset`."""
    problems: list[Problem] = []
    known = name in _FACTS
    if not known and ":" not in name:
        problems.append(Problem.caused_by(_unknown(name), "dataset.name"))
    if known and name != "digits":
        if root is None:
            problems.append(Problem("dataset.root", f"must name the folder that holds {name}", "none"))
        elif not download and not Path(root).expanduser().is_dir():
            remedy = f"name the folder that holds {name}"
            problems.append(Problem("dataset.root", "must be a folder that exists", str(root), remedy))
    fraction = isinstance(validation, float)
    if isinstance(validation, bool) or not (0 < validation < 1 if fraction else validation >= 1):
        problems.append(Problem("dataset.validation", "must be a count >= 1 or a share in (0, 1)", repr(validation)))
    if size is not None and not _is_count(size):
        problems.append(Problem("dataset.size", "must be a whole number of pixels >= 1", repr(size)))
    return [*problems, *_option_problems(name, options or {})]


def _option_problems(name: str, options: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong with a data set's options. A user-defined function checks its options itself, except for the limits."""
    known = name in _FACTS
    for option, value in options.items():
        key = f"dataset.options.{option}"
        if option in _LIMITS:
            if not _is_count(value):
                yield Problem(key, "must be a whole number >= 1", repr(value))
        elif known and option not in _OPTIONS.get(name, _LIMITS):
            yield Problem(key, f"is not an option of {name}", remedy=suggestion(option, _OPTIONS.get(name, _LIMITS)))
        elif known and option == "grey" and not isinstance(value, bool):
            yield Problem(key, "must be true or false", repr(value))
        elif known and option == "test_share" and not (isinstance(value, float) and 0 < value < 1):
            yield Problem(key, "must be in (0, 1)", repr(value))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _unknown(name: str) -> UnknownNameError:
    return UnknownNameError(f"no data set '{name}'{did_you_mean(name, _FACTS)}; or module:function for a user-defined one")


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
        validation: how many training samples to split off, or their share; stratified, chosen by `seed`.
        seed: determines only the validation split.
        download: whether torchvision may download missing files.
        size: height and width to resize to (antialiased, in integer arithmetic).
        options: `limit` and `limit_test` take so many samples of the published training (validation included) and test split,
            stratified, the same ones for every seed. `grey` and `test_share` are options of `ImageFolder`. A user-defined
            function gets the others.
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
    limit, limit_test = options.pop("limit", None), options.pop("limit_test", None)
    folder = None if root is None else Path(root).expanduser().resolve()
    where = name if folder is None else f"{name} in {folder}"
    splitting = _Splitting(where, targets, validation, seed)
    if name == "pack":
        assert folder is not None, "a pack has a root"
        splitting = replace(splitting, where=f"the pack {folder}")
        with _readable(f"pack in {folder}"):
            data = _packed(folder, (limit, limit_test), splitting, size, bool(options.get("grey")), cache)
    else:
        with _readable(where):
            published = _find(name, folder, download=download, size=size, options=options, cache=cache, targets=targets)
            arrays = published.train(limit)
        data = _in_memory(name, published, arrays, limit_test, splitting, size)
    data.task = task
    if folder is not None and name not in TORCHVISION:
        data.folder = folder.name
    return data


@dataclass(frozen=True)
class _Splitting:
    """How the validation split is chosen.

    Attributes:
        where: the data set's name in messages.
        validation: how many samples, or their share.
        seed: determines which ones.
    """

    where: str
    targets: TargetRule
    validation: float
    seed: int

    def convert(self, labels: NDArray[Any], num_classes: int, class_names: Sequence[str], *, split: str = "") -> NDArray[Any]:
        """The targets of one split in the task's type; `num_classes` and `class_names` are those that `outputs` gave."""
        where = f"{self.where}, {split} split," if split else self.where
        converted = self.targets.convert(labels, f"labels of {where}")
        self.targets.check(converted, num_classes, class_names, where)
        return converted

    def split(self, labels: NDArray[Any], class_names: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows for training and those for validation, both ascending.

        Raises:
            UsageError: there are too few samples.
        """
        share = isinstance(self.validation, float)
        wanted = round(self.validation * len(labels)) if share else int(self.validation)
        if not 1 <= wanted < len(labels):
            raise UsageError(
                f"dataset.validation requests {wanted} of the {len(labels)} training images of {self.where}; "
                f"it must be at least 1 and leave some for training"
            )
        rest, taken = stratified_split(self.targets.strata(labels), wanted, derive_key("validation", self.seed))
        if missing := self.targets.split_problem(labels[rest], class_names):
            raise UsageError(
                f"{missing} of {self.where} has no training image besides the {wanted} for validation; "
                f"add some, or lower dataset.validation"
            )
        return rest, taken


def _in_memory(
    name: str, published: Published, arrays: Arrays, limit_test: int | None, splitting: _Splitting, size: int | None
) -> ImageData:
    """The data set with its training images in memory; `arrays` are the published training split."""
    images, labels = arrays
    targets, where = splitting.targets, splitting.where
    num_outputs, class_names = targets.outputs(labels, published.class_names, published.num_classes)
    labels = splitting.convert(labels, num_outputs, class_names)
    images = _resized(images, size)
    rest, taken = splitting.split(labels, class_names)
    train_images, train_labels = images[rest], labels[rest]
    validation_images, validation_labels = images[taken], labels[taken]
    channels, height, width = input_shape = train_images.shape[1:]

    def read_test() -> Arrays:
        with _readable(where):
            images, labels = published.test(limit_test)
        images = _resized(images, size)
        if images.shape[1:] != input_shape:
            raise UsageError(
                f"test images of {where} are {_by(images)} and training images {_by(train_images)}; set dataset.size"
            )
        return images, splitting.convert(labels, num_outputs, class_names, split="test")

    mean, std = channel_statistics(train_images)
    return ImageData(
        name=name,
        num_classes=num_outputs,
        input_shape=(channels, height, width),
        class_names=class_names,
        fingerprint=content_hash(
            {
                "num_classes": num_outputs,
                "input_shape": [channels, height, width],
                "arrays": [_hash(array) for array in (train_images, train_labels, validation_images, validation_labels)],
            }
        ),
        mean=mean,
        std=std,
        train=split_of((train_images, train_labels)),
        validation=split_of((validation_images, validation_labels)),
        read_test=read_test,
    )


def _packed(
    root: Path,
    limits: tuple[int | None, int | None],
    splitting: _Splitting,
    size: int | None,
    grey: bool,
    cache: Path | None,
) -> ImageData:
    """The data set in the pack at `root`: its labels are read now, its images when they are used."""
    pack = Pack(root)
    targets = splitting.targets
    rows, labels = _rows(pack, "train", limits[0])
    num_outputs, class_names = targets.outputs(labels, pack.class_names, len(pack.class_names))
    labels = splitting.convert(labels, num_outputs, class_names)
    rest, taken = splitting.split(labels, class_names)

    def split(name: str, chosen: NDArray[np.int64], labels: NDArray[Any]) -> Split:
        return Split.of_pack(PackedImages(pack, name, chosen, size=size, grey=grey), torch.from_numpy(labels))

    def read_test() -> Split:
        rows, labels = _rows(pack, "test", limits[1])
        return split("test", rows, splitting.convert(labels, num_outputs, class_names, split="test"))

    train = split("train", rows[rest], labels[rest])
    channels, height, width = train.images.shape[1:]
    fingerprint = content_hash(
        {
            "pack": pack.key,
            "decoder": decoder_identity(),
            "input_shape": [channels, height, width],
            "rows": [_hash(rows[rest]), _hash(rows[taken])],
        }
    )
    mean, std = _packed_statistics(train, targets.strata(labels[rest]), fingerprint, cache)
    return ImageData(
        name="pack",
        num_classes=num_outputs,
        input_shape=(channels, height, width),
        class_names=class_names,
        fingerprint=fingerprint,
        mean=mean,
        std=std,
        train=train,
        validation=split("train", rows[taken], labels[taken]),
        read_test=read_test,
    )


def _rows(pack: Pack, split: str, limit: int | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows of a pack's split that are used, and their labels."""
    labels = pack.labels(split)
    rows = limited(labels, limit)
    return rows, labels[rows]


def _packed_statistics(
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


def _resized(images: NDArray[np.uint8], size: int | None) -> NDArray[np.uint8]:
    """[N, C, H, W] resized to `size` x `size`; images that are not square are cropped to the middle of their longer side."""
    if size is None or images.shape[2:] == (size, size):
        return images
    from PIL import Image, ImageOps

    resized = np.empty((*images.shape[:2], size, size), np.uint8)
    for place in np.ndindex(*images.shape[:2]):
        image = Image.fromarray(np.ascontiguousarray(images[place]))
        resized[place] = np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR))
    return resized


def _by(images: NDArray[np.uint8]) -> str:
    return "x".join(str(length) for length in images.shape[1:])


def _hash(array: NDArray[Any]) -> str:
    return bytes_hash(np.ascontiguousarray(array).data.cast("B"))
