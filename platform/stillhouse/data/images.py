"""A data set: uint8 images in memory or in a pack, their splits, and their normalisation."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillhouse.data.decode import WHITE, Ground
from stillhouse.data.host_images import RESIDENT_SHARE, HostImages
from stillhouse.data.packs import Pack, PackedImages, PackFacts, open_pack
from stillhouse.device import free_memory, is_out_of_memory, memory_limit
from stillhouse.errors import UsageError

Arrays = tuple[NDArray[np.uint8], NDArray[Any]]
Images = Tensor | PackedImages | HostImages
"""uint8 [N, C, H, W]: a tensor, packed images, which are decoded when they are read, or images outside of a GPU's memory."""


_PREPARED = "prepared."
"""What the names of the arrays of `ImageData.prepared` begin with."""


@dataclass(frozen=True, eq=False)
class Split:
    """Images uint8 [N, C, H, W] and labels, on the CPU: int64 [N] for classes, float32 [N] or [N, K] for numbers.

    Attributes:
        name: `train`, `validation` or `test`; a part of a split has its name.
    """

    images: Tensor
    labels: Tensor
    name: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def of_pack(cls, images: PackedImages, labels: Tensor) -> "Split":
        """A split whose images are decoded when they are read; code that reads batches can use them like a tensor."""
        return cls(cast("Tensor", images), labels)


class ImageDataFacts(TypedDict):
    """What other processes need besides the arrays of an `ImageData`; plain JSON data."""

    name: str
    num_classes: int
    input_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    fingerprint: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pack: NotRequired[PackFacts]
    task: NotRequired[str]
    folder: NotRequired[str]


@dataclass(eq=False, kw_only=True)
class ImageData:
    """A data set with its three splits, of which the one for validation may be empty: then nothing is chosen.

    Attributes:
        num_classes: how many numbers a model returns for each sample; for classes, their number.
        input_shape: of one sample as the splits hold it, (channels, height, width) for images.
        class_names: empty if there are no classes.
        task: what models of this data set are trained to do, by name; None for the default task.
        folder: the name of the folder that the images are in, which tells two data sets of the same `name` apart; None for
            data sets that are always the same.
        fingerprint: hash of the training and validation splits' content; needs no test data.
        mean: of each channel over the training split, with pixels in [0, 1].
        std: likewise, the standard deviation.
        ground: the colour on which transparent images are laid.
        fit: how images of another ratio are resized: `crop` to the middle, `stretch`, or `letterbox`.
        sample: what one sample is called in messages.
        model_options: options that every model of this data set is built with, if it has them, such as the number of tokens.
        files: what a user of a trained model needs besides it, by file name, such as a tokenizer.
        preparation: how to prepare a sample with these files, as plain JSON data.
        notes: what a user should know of the data, as sentences; reading the test split may add some.
        prepared: what the task's metric needs of the data set (`Task.prepare`), by name; travels to every process.
        test_reads: how often the test split was loaded: 0 before its first use, 1 after.
    """

    name: str
    num_classes: int
    input_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    fingerprint: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: Split
    validation: Split
    read_test: Callable[[], Arrays | Split] = field(repr=False)
    task: str | None = None
    folder: str | None = None
    ground: Ground = WHITE
    fit: str = "crop"
    sample: str = "image"
    model_options: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict, repr=False)
    preparation: Mapping[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    prepared: dict[str, NDArray[Any]] = field(default_factory=dict, repr=False)
    test_reads: int = 0
    _test: Split | None = field(default=None, repr=False)
    _scales: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.train, self.validation = replace(self.train, name="train"), replace(self.validation, name="validation")

    @property
    def for_checks(self) -> Split:
        """Images for checks by which nothing is chosen: those for validation, or those for training if there are none."""
        return self.validation if len(self.validation) else self.train

    @property
    def test(self) -> Split:
        """The test split, loaded at its first use.

        Raises:
            UsageError: its files are missing or damaged.
        """
        if self._test is None:
            read = self.read_test()
            self._test = replace(read if isinstance(read, Split) else split_of(read), name="test")
            self.test_reads += 1
        return self._test

    def normalise(self, images: Tensor) -> Tensor:
        """float32 [B, C, H, W] with mean 0 and deviation 1 over the training split, from uint8.

        The result has the same bits on every device.
        """
        if images.device not in self._scales:
            # Tensors instead of Python numbers: a GPU kernel multiplies by the reciprocal of a number, which rounds differently
            # from the division.
            mean, std = (
                torch.tensor([255.0 * value for value in values], dtype=torch.float32, device=images.device).view(1, -1, 1, 1)
                for values in (self.mean, self.std)
            )
            self._scales[images.device] = mean, std
        mean, std = self._scales[images.device]
        return images.to(torch.float32).sub_(mean).div_(std)

    def to_arrays(self, *, test: bool = True) -> tuple[dict[str, NDArray[Any]], ImageDataFacts]:
        """The splits as arrays, without a copy, and the facts that `from_arrays` also needs.

        With `test`, the test split is loaded and included. Of a pack, only the row numbers are included, no images.
        """
        splits = {"train": self.train, "validation": self.validation, **({"test": self.test} if test else {})}
        arrays: dict[str, NDArray[Any]] = {}
        for name, split in splits.items():
            if isinstance(split.images, PackedImages):
                arrays[f"{name}_rows"] = split.images.rows
            else:
                arrays[f"{name}_images"] = split.images.numpy()
            arrays[f"{name}_labels"] = split.labels.numpy()
        arrays |= {f"{_PREPARED}{name}": array for name, array in self.prepared.items()}
        return arrays, self.facts()

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, NDArray[Any]], facts: ImageDataFacts, *, read_test: Callable[[], Arrays | Split] | None = None
    ) -> "ImageData":
        """The data set over arrays that may be read-only and shared with other processes; nothing is copied.

        `read_test` reads the test split's images and labels if `arrays` does not contain them.

        Raises:
            UsageError: this process cannot read the pack of the data set.
        """
        pack = _same_pack(facts["pack"]) if "pack" in facts else None

        def split(name: str) -> Split:
            if f"{name}_labels" not in arrays:
                raise UsageError(f"the test split of {facts['name']} was left out of these arrays; pass read_test")
            if pack is None:
                return split_of((arrays[f"{name}_images"], arrays[f"{name}_labels"]))
            images = PackedImages.of_facts(facts["pack"], pack, name, arrays[f"{name}_rows"])
            return Split.of_pack(images, _tensor_over(arrays[f"{name}_labels"]))

        return cls(
            name=facts["name"],
            num_classes=facts["num_classes"],
            input_shape=tuple(facts["input_shape"]),
            class_names=tuple(facts["class_names"]),
            fingerprint=facts["fingerprint"],
            mean=tuple(facts["mean"]),
            std=tuple(facts["std"]),
            train=split("train"),
            validation=split("validation"),
            read_test=read_test or (lambda: split("test")),
            task=facts.get("task"),
            folder=facts.get("folder"),
            prepared={name.removeprefix(_PREPARED): array for name, array in arrays.items() if name.startswith(_PREPARED)},
        )

    def facts(self) -> ImageDataFacts:
        facts = ImageDataFacts(
            name=self.name,
            num_classes=self.num_classes,
            input_shape=self.input_shape,
            class_names=self.class_names,
            fingerprint=self.fingerprint,
            mean=self.mean,
            std=self.std,
        )
        if self.task is not None:
            facts["task"] = self.task
        if self.folder is not None:
            facts["folder"] = self.folder
        if isinstance(self.train.images, PackedImages):
            facts["pack"] = self.train.images.facts()
        return facts


