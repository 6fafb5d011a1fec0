"""What every figure shares: colour says the method, shape says the student.

The colours are Okabe and Ito's, made for colour-blind readers, with grey kept for the baseline; beyond them they
repeat, lighter.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from stillhouse.spec.records import SweepFacts, TrialRecord

# Okabe and Ito 2008, "Color Universal Design", without black (the page may be dark); yellow darkened for a white ground.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#A8A000")
GREY = "#8A8F98"
TEACHER_COLOUR = "#E3B505"
FRONT_COLOUR = "#7C8698"
_SHAPES = (
    ("circle", "o"),
    ("square", "s"),
    ("diamond", "D"),
    ("triangle-up", "^"),
    ("triangle-down", "v"),
    ("pentagon", "p"),
    ("hexagon", "h"),
    ("cross", "P"),
    ("x", "X"),
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
    """The colour of each method and the shape of each student; equal sweeps look alike."""

    colours: Mapping[str, str]
    shapes: Mapping[str, tuple[str, str]]

    @classmethod
    def of(cls, facts: SweepFacts, records: Sequence[TrialRecord]) -> "Looks":
        methods = sorted({record.trial.method for record in records} - {facts.baseline})
        students = dict.fromkeys(record.trial.student.name for record in records)
        colours = {method: _colour(index) for index, method in enumerate(methods)}
        return cls({facts.baseline: GREY} | colours, {name: _SHAPES[i % len(_SHAPES)] for i, name in enumerate(students)})


def _colour(index: int) -> str:
    turn, place = divmod(index, len(_COLOURS))
    red, green, blue = (int(_COLOURS[place][start : start + 2], 16) for start in (1, 3, 5))
    towards_white = 1 - 0.6**turn
    return "#" + "".join(f"{round(part + (255 - part) * towards_white):02X}" for part in (red, green, blue))


def baseline_first(facts: SweepFacts, methods: Iterable[str]) -> list[str]:
    return sorted(methods, key=lambda method: (method != facts.baseline, method))
