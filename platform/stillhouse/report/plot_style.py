"""The style of every figure: the colour shows the method (or the sweep, where several are compared), the shape the student.

The colours are those of Okabe and Ito, made for colour-blind readers; grey is reserved for the baseline. When they are used
up, they repeat with other fills of points and dashes of lines, and after those in lighter shades.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from stillhouse.report.configurations import Configuration
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


@dataclass(frozen=True)
class PlotStyle:
    """The colour and fill of each method, or of each sweep, and the shape of each student."""

    colours: Mapping[str, str]
    shapes: Mapping[str, tuple[str, str, str]]
    fills: Mapping[str, int]
    by_sweep: bool = False

    @classmethod
    def of(cls, facts: SweepFacts, records: Sequence[TrialRecord]) -> "PlotStyle":
        methods = sorted({record.trial.method for record in records} - {facts.baseline})
        return cls({facts.baseline: GREY} | colours(methods), _shapes(records), {facts.baseline: 0} | _fills(methods))

    @classmethod
    def of_sweeps(cls, names: Sequence[str], records: Sequence[TrialRecord]) -> "PlotStyle":
        return cls(colours(names), _shapes(records), _fills(names), by_sweep=True)

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
        """The method, or the sweep, that the colour of the configuration shows."""
        return each.sweep if self.by_sweep else each.method

    def groups(self, found: Iterable[Configuration]) -> list[str]:
        """The methods, or sweeps, of these configurations, in the order of the legend."""
        present = {self.group(each) for each in found}
        return [name for name in self.colours if name in present]


def _shapes(records: Iterable[TrialRecord]) -> dict[str, tuple[str, str, str]]:
    students = dict.fromkeys(record.trial.student.name for record in records)
    return {name: _SHAPES[index % len(_SHAPES)] for index, name in enumerate(students)}


def _fills(names: Sequence[str]) -> dict[str, int]:
    return {name: index // len(_COLOURS) % len(_FILLS) for index, name in enumerate(names)}


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each of these names, in their order."""
    return {name: _colour(index) for index, name in enumerate(names)}


def _colour(index: int) -> str:
    turn, place = index // (len(_COLOURS) * len(_FILLS)), index % len(_COLOURS)
    red, green, blue = (int(_COLOURS[place][start : start + 2], 16) for start in (1, 3, 5))
    towards_white = 1 - 0.6**turn
    return "#" + "".join(f"{round(part + (255 - part) * towards_white):02X}" for part in (red, green, blue))


def baseline_first(facts: SweepFacts, methods: Iterable[str]) -> list[str]:
    return sorted(methods, key=lambda method: (method != facts.baseline, method))
