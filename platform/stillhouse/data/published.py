"""Data sets as they are published: training and test images as arrays, before the validation split.

A *reader* takes the number of samples wanted (None for all) and returns uint8 [N, C, H, W] and the targets, int64 [N] for
classes; fewer samples are the beginning of a fixed stratified order.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.data.hashing import derive_key
from stillhouse.data.images import Arrays
from stillhouse.data.splits import stratified_order, stratified_split
from stillhouse.data.targets import CLASS_LABELS, TargetRule
from stillhouse.errors import UsageError, describe_error, first_line
from stillhouse.user_code import check_origin, import_user_module, user_code

Reader = Callable[[int | None], Arrays]
_DIGITS_TEST_SIZE = 360


@dataclass(frozen=True, kw_only=True)
class Published:
    """A data set that was found and not read yet.

    Attributes:
        validation: of a data set with a validation split of its own; None where it is split off from the training images.
        notes: what a user should know of the data, as sentences; readers may add some.
    """

    num_classes: int
    class_names: tuple[str, ...]
    train: Reader
    test: Reader
    validation: Reader | None = None
    notes: list[str] = field(default_factory=list)


def limited(labels: NDArray[Any], limit: int | None) -> NDArray[np.int64]:
    """The indices of the first `limit` samples of the fixed stratified order, ascending."""
    if limit is None or limit >= len(labels):
        return np.arange(len(labels))
    return np.sort(stratified_order(labels, derive_key("limit"))[:limit])


def reader(read: Callable[[], Arrays], targets: TargetRule = CLASS_LABELS) -> Reader:
    """A `Reader` from a function that returns all samples at once."""

    def read_limited(limit: int | None) -> Arrays:
        images, labels = read()
        if limit is None or limit >= len(labels):
            return images, labels
        chosen = limited(targets.strata(labels), limit)
        return images[chosen], labels[chosen]

    return read_limited


def digits() -> Published:
    """scikit-learn's bundled handwritten digits, 8x8, with 360 of the 1797 as a fixed test split."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.floor(bunch.images * (255 / 16) + 0.5).astype(np.uint8)[:, None]
    labels = bunch.target.astype(np.int64)
    train, test = stratified_split(labels, _DIGITS_TEST_SIZE, derive_key("digits", "test"))
    return Published(
        num_classes=10,
        class_names=tuple(str(digit) for digit in range(10)),
        train=reader(lambda: (images[train], labels[train])),
        test=reader(lambda: (images[test], labels[test])),
    )


@dataclass(frozen=True, kw_only=True)
class TorchvisionSource:
    """How torchvision provides a data set.

    Attributes:
        folder: the folder of its files below the root.
        splits: the keyword arguments of the training and of the test split.
    """

    class_name: str
    folder: str
    num_classes: int
    splits: tuple[Mapping[str, Any], Mapping[str, Any]]

    def find(self, name: str, root: Path, download: bool) -> Published:
        train = self._open(name, root, self.splits[0], download)
        names = getattr(train, "classes", None) or range(self.num_classes)
        return Published(
            num_classes=self.num_classes,
            class_names=tuple(str(label) for label in names),
            train=reader(lambda: self._arrays(train)),
            test=reader(lambda: self._arrays(self._open(name, root, self.splits[1], download))),
        )

    def _open(self, name: str, root: Path, split: Mapping[str, Any], download: bool) -> Any:
        import torchvision

        try:
            return getattr(torchvision.datasets, self.class_name)(str(root), download=download, **split)
        except Exception as error:  # torchvision's classes raise different errors for a damaged file
            what = first_line(error).partition(". ")[0]
            raise UsageError(
                f"{name} cannot be read from {root / self.folder} ({what}); "
                f"name another dataset.root, or set dataset.download to true"
            ) from error

    def _arrays(self, data: Any) -> Arrays:
        labels = np.asarray(data.targets if hasattr(data, "targets") else data.labels, dtype=np.int64)
        return channels_first(np.asarray(data.data)), labels


_BY_TRAIN: tuple[Mapping[str, Any], Mapping[str, Any]] = ({"train": True}, {"train": False})
_BY_SPLIT: tuple[Mapping[str, Any], Mapping[str, Any]] = ({"split": "train"}, {"split": "test"})

TORCHVISION = {
    "mnist": TorchvisionSource(class_name="MNIST", folder="MNIST/raw", num_classes=10, splits=_BY_TRAIN),
    "fashion_mnist": TorchvisionSource(class_name="FashionMNIST", folder="FashionMNIST/raw", num_classes=10, splits=_BY_TRAIN),
    "cifar10": TorchvisionSource(class_name="CIFAR10", folder="cifar-10-batches-py", num_classes=10, splits=_BY_TRAIN),
    "cifar100": TorchvisionSource(class_name="CIFAR100", folder="cifar-100-python", num_classes=100, splits=_BY_TRAIN),
    "svhn": TorchvisionSource(class_name="SVHN", folder="", num_classes=10, splits=_BY_SPLIT),
    "stl10": TorchvisionSource(class_name="STL10", folder="stl10_binary", num_classes=10, splits=_BY_SPLIT),
}