def split_of(arrays: tuple[NDArray[Any], NDArray[Any]]) -> Split:
    """A `Split` over the arrays' own memory."""
    images, labels = arrays
    return Split(_tensor_over(images), _tensor_over(labels))


def read_ahead(images: Images, batches: Iterable[Tensor]) -> AbstractContextManager[None]:
    """A context in which coming `batches` of indices are decoded or copied in the background, if the images are no tensor."""
    return nullcontext() if isinstance(images, Tensor) else images.ahead(batches)


def images_for(images: Images, device: str, *, resident: bool = True) -> Images:
    """The images for computation on `device`: a copy there, or in the machine's memory if they would take too much of it.

    A process may have a small share of a GPU, and each process has its own copy. If memory runs out all the same, the images
    stay in the machine's memory too.

    Args:
        resident: whether a copy on a GPU is allowed.
    """
    limit = memory_limit(device)
    if not isinstance(images, Tensor) or limit is None:
        return images.to(device)
    if resident and images.nbytes <= RESIDENT_SHARE * limit:
        try:
            return images.to(device)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # Not in the handler, where the error's frames may hold memory.
        free_memory()
    return HostImages(images, device)


def split_for(split: Split, device: str, *, resident: bool = True) -> Split:
    """The split for computation on `device`, as `images_for`."""
    return Split(cast("Tensor", images_for(split.images, device, resident=resident)), split.labels.to(device), split.name)


def channel_statistics(images: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, with pixels in [0, 1], from exact integer sums.

    A constant channel has the deviation 1/255, so that a division by it stays finite.
    """
    return statistics_of([channel_histograms(images)])


def channel_histograms(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How often each value occurs in each channel of [N, C, H, W], int64 [C, 256]."""
    histograms = np.zeros((images.shape[1], 256), np.int64)
    for channel, histogram in enumerate(histograms):
        for start in range(0, len(images), 1024):  # in parts, since bincount converts its input to 8 bytes per value
            histogram += np.bincount(images[start : start + 1024, channel].ravel(), minlength=256)
    return histograms


def statistics_of(histograms: Iterable[NDArray[np.int64]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The result of `channel_statistics`, from the `channel_histograms` of parts of the images."""
    means, deviations = [], []
    for histogram in np.sum(list(histograms), axis=0):
        total = int(histogram.sum())
        first = sum(value * int(count) for value, count in enumerate(histogram))
        second = sum(value * value * int(count) for value, count in enumerate(histogram))
        variance = (second * total - first * first) / (total * total)
        means.append(first / total / 255)
        deviations.append(max(variance**0.5, 1.0) / 255)
    return tuple(means), tuple(deviations)


def _same_pack(facts: PackFacts) -> Pack:
    pack = open_pack(Path(facts["root"]))
    if pack.key != facts["key"]:
        raise UsageError(
            f"the pack {facts['root']} is not the one with which the sweep began; put it on storage that all nodes share"
        )
    return pack


def _tensor_over(array: NDArray[Any]) -> Tensor:
    with warnings.catch_warnings():
        # Arrays from a shared object store are read-only, and nothing writes to a split.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)
        return torch.from_numpy(np.ascontiguousarray(array))
