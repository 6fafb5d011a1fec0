"""Boxes as the targets of images: N images, at most M boxes of each, C classes.

Targets are float32 [N, M, 5]: (x1, y1, x2, y2, class) in pixels of the images as models read them, x to the right and y down.
Rows without a box have the class -1 and come last.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.data.targets import TargetRule
from stillhouse.errors import UsageError

NO_BOX = -1


@dataclass(frozen=True)
class Boxes(TargetRule):
    """Boxes with classes. Models are built for the number of classes; images without any box are allowed."""

    def convert(self, given: NDArray[Any], where: str) -> NDArray[Any]:
        if given.ndim != 3 or given.shape[2] != 5 or given.dtype.kind not in "iuf":
            raise UsageError(
                f"{where} must be boxes [N, M, 5], (x1, y1, x2, y2, class) with the class -1 in rows without a box, "
                f"got {given.dtype} {list(given.shape)}; use a data set of boxes such as voc_folder"
            )
        boxes = given.astype(np.float32, copy=False)
        if not np.isfinite(boxes).all():
            raise UsageError(f"{where} must be finite numbers, got NaN or infinity; correct them")
        real = boxes[..., 4] != NO_BOX
        flat = real & ~((boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1]))
        if flat.any():
            image, row = (int(each) for each in np.argwhere(flat)[0])
            raise UsageError(f"{where} must be boxes with an area, got {boxes[image, row, :4].tolist()}; leave it out")
        return boxes

    def outputs(
        self, targets: NDArray[Any], class_names: Sequence[str] | None = None, num_classes: int | None = None
    ) -> tuple[int, tuple[str, ...]]:
        names = tuple(class_names or ())
        largest = int(targets[..., 4].max(initial=NO_BOX)) + 1
        count = num_classes if num_classes is not None else len(names) or max(1, largest)
        return count, names or tuple(str(place) for place in range(count))

    def check(self, targets: NDArray[Any], num_outputs: int, class_names: Sequence[str], where: str) -> None:
        if not len(targets):
            raise UsageError(f"{where} has no images; name another dataset.root")
        classes = targets[..., 4]
        if not (classes != NO_BOX).any():
            raise UsageError(f"{where} has no box in any image; add some, or name another dataset.root")
        wrong = (classes < NO_BOX) | (classes >= num_outputs) | (classes != np.floor(classes))
        if wrong.any():
            raise UsageError(f"classes of {where} must be in 0..{num_outputs - 1}, got {classes[wrong][0]:g}; correct them")

    def strata(self, targets: NDArray[Any]) -> NDArray[np.int64]:
        """Of each image, the class of its boxes that the fewest images have; the number of classes if it has no box."""
        present = presence(targets)
        rarity = present.sum(0) if len(present) else np.zeros(present.shape[1])
        order = np.argsort(rarity, kind="stable")
        strata = np.full(len(targets), present.shape[1], np.int64)
        for place in order[::-1]:
            strata[present[:, place]] = place
        return strata

    def foreseen_outputs(self, num_classes: int | None) -> int | None:
        return num_classes

    def split_problem(self, rest: NDArray[Any], class_names: Sequence[str]) -> str | None:
        present = presence(rest, len(class_names)).any(0)
        return None if present.all() else f"class '{class_names[int(np.argmin(present))]}'"


BOXES = Boxes()


def presence(targets: NDArray[Any], classes: int | None = None) -> NDArray[np.bool_]:
    """Which classes have a box in which image: bool [N, C]."""
    found = targets[..., 4].astype(np.int64)
    count = classes if classes is not None else int(found.max(initial=NO_BOX)) + 1
    present: NDArray[np.bool_] = (found[..., None] == np.arange(count)).any(1)
    return present


def padded(boxes: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """float32 [N, M, 5] from the boxes [m, 5] of each image; M is at least 1."""
    most = max([1, *(len(each) for each in boxes)])
    targets = np.zeros((len(boxes), most, 5), np.float32)
    targets[..., 4] = NO_BOX
    for row, each in enumerate(boxes):
        targets[row, : len(each)] = each
    return targets
