"""What every figure shares: colour says the method (or the sweep, where several are compared), shape says the student.

The colours are Okabe and Ito's, made for colour-blind readers, with grey kept for the baseline; beyond them they
repeat, lighter.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

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
AXES: Mapping[str, str] = {
    "parameters": "Parameters",
    "size_bytes": "Stored size (bytes)",
    "macs": "Multiply-accumulates per sample",
    "latency_ms": "Latency of one sample, median (ms)",
    "train_hours": "Training time of one trial (device hours)",
}


@dataclass(frozen=True)
class Looks:
    """The colour of each method, or of each sweep, and the shape of each student; equal sweeps look alike."""

    colours: Mapping[str, str]
    shapes: Mapping[str, tuple[str, str, str]]
    by_sweep: bool = False

    @classmethod
    def of(cls, facts: SweepFacts, records: Sequence[TrialRecord]) -> "Looks":
        methods = sorted({record.trial.method for record in records} - {facts.baseline})
        colours = {method: _colour(index) for index, method in enumerate(methods)}
        return cls({facts.baseline: GREY} | colours, _shapes(records))

    @classmethod
    def of_sweeps(cls, names: Sequence[str], records: Sequence[TrialRecord]) -> "Looks":
        return cls({name: _colour(index) for index, name in enumerate(names)}, _shapes(records), by_sweep=True)

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


def _colour(index: int) -> str:
    turn, place = divmod(index, len(_COLOURS))
    red, green, blue = (int(_COLOURS[place][start : start + 2], 16) for start in (1, 3, 5))
    towards_white = 1 - 0.6**turn
    return "#" + "".join(f"{round(part + (255 - part) * towards_white):02X}" for part in (red, green, blue))


def baseline_first(facts: SweepFacts, methods: Iterable[str]) -> list[str]:
    return sorted(methods, key=lambda method: (method != facts.baseline, method))


def axis_value(each: Configuration, axis: str) -> float | None:
    """Where the configuration lies on one of `AXES`."""
    if axis == "train_hours":
        seconds = each.metric("train_seconds")
        return None if seconds is None else seconds / 3600
    return each.metric(axis)


class Spread:
    """Moves the colours of one student a little apart on a log axis, where equal sizes would hide one behind the other.

    The whole fan is at most 5% of the axis wide and never reaches the next student.
    """

    def __init__(self, found: Sequence[Configuration], axis: str, looks: Looks) -> None:
        values = [value for each in found if (value := axis_value(each, axis)) is not None and value > 0]
        centres = sorted({round(math.log(value), 2) for value in values})
        gaps = [later - earlier for earlier, later in itertools.pairwise(centres)]
        widest = 0.05 * (centres[-1] - centres[0] if len(centres) > 1 else 1.0)
        self._axis = axis
        # Sizes that nearly all differ, as of a searched width, hide nothing.
        self._width = min([widest, *(0.6 * gap for gap in gaps)]) if len(centres) * 2 <= len(values) else 0.0
        groups = looks.groups(found)
        self._looks = looks
        self._places = {
            name: place / max(1, len(groups) - 1) - 0.5 if len(groups) > 1 else 0.0 for place, name in enumerate(groups)
        }

    def __call__(self, each: Configuration) -> float | None:
        value = axis_value(each, self._axis)
        if value is None or value <= 0:
            return value
        return float(f"{value * math.exp(self._width * self._places.get(self._looks.group(each), 0.0)):.6g}")