def declared_task(path: str) -> str | None:
    """The task that a user-defined data set declares: the attribute `task` of the function that `path` names.

    None if there is none, or if the function cannot be imported, which is reported when the data set is read.
    """
    try:
        with _user_code(path):
            task = getattr(_import(path), "task", None)
            return None if task is None else str(task)
    except UsageError:
        return None


def user_function(path: str, root: Path | None, options: Mapping[str, Any], targets: TargetRule = CLASS_LABELS) -> Published:
    """A user-defined data set: `path` is "module:function".

    The function is called with `options`, and with `root` if one is given, and returns
    `((train_images, train_labels), (test_images, test_labels))`, where the second pair may be a function that returns it; or
    it returns a mapping with the keys `train` and `test` and, optionally, `class_names` and `num_classes`.
    Images are uint8 [N, H, W], [N, C, H, W] or [N, H, W, C]; labels are what `targets` accepts, whole numbers from 0 for
    classes.

    Raises:
        UsageError: it cannot be imported, it raises an error, or it returns something else.
    """
    function = _import(path)
    with _user_code(path):
        given = function(**options, **({} if root is None else {"root": root}))
        facts, train, test = _parts(path, given)
        names = tuple(str(name) for name in facts.get("class_names") or ())
    given_classes = facts.get("num_classes")
    if not isinstance(given_classes, int | None) or isinstance(given_classes, bool):
        raise UsageError(f"num_classes of {path} must be a whole number, got {given_classes!r}")
    arrays = _checked(path, "train", train, targets)
    num_classes, class_names = targets.outputs(arrays[1], names, given_classes)

    def read_test() -> Arrays:
        with _user_code(path):
            given = test() if callable(test) else test
        return _checked(path, "test", given, targets)

    return Published(
        num_classes=num_classes,
        class_names=class_names,
        train=reader(lambda: arrays, targets),
        test=reader(read_test, targets),
    )


def _parts(path: str, given: Any) -> tuple[Mapping[str, Any], Any, Any]:
    """What a user's function returned: the mapping, empty if it is a pair, and its parts for training and for testing."""
    if isinstance(given, Mapping):
        missing = [key for key in ("train", "test") if key not in given]
        unknown = [str(key) for key in given if key not in ("train", "test", "class_names", "num_classes")]
        if missing or unknown:
            raise UsageError(
                f"data set function {path} must return the keys train and test, and may return class_names and num_classes; "
                f"it returned {', '.join(map(str, given)) or 'none'}"
            )
        return given, given["train"], given["test"]
    if isinstance(given, Sequence) and len(given) == 2:
        return {}, given[0], given[1]
    raise UsageError(f"data set function {path} must return (train, test) or a mapping, it returned {type(given).__name__}")


@contextmanager
def _user_code(path: str) -> Iterator[None]:
    """A context in which code of the data set `path` runs; whatever it raises becomes an error with one sentence."""
    try:
        with user_code():
            yield
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"data set function {path} raised {describe_error(error)}") from error


def channels_first(images: NDArray[Any]) -> NDArray[Any]:
    """[N, H, W], [N, C, H, W] or [N, H, W, C] as [N, C, H, W]; C is 1 to 4; the second axis is taken if both could be C."""
    if images.ndim == 3:
        return images[:, None]
    if images.ndim != 4 or not (1 <= images.shape[1] <= 4 or 1 <= images.shape[3] <= 4):
        raise ValueError(
            f"images must be [N, H, W], [N, C, H, W] or [N, H, W, C] with 1 to 4 channels, got {list(images.shape)}"
        )
    return images if 1 <= images.shape[1] <= 4 else images.transpose(0, 3, 1, 2)


def _checked(path: str, split: str, given: Any, targets: TargetRule) -> Arrays:
    if not isinstance(given, Sequence) or len(given) != 2:
        raise UsageError(
            f"data set function {path} must return (images, labels) for {split}, it returned {type(given).__name__}"
        )
    # Lists of different lengths are no array, and an array type of a library may raise when it is converted.
    with _user_code(path):
        images, labels = np.asarray(given[0]), np.asarray(given[1])
    if images.dtype != np.uint8:
        raise UsageError(f"{split} images of {path} must be uint8 in 0..255, got {images.dtype}; scale and round them")
    labels = targets.convert(labels, f"{split} labels of {path}")
    if len(images) != len(labels):
        raise UsageError(
            f"{path} returned {len(images)} {split} images and {len(labels)} labels; there must be one label for each"
        )
    try:
        return channels_first(images), labels
    except ValueError as error:
        raise UsageError(f"{split} {error}, from {path}") from error


def _import(path: str) -> Callable[..., Any]:
    module, _, attribute = path.partition(":")
    imported = import_user_module(module, f"data set {path}")
    with _user_code(path):
        found = getattr(imported, attribute, None)
    if found is None:
        raise UsageError(f"module {module} has no function '{attribute}'; define it, or correct dataset.name")
    if not callable(found):
        raise UsageError(f"data set {path} must be a function, it is {type(found).__name__}")
    check_origin(found, f"data set {path}")
    function: Callable[..., Any] = found
    return function
