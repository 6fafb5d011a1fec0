"""The targets of a data set: which arrays a task accepts, what they imply for its models, how samples are stratified."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.errors import UsageError


class TargetRule(ABC):
    """Which targets a task accepts. N samples, K numbers for each.

    A rule has no state, so that it can be sent to every process.
    """

    @abstractmethod
    def convert(self, given: NDArray[Any], where: str) -> NDArray[Any]:
        """The targets of one split, [N] or [N, K], in the type in which they are stored and trained on.

        Args:
            given: the data set's targets.
            where: the split's name in messages.

        Raises:
            UsageError: their type, shape or values do not suit the task.
        """

    @abstractmethod
    def outputs(
        self, targets: NDArray[Any], class_names: Sequence[str] | None = None, num_classes: int | None = None
    ) -> tuple[int, tuple[str, ...]]:
        """How many numbers a model returns for each sample, and the names of the classes, empty if there are none.

        Args:
            targets: of the training split, from `convert`.
            class_names: from the data set; None if it names none.
            num_classes: likewise.
        """

    @abstractmethod
    def check(self, targets: NDArray[Any], num_outputs: int, class_names: Sequence[str], where: str) -> None:
        """Checks the targets of one split against the result of `outputs`.

        Raises:
            UsageError: the split is empty, or a target is not among those that a model can return.
        """

    @abstractmethod
    def strata(self, targets: NDArray[Any]) -> NDArray[np.int64]:
        """The group of each sample, [N]. Splits and limits take the same share of every group."""

    def foreseen_outputs(self, num_classes: int | None) -> int | None:
        """The first result of `outputs` for a data set with this many classes; None if it depends on the targets."""
        return None

    def training_problem(self, targets: NDArray[Any]) -> str | None:
        """What is wrong with all targets for training, as words that follow "labels of ..."; None if nothing is wrong."""
        return None

    def split_problem(self, rest: NDArray[Any], class_names: Sequence[str]) -> str | None:
        """What is missing from the training targets, also after the validation split; None if nothing is missing."""
        return None


@dataclass(frozen=True)
class ClassLabels(TargetRule):
    """One class for each sample: whole numbers from 0, stored as int64 [N]."""

    def convert(self, given: NDArray[Any], where: str) -> NDArray[Any]:
        if given.ndim != 1 or not np.issubdtype(given.dtype, np.integer):
            raise UsageError(f"{where} must be whole numbers [N], got {given.dtype} {list(given.shape)}")
        return given.astype(np.int64, copy=False)

    def outputs(
        self, targets: NDArray[Any], class_names: Sequence[str] | None = None, num_classes: int | None = None
    ) -> tuple[int, tuple[str, ...]]:
        names = tuple(class_names or ())
        count = num_classes if num_classes is not None else len(names) or int(targets.max(initial=0)) + 1
        return count, names or tuple(str(place) for place in range(count))

    def check(self, targets: NDArray[Any], num_outputs: int, class_names: Sequence[str], where: str) -> None:
        if num_outputs < 2:
            raise UsageError(f"{where} must have at least two classes, it has {num_outputs}")
        if len(class_names) != num_outputs:
            raise UsageError(f"{where} has {num_outputs} classes and {len(class_names)} names for them")
        _check_not_empty(targets, where)
        if targets.min() < 0 or targets.max() >= num_outputs:
            wrong = int(targets.min() if targets.min() < 0 else targets.max())
            begins_at_1 = targets.min() == 1 and targets.max() == num_outputs
            remedy = "they begin at 1, so subtract 1" if begins_at_1 else "correct the labels"
            raise UsageError(f"labels of {where} must be in 0..{num_outputs - 1}, got {wrong}; {remedy}")

    def strata(self, targets: NDArray[Any]) -> NDArray[np.int64]:
        """The classes."""
        return targets

    def foreseen_outputs(self, num_classes: int | None) -> int | None:
        return num_classes

    def training_problem(self, targets: NDArray[Any]) -> str | None:
        """Labels that do not begin at 0: the class 0 would have no image."""
        first = int(targets.min()) if len(targets) else 0
        return f"begin at {first}, and they must begin at 0; subtract {first}" if first > 0 else None

    def split_problem(self, rest: NDArray[Any], class_names: Sequence[str]) -> str | None:
        left = np.bincount(rest, minlength=len(class_names))
        return None if left.all() else f"class '{class_names[int(np.argmin(left))]}'"


@dataclass(frozen=True)
class Numbers(TargetRule):
    """Finite numbers for each sample, stored as float32: [N], or [N, K] if a model returns K of them.

    Attributes:
        groups: into how many groups of equal size the samples are divided by the first of their numbers; each split has the
            same share of every group.
    """

    groups: int = 10

    def convert(self, given: NDArray[Any], where: str) -> NDArray[Any]:
        if given.ndim not in (1, 2) or given.dtype.kind not in "iuf":
            raise UsageError(f"{where} must be numbers [N] or [N, K], got {given.dtype} {list(given.shape)}")
        converted = given.astype(np.float32, copy=False)
        if not np.isfinite(converted).all():
            raise UsageError(f"{where} must be finite numbers, got NaN or infinity; correct them, or leave the samples out")
        return converted

    def outputs(
        self, targets: NDArray[Any], class_names: Sequence[str] | None = None, num_classes: int | None = None
    ) -> tuple[int, tuple[str, ...]]:
        return _width(targets), ()

    def check(self, targets: NDArray[Any], num_outputs: int, class_names: Sequence[str], where: str) -> None:
        _check_not_empty(targets, where)
        if _width(targets) != num_outputs:
            raise UsageError(f"{where} must have {num_outputs} numbers for each sample, it has {_width(targets)}")

    def strata(self, targets: NDArray[Any]) -> NDArray[np.int64]:
        first = targets if targets.ndim == 1 else targets[:, 0]
        ranks = np.empty(len(first), np.int64)
        ranks[np.argsort(first, kind="stable")] = np.arange(len(first))
        return ranks * self.groups // max(1, len(first))


CLASS_LABELS = ClassLabels()


def _width(targets: NDArray[Any]) -> int:
    return 1 if targets.ndim == 1 else int(targets.shape[1])


def _check_not_empty(targets: NDArray[Any], where: str) -> None:
    if not len(targets):
        raise UsageError(f"{where} has no images; name another dataset.root")
