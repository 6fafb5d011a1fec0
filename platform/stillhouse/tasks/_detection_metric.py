"""Mean average precision as the COCO benchmark defines it, computed by faster-coco-eval. N images, K detections, M true boxes.

Average precision is the area under precision over recall of one class at one overlap; the metric is its mean over the overlaps
0.50, 0.55, ..., 0.95 and over the classes that have a box. A class without any true box has none and is left out.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillhouse.errors import UsageError
from stillhouse.models.detector import DETECTIONS

_PACKAGE = "faster_coco_eval"
_AT_50 = 0
_EVERYWHERE = [[0.0, 1e10]]


@dataclass(frozen=True)
class Precision:
    """Attributes:
    mean: over overlaps and classes.
    at_50: at the overlap 0.5, over classes.
    by_class: over overlaps; NaN for a class without a true box.
    """

    mean: float
    at_50: float
    by_class: tuple[float, ...]


class MeanAveragePrecision:
    """Keeps detections and true boxes of all images seen, since the metric is no mean over images."""

    def __init__(self) -> None:
        self._found: list[Tensor] = []
        self._true: list[Tensor] = []

    def update(self, outputs: Mapping[str, Tensor], targets: Tensor) -> None:
        self._found.append(outputs["detections"])
        self._true.append(targets)

    def state(self) -> dict[str, Tensor]:
        return {
            "found": torch.cat(self._found) if self._found else torch.empty(0, DETECTIONS, 6),
            "true": torch.cat(self._true) if self._true else torch.empty(0, 1, 5),
        }

    def merge(self, state: Mapping[str, Tensor]) -> None:
        if len(state["found"]):
            self._found.append(state["found"])
            self._true.append(state["true"])

    def result(self) -> float:
        state = self.state()
        return average_precision(state["found"], state["true"]).mean


def average_precision(found: Tensor, true: Tensor) -> Precision:
    """The precision of detections [N, K, 6] against true boxes [N, M, 5]; at most 100 detections of an image count.

    The order of the images does not matter.

    Raises:
        UsageError: the package is not installed.
    """
    return _of_curves(_evaluated(*_in_fixed_order(found.cpu().numpy(), true.cpu().numpy())))


def interval(found: Tensor, true: Tensor, *, draws: int, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of the mean average precision over drawing the images again, with replacement, `draws` times."""
    detections, boxes = found.cpu().numpy(), true.cpu().numpy()
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(draws):
        rows = generator.integers(0, len(boxes), len(boxes))
        values.append(_of_curves(_evaluated(detections[rows], boxes[rows])).mean)
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)


def require_package() -> None:
    """Raises:
    UsageError: faster-coco-eval is not installed.
    """
    if find_spec(_PACKAGE) is None:
        raise UsageError(
            "the metric map needs faster-coco-eval, which is not installed here: pip install 'stillhouse[detection]'"
        )


def _of_curves(precision: NDArray[np.float64]) -> Precision:
    """From precision [overlaps, recalls, classes], -1 where a class has no true box."""
    known = np.where(precision < 0, np.nan, precision)
    present = [bool(each) for each in np.atleast_1d((~np.isnan(known)).any((0, 1)))]
    by_class = [float(np.nanmean(known[:, :, place])) if here else math.nan for place, here in enumerate(present)]
    if not any(present):
        return Precision(math.nan, math.nan, tuple(by_class))
    return Precision(float(np.nanmean(known)), float(np.nanmean(known[_AT_50])), tuple(by_class))


def _evaluated(found: NDArray[Any], true: NDArray[Any]) -> NDArray[np.float64]:
    require_package()
    from faster_coco_eval import COCO, COCOeval_faster

    classes = int(max(true[..., 4].max(initial=-1), found[..., 5].max(initial=-1))) + 1
    frame = {"images": [{"id": place} for place in range(len(true))], "categories": [{"id": place} for place in range(classes)]}
    if not (true[..., 4] >= 0).any():
        return np.full((1, 1, classes), -1.0)
    sides = []
    for entries in (_entries(true, None), _entries(found, 4)):
        side = COCO()
        side.dataset = {**frame, "annotations": entries}
        side.createIndex()
        sides.append(side)
    evaluation = COCOeval_faster(*sides, iouType="bbox", print_function=_say_nothing)
    evaluation.params.maxDets = [DETECTIONS]
    evaluation.params.areaRng, evaluation.params.areaRngLbl = _EVERYWHERE, ["all"]
    evaluation.evaluate()
    evaluation.accumulate()
    precision: NDArray[np.float64] = evaluation.eval["precision"][:, :, :, 0, -1]
    return precision


def _entries(rows: NDArray[Any], score: int | None) -> list[dict[str, Any]]:
    """Boxes as the annotations of COCO, numbered from 1."""
    label = 4 if score is None else 5
    images, places = np.nonzero(rows[..., label] >= 0)
    entries = []
    for number, (image, values) in enumerate(zip(images.tolist(), rows[images, places].tolist(), strict=True), start=1):
        x1, y1, x2, y2 = values[:4]
        width, height = x2 - x1, y2 - y1
        entry = {"id": number, "image_id": image, "category_id": int(values[label]), "bbox": [x1, y1, width, height]}
        entries.append(entry | {"area": width * height, "iscrowd": 0} | ({} if score is None else {"score": values[score]}))
    return entries


def _in_fixed_order(found: NDArray[Any], true: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The images in an order that depends on their content alone: equal scores are ranked by it."""
    pairs = zip(found, true, strict=True)
    keys = [b"".join(np.ascontiguousarray(each).tobytes() for each in pair) for pair in pairs]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return found[order], true[order]


def _say_nothing(*_words: Any) -> None:
    """Instead of printing."""
