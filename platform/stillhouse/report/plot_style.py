"""What every figure shares: colour says the method (or the sweep, where several are compared), shape says the student.

The colours are Okabe and Ito's, made for colour-blind readers, with grey kept for the baseline; beyond them they
repeat, told apart by how a point is filled and a line is dashed, and beyond those they grow lighter.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stillhouse.report.statistics import Configuration
from stillhouse.spec.records import SweepFacts, TrialRecord

# Okabe and Ito 2008, "Color Universal Design", without black (the page may be dark); yellow darkened for a white ground.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#A8A000")
GREY = "#8A8F98"
TEACHER_COLOUR = "#E3B505"
FRONT_COLOUR = "#7C8698"
# Each for plotly, for matplotlib, and as a letter.
_SHAPES = (
    ("circle", "o", "\N{WHITE CIRCLE}"),
    ("square", "s", "\N{WHITE SQUARE}"),
    ("diamond", "D", "\N{WHITE DIAMOND}"),
    ("triangle-up", "^", "\N{WHITE UP-POINTING TRIANGLE}"),
    ("triangle-down", "v", "\N{WHITE DOWN-POINTING TRIANGLE}"),
    ("pentagon", "p", "\N{WHITE PENTAGON}"),
    ("hexagon", "h", "\N{WHITE HEXAGON}"),
    ("cross", "P", "\N{HEAVY GREEK CROSS}"),
    ("x", "X", "\N{MULTIPLICATION X}"),
)
# For plotly's symbol, matplotlib's marker and plotly's line.
_FILLS: tuple[tuple[str, Literal["full", "left", "top", "none"], str], ...] = (
    ("", "full", "solid"),
    ("-open", "none", "dash"),
    ("-dot", "left", "dot"),
    ("-open-dot", "top", "dashdot"),
)
# Tukey's outer fence, in interquartile ranges.
_FAR = 3.0
AXES: Mapping[str, str] = {
    "parameters": "Parameters",
    "size_bytes": "Stored size (bytes)",
    "macs": "Multiply-accumulates per sample",
    "latency_ms": "Latency of one sample, median (ms)",
    "train_hours": "Training time of one trial (device hours)",
}


@dataclass(frozen=True)
class PlotStyle:
    """The colour and fill of each method, or of each sweep, and the shape of each student; equal sweeps look alike."""

    colours: Mapping[str, str]
    shapes: Mapping[str, tuple[str, str, str]]
    fills: Mapping[str, int]
    by_sweep: bool = False

    @classmethod
    def of(cls, facts: SweepFacts, records: Sequence[TrialRecord]) -> "PlotStyle":
        methods = sorted({record.trial.method for record in records} - {facts.baseline})
        return cls({facts.baseline: GREY} | _colours(methods), _shapes(records), {facts.baseline: 0} | _fills(methods))

    @classmethod
    def of_sweeps(cls, names: Sequence[str], records: Sequence[TrialRecord]) -> "PlotStyle":
        return cls(_colours(names), _shapes(records), _fills(names), by_sweep=True)

    def symbol(self, group: str, student: str) -> str:
        """Plotly's symbol for a student of a group."""
        return self.shapes[student][0] + _FILLS[self.fills[group]][0]

    def fill_style(self, group: str) -> Literal["full", "left", "top", "none"]:
        """Matplotlib's fill of the group's markers."""
        return _FILLS[self.fills[group]][1]

    def dash(self, group: str) -> str:
        """Plotly's dash of the group's lines."""
        return _FILLS[self.fills[group]][2]

    def group(self, each: Configuration) -> str:
        """What the colour of the configuration says."""
        return each.sweep if self.by_sweep else each.method

    def groups(self, found: Iterable[Configuration]) -> list[str]:
        """All that is there to be coloured, in the order of the legend."""
        present = {self.group(each) for each in found}
        return [name for name in self.colours if name in present]


