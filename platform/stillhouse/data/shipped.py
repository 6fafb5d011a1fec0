"""The contract of a data set that has a file of its own in `data/sets/`: its name is the file's.

The catalogue asks it what is known before it is read and what is wrong with its options; `load_dataset` has it read.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from stillhouse.data.images import ImageData
from stillhouse.data.splitting import Splitting

Size = int | tuple[int, int]
"""Of images: one number for height and width, or both."""


@dataclass(frozen=True)
class DatasetFacts:
    """What is known of a data set before it is read; None where only its files can tell.

    Attributes:
        task: the task that the data set declares; None for the default task.
    """

    num_classes: int | None
    input_shape: tuple[int, ...] | None
    task: str | None = None


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `load_dataset` was asked for, after the checks of the catalogue.

    Attributes:
        root: the folder of the data set's files, which exists.
        limits: how many training (validation included) and how many test samples are used; None for all.
        size: height and width to resize to.
        options: those of the data set itself.
        cache: a folder for what is computed once from the files.
        task: the name of what models are trained to do; None for the default task.
    """

    root: Path
    limits: tuple[int | None, int | None]
    splitting: Splitting
    size: Size | None
    options: Mapping[str, Any]
    cache: Path | None
    task: str | None


class ShippedData(ABC):
    """A data set that comes with the platform. It has no state.

    Attributes:
        task: the name of the task that it declares; None for the default task.
        options: the keys that `dataset.options` may have besides `limit` and `limit_test`.
        sample: what one sample is called in messages, such as `image`.
        has_size: whether `dataset.size` has an effect.
        has_two_sizes: whether it may be `[height, width]`.
    """

    task: ClassVar[str | None] = None
    options: ClassVar[tuple[str, ...]] = ()
    sample: ClassVar[str] = "image"
    has_size: ClassVar[bool] = True
    has_two_sizes: ClassVar[bool] = False

    def facts(self, size: Size | None, options: Mapping[str, Any]) -> DatasetFacts:
        """What is known before the files are read."""
        return DatasetFacts(None, None, self.task)

    def broken_rule(self, option: str, value: Any) -> str | None:
        """The rule of an option that the value breaks, as in `must be a number > 0`; None if the value is good."""
        return None

    @abstractmethod
    def read(self, request: Request) -> ImageData:
        """The data set; its test split may be read when it is used.

        Raises:
            UsageError: files are missing, damaged or too few.
        """
