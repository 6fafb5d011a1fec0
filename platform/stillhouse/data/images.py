"""A data set in memory: uint8 images, their splits, and how pixels become the network's input."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillhouse.errors import UsageError

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]


@dataclass(frozen=True, eq=False)
class Split:
    """Images uint8 [N, C, H, W] and labels int64 [N], on the CPU."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


class ImageDataFacts(TypedDict):
    """What travels beside the arrays of an `ImageData`; plain JSON data."""

    name: str
    num_classes: int
    input_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    fingerprint: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(eq=False, kw_only=True)
class ImageData:
    """A data set with its three splits.

    Attributes:
        fingerprint: hash of the training and validation splits' content; needs no test data.
        mean: of the training split, per channel, in pixel units of [0, 1].
        std: likewise.
        test_reads: how often the test split was loaded: 0 before its first use, 1 after.
    """

    name: str
    num_classes: int
    input_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    fingerprint: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: Split
    validation: Split
    read_test: Callable[[], Arrays] = field(repr=False)
    test_reads: int = 0
    _test: Split | None = field(default=None, repr=False)
    _scales: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    @property
    def test(self) -> Split:
        """The test split, loaded when it is first asked for.

        Raises:
            UsageError: its files are missing or damaged.
        """
        if self._test is None:
            self._test = split_of(self.read_test())
            self.test_reads += 1
        return self._test

    def normalise(self, images: Tensor) -> Tensor:
        """float32 [B, C, H, W] with mean 0 and deviation 1 over the training split, from uint8.

        The same bits on every device.
        """
        if images.device not in self._scales:
            # Tensors on the device, not Python numbers: a GPU kernel multiplies by the reciprocal of a number, which rounds
            # differently from the division.
            mean, std = (
                torch.tensor([255.0 * value for value in values], dtype=torch.float32, device=images.device).view(1, -1, 1, 1)
                for values in (self.mean, self.std)
            )
            self._scales[images.device] = mean, std
        mean, std = self._scales[images.device]
        return images.to(torch.float32).sub_(mean).div_(std)

    def to_arrays(self, *, test: bool = True) -> tuple[dict[str, NDArray[Any]], ImageDataFacts]:
        """The splits as arrays without a copy, and the facts that `from_arrays` needs beside them.

        With `test` the test split comes along, which loads it.
        """
        splits = {"train": self.train, "validation": self.validation, **({"test": self.test} if test else {})}
        arrays: dict[str, NDArray[Any]] = {}
        for name, split in splits.items():
            arrays[f"{name}_images"] = split.images.numpy()
            arrays[f"{name}_labels"] = split.labels.numpy()
        return arrays, self.facts()

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, NDArray[Any]], facts: ImageDataFacts, *, read_test: Callable[[], Arrays] | None = None
    ) -> "ImageData":
        """The data set over arrays that may be read-only and shared with other processes; nothing is copied.

        `read_test` gives the test split's images and labels where `arrays` does not hold them.
        """

        def held() -> Arrays:
            if "test_images" not in arrays:
                raise UsageError(f"the test split of {facts['name']} was left out of these arrays; pass read_test")
            return arrays["test_images"], arrays["test_labels"]

        channels, height, width = facts["input_shape"]
        return cls(
            name=facts["name"],
            num_classes=facts["num_classes"],
            input_shape=(channels, height, width),
            class_names=tuple(facts["class_names"]),
            fingerprint=facts["fingerprint"],
            mean=tuple(facts["mean"]),
            std=tuple(facts["std"]),
            train=split_of((arrays["train_images"], arrays["train_labels"])),
            validation=split_of((arrays["validation_images"], arrays["validation_labels"])),
            read_test=read_test or held,
        )

    def facts(self) -> ImageDataFacts:
        return ImageDataFacts(
            name=self.name,
            num_classes=self.num_classes,
            input_shape=self.input_shape,
            class_names=self.class_names,
            fingerprint=self.fingerprint,
            mean=self.mean,
            std=self.std,
        )


def split_of(arrays: Arrays) -> Split:
    """A `Split` over the arrays' own memory."""
    images, labels = arrays
    return Split(_tensor_over(images), _tensor_over(labels))


def channel_statistics(images: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel in pixel units of [0, 1], from exact integer sums.

    The deviation of a constant channel is given as 1/255, so that dividing by it stays finite.
    """
    means, deviations = [], []
    for channel in range(images.shape[1]):
        histogram = np.zeros(256, np.int64)
        for start in range(0, len(images), 1024):  # in parts, since bincount makes its input 8 times as large
            histogram += np.bincount(images[start : start + 1024, channel].ravel(), minlength=256)
        total = int(histogram.sum())
        first = sum(value * int(count) for value, count in enumerate(histogram))
        second = sum(value * value * int(count) for value, count in enumerate(histogram))
        variance = (second * total - first * first) / (total * total)
        means.append(first / total / 255)
        deviations.append(max(variance**0.5, 1.0) / 255)
    return tuple(means), tuple(deviations)


def _tensor_over(array: NDArray[Any]) -> Tensor:
    with warnings.catch_warnings():
        # Arrays out of a shared object store are read-only, and nothing here writes to a split.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)
        return torch.from_numpy(np.ascontiguousarray(array))