def _shapes(records: Iterable[TrialRecord]) -> dict[str, tuple[str, str, str]]:
    students = dict.fromkeys(record.trial.student.name for record in records)
    return {name: _SHAPES[index % len(_SHAPES)] for index, name in enumerate(students)}


def _fills(names: Sequence[str]) -> dict[str, int]:
    return {name: index // len(_COLOURS) % len(_FILLS) for index, name in enumerate(names)}


def _colours(names: Sequence[str]) -> dict[str, str]:
    return {name: _colour(index) for index, name in enumerate(names)}


def _colour(index: int) -> str:
    turn, place = index // (len(_COLOURS) * len(_FILLS)), index % len(_COLOURS)
    red, green, blue = (int(_COLOURS[place][start : start + 2], 16) for start in (1, 3, 5))
    towards_white = 1 - 0.6**turn
    return "#" + "".join(f"{round(part + (255 - part) * towards_white):02X}" for part in (red, green, blue))


def baseline_first(facts: SweepFacts, methods: Iterable[str]) -> list[str]:
    return sorted(methods, key=lambda method: (method != facts.baseline, method))


def devices_held(facts: SweepFacts) -> float:
    """GPUs, or the share of one, that each trial of the sweep holds by the spec; 1 where it trains on the CPU."""
    return float((facts.spec.get("trial_resources") or {}).get("gpu") or 1.0)


def axis_value(each: Configuration, axis: str) -> float | None:
    """Where the configuration lies on one of `AXES`."""
    if axis == "train_hours":
        seconds = each.metric("train_seconds")
        return None if seconds is None else seconds * each.devices / 3600
    return each.metric(axis)


def without_outliers(values: Sequence[float | None]) -> list[float] | None:
    """Where the axis begins and ends when values far below the rest would press it flat; None where there are none."""
    known = np.array([value for value in values if value is not None], dtype=np.float64)
    if known.size == 0:
        return None
    first, third = np.quantile(known, (0.25, 0.75))
    near = known[known >= first - _FAR * (third - first)]
    if near.size == known.size or np.ptp(near) == 0:
        return None
    room = 0.08 * float(np.ptp(near))
    return [float(near.min()) - 2 * room, float(near.max()) + room]


# Shares of the axis, and its natural logarithm where the students are of one size.
_LEAST_OF_AXIS, _MAX_OF_AXIS = 0.05, 0.2
_NARROWEST = 1.0


def _centre(value: float) -> float:
    """The same for sizes that a scatter can not show apart."""
    return round(math.log(value), 2)


class Spread:
    """Moves the colours of one student a little apart on a log axis, where equal sizes would hide one behind the other.

    The whole fan is a small part of the axis, wider where more colours share it, and never reaches the next student. What is
    alone at its size stays there.
    """

    def __init__(self, found: Sequence[Configuration], axis: str, looks: PlotStyle) -> None:
        values = [value for each in found if (value := axis_value(each, axis)) is not None and value > 0]
        self._sharing = Counter(_centre(value) for value in values)
        centres = sorted(self._sharing)
        gaps = [later - earlier for earlier, later in itertools.pairwise(centres)]
        groups = looks.groups(found)
        span = max(_NARROWEST, centres[-1] - centres[0]) if centres else _NARROWEST
        widest = min(_MAX_OF_AXIS, max(_LEAST_OF_AXIS, 0.005 * len(groups))) * span
        self._axis = axis
        # Sizes that nearly all differ, as of a searched width, hide nothing.
        self._width = min([widest, *(0.6 * gap for gap in gaps)]) if len(centres) * 2 <= len(values) else 0.0
        self._looks = looks
        self._places = {
            name: place / max(1, len(groups) - 1) - 0.5 if len(groups) > 1 else 0.0 for place, name in enumerate(groups)
        }

    def __call__(self, each: Configuration) -> float | None:
        value = axis_value(each, self._axis)
        if value is None or value <= 0 or self._sharing[_centre(value)] < 2:
            return value
        return float(f"{value * math.exp(self._width * self._places.get(self._looks.group(each), 0.0)):.6g}")
