"""How a data set's training samples are divided into a training and a validation split."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.data.hashing import derive_key
from stillhouse.data.splits import stratified_split
from stillhouse.data.targets import TargetRule
from stillhouse.errors import UsageError


@dataclass(frozen=True)
class Splitting:
    """How the validation split is chosen.

    Attributes:
        where: the data set's name in messages.
        targets: what the task requires of the targets.
        validation: how many samples, or their share.
        seed: determines which ones.
        limited: whether only a part of the data set's samples is used.
        sample: what one sample is called in messages.
    """

    where: str
    targets: TargetRule
    validation: float
    seed: int
    limited: bool = False
    sample: str = "image"

    def convert(self, labels: NDArray[Any], num_classes: int, class_names: Sequence[str], *, split: str = "") -> NDArray[Any]:
        """The targets of one split in the task's type; `num_classes` and `class_names` are those that `outputs` gave."""
        where = f"{self.where}, {split} split," if split else self.where
        converted = self.targets.convert(labels, f"labels of {where}")
        self.targets.check(converted, num_classes, class_names, where)
        return converted

    def check_training(self, labels: NDArray[Any], class_names: Sequence[str]) -> None:
        """Checks all targets for training, before samples for validation are split off.

        Raises:
            UsageError: they are not those of the task's models, such as labels that begin at 1.
        """
        if not self.limited and (problem := self.targets.training_problem(labels)):
            raise UsageError(f"labels of {self.where} {problem}")
        if missing := self.targets.split_problem(labels, class_names):
            remedy = "raise dataset.options.limit" if self.limited else "add some, or correct the labels"
            raise UsageError(f"{missing} of {self.where} has no training {self.sample}; {remedy}")

    def split(self, labels: NDArray[Any], class_names: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows for training and those for validation, both ascending; none for validation if that is 0.

        Raises:
            UsageError: there are too few samples.
        """
        self.check_training(labels, class_names)
        if self.validation == 0:
            return np.arange(len(labels)), np.arange(0)
        share = isinstance(self.validation, float)
        wanted = round(self.validation * len(labels)) if share else int(self.validation)
        if not 1 <= wanted < len(labels):
            raise UsageError(
                f"dataset.validation requests {wanted} of the {len(labels)} training {self.sample}s of {self.where}; "
                f"it must be at least 1 and leave some for training"
            )
        rest, taken = stratified_split(self.targets.strata(labels), wanted, derive_key("validation", self.seed))
        if missing := self.targets.split_problem(labels[rest], class_names):
            raise UsageError(
                f"{missing} of {self.where} has no training {self.sample} besides the {wanted} for validation; "
                f"add some, or lower dataset.validation"
            )
        return rest, taken


def own_validation_note(where: str, samples: str = "images", place: str = "folder") -> str:
    """What the user of a data set with a validation split of its own should know."""
    return f"{where}: the validation {samples} are those of its own {place}; dataset.validation has no effect."
