"""The size axes of the trade-off figures, and where a configuration is drawn on them."""

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from stillhouse.report.configurations import Configuration
from stillhouse.report.plot_style import PlotStyle
from stillhouse.spec.metric import Metric
from stillhouse.spec.records import SweepFacts

# Tukey's outer fence, in interquartile ranges.
_FAR = 3.0
# Shares of the axis, and its natural logarithm where the students are of one size.
_LEAST_OF_AXIS, _MAX_OF_AXIS = 0.05, 0.2
_NARROWEST = 1.0

AXES: Mapping[str, str] = {
    "parameters": "Parameters",
    "size_bytes": "Stored size (bytes)",
    "macs": "Multiply-accumulates per sample",
    "latency_ms": "Latency of one sample, median (ms)",
    "train_hours": "Training time of one trial (device hours)",
}


def devices_held(facts: SweepFacts) -> float:
    """GPUs, or the share of one, that each trial of the sweep has by the spec; 1 where it trains on the CPU."""
    return float((facts.spec.get("trial_resources") or {}).get("gpu") or 1.0)


def axis_value(each: Configuration, axis: str) -> float | None:
    """The value of a configuration on one of `AXES`; None where it was not measured."""
    if axis == "train_hours":
        seconds = each.median("train_seconds")
        return None if seconds is None else seconds * each.devices / 3600
    return each.median(axis)


def without_outliers(values: Sequence[float | None], metric: Metric) -> list[float] | None:
    """Where the axis of the metric begins and ends when values far worse than the rest would press it flat.

    Returns:
        None where there are no such values, and the axis may show everything.
    """
    known = metric.sign * np.array([value for value in values if value is not None], dtype=np.float64)
    if known.size == 0:
        return None
    first, third = np.quantile(known, (0.25, 0.75))
    near = known[known >= first - _FAR * (third - first)]
    if near.size == known.size or np.ptp(near) == 0:
        return None
    room = 0.08 * float(np.ptp(near))
    return sorted((metric.sign * (float(near.min()) - 2 * room), metric.sign * (float(near.max()) + room)))


def _centre(value: float) -> float:
    """Equal for sizes that a scatter cannot show apart."""
    return round(math.log(value), 2)


class Spread:
    """Moves points of one size slightly apart on a log axis, where one would hide the other.

    The points of one size take up a small part of the axis, a larger one where more colours share the size, and never reach
    the next size. A point that is alone at its size is not moved.
    """

    def __init__(self, found: Sequence[Configuration], axis: str, style: PlotStyle) -> None:
        values = [value for each in found if (value := axis_value(each, axis)) is not None and value > 0]
        self._sharing = Counter(_centre(value) for value in values)
        centres = sorted(self._sharing)
        gaps = [later - earlier for earlier, later in itertools.pairwise(centres)]
        groups = style.groups(found)
        span = max(_NARROWEST, centres[-1] - centres[0]) if centres else _NARROWEST
        widest = min(_MAX_OF_AXIS, max(_LEAST_OF_AXIS, 0.005 * len(groups))) * span
        self._axis = axis
        # Where nearly all sizes differ, as with a searched width, no point hides another.
        self._width = min([widest, *(0.6 * gap for gap in gaps)]) if len(centres) * 2 <= len(values) else 0.0
        self._style = style
        self._places = {
            name: place / max(1, len(groups) - 1) - 0.5 if len(groups) > 1 else 0.0 for place, name in enumerate(groups)
        }

    def __call__(self, each: Configuration) -> float | None:
        value = axis_value(each, self._axis)
        if value is None or value <= 0 or self._sharing[_centre(value)] < 2:
            return value
        return float(f"{value * math.exp(self._width * self._places.get(self._style.group(each), 0.0)):.6g}")
