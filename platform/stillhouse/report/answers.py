"""The questions a sweep is run to answer: the best student of a size, how sure that is, what the teacher cost."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stillhouse.report.configurations import Configuration, compare, winners
from stillhouse.report.estimates import Estimate
from stillhouse.report.fronts import configuration_front
from stillhouse.report.trials_table import reference_teacher
from stillhouse.spec.records import SweepFacts, TeacherFacts
from stillhouse.spec.size_bound import SIZES, Budget

_MAX_KNEES = 2


# Of the unit square that the front is scaled to: less than this above the chord is a straight front, not a knee.
_KNEE_HEIGHT = 0.08


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The student that validation data choose within a size, and what test data say of that choice.

    Attributes:
        title: what was asked: `most accurate`, `knee`, `smallest` or `budget`.
        best: None when no finished student is small enough.
        tied: other students and methods within the size whose difference from `best` has an interval that holds zero.
        ahead: those whose whole interval lies above `best`: the choice by validation was unlucky.
        unsure: those that share too few seeds with `best` for an interval.
        behind: how many are surely worse.
        least: the smallest size that any finished student has, by the budget's own measure.
        gain: over the baseline on the same student, paired where they share seeds.
    """

    title: Literal["budget", "most accurate", "knee", "smallest"]
    budget: Budget | None = None
    best: Configuration | None = None
    teacher: TeacherFacts | None = None
    tied: tuple[Configuration, ...] = ()
    ahead: tuple[Configuration, ...] = ()
    unsure: tuple[Configuration, ...] = ()
    behind: int = 0
    least: float | None = None
    gain: Estimate | None = None
    gain_kind: Literal["paired", "unpaired"] = "paired"

    @property
    def compression(self) -> float | None:
        """Parameters of the teacher over those of the student."""
        parameters = self.best.metric("parameters") if self.best else None
        return self.teacher.parameters / parameters if self.teacher and parameters else None

    @property
    def drop(self) -> Estimate | None:
        """Test accuracy lost against the teacher, which is measured once and so adds no width."""
        if self.best is None or self.teacher is None or self.teacher.test_accuracy is None:
            return None
        return Estimate(self.teacher.test_accuracy - self.best.test.mean, self.best.test.half_width, self.best.test.n)

    def to_json(self) -> dict[str, Any]:
        """The answer as plain data; `trial` is null when nothing meets the budget."""
        budget = {self.budget.metric: self.budget.limit} if self.budget else None
        if self.best is None:
            return {"question": self.title, "budget": budget, "trial": None}
        return {
            "question": self.title,
            "budget": budget,
            "trial": self.best.key,
            **({"sweep": self.best.sweep} if self.best.sweep else {}),
            "method": self.best.method,
            "student": self.best.choice,
            "hyperparameters": dict(self.best.hyperparameters),
            **{name: self.best.metric(name) for name in SIZES},
            "validation_accuracy": self.best.validation.mean,
            "validation_interval": _interval(self.best.validation),
            "test_accuracy": self.best.test.mean,
            "test_interval": _interval(self.best.test),
            "seeds": self.best.test.n,
            "teacher": self.teacher.name if self.teacher else None,
            "compression_ratio": self.compression,
            "accuracy_drop": self.drop.mean if self.drop else None,
            "accuracy_drop_interval": _interval(self.drop),
            "gain": self.gain.mean if self.gain else None,
            "gain_interval": _interval(self.gain),
            "gain_seeds": self.gain.n if self.gain else None,
            "tied_with": [each.key for each in (*self.ahead, *self.tied)],
        }


def _interval(estimate: Estimate | None) -> list[float] | None:
    return None if estimate is None or estimate.half_width is None else [estimate.low, estimate.high]


def answers(facts: SweepFacts, found: Sequence[Configuration], budgets: Iterable[Budget] = ()) -> list[Answer]:
    """One answer per budget; without budgets the most accurate student, the knees of the front and its smallest student."""
    return pooled_answers({each.sweep: facts for each in found} or {"": facts}, found, budgets)


def pooled_answers(
    facts: Mapping[str, SweepFacts], found: Sequence[Configuration], budgets: Iterable[Budget] = ()
) -> list[Answer]:
    """`answers` over several sweeps of the same data, whose facts stand by their names."""
    best = winners(found)
    asked = list(budgets)
    if asked:
        return [_answer(facts, best, "budget", _chosen(best, budget), budget) for budget in asked]
    objectives = next(iter(facts.values())).objectives
    size = next((name for name, way in objectives.items() if way == "min" and name in SIZES), "parameters")
    front = configuration_front(best, size)
    if not front:
        return []
    questions: list[tuple[Literal["most accurate", "knee", "smallest"], Configuration]] = [("most accurate", front[-1])]
    questions += [("knee", front[position]) for position in _knees(front, size)]
    if len(front) > 1:
        questions.append(("smallest", front[0]))
    return [_answer(facts, best, title, each, Budget(size, limit)) for title, each in questions if (limit := each.metric(size))]


def _answer(
    sweeps: Mapping[str, SweepFacts],
    best: Sequence[Configuration],
    title: Literal["budget", "most accurate", "knee", "smallest"],
    chosen: Configuration | None,
    within: Budget,
) -> Answer:
    budget = within if title == "budget" else None
    if chosen is None:
        sizes = [size for each in best if (size := each.metric(within.metric)) is not None]
        return Answer(title=title, budget=budget, least=min(sizes, default=None))
    sides: dict[int | None, list[Configuration]] = {1: [], 0: [], -1: [], None: []}
    for rival in sorted(_within(best, within), key=_rank):
        # Sweeps may share a trial: it is no rival of itself.
        if rival.key != chosen.key:
            sides[compare(chosen, rival)[0].sign()].append(rival)
    facts = sweeps[chosen.sweep]
    place = (facts.baseline, chosen.choice, chosen.sweep)
    control = next((each for each in best if (each.method, each.choice, each.sweep) == place), None)
    against = compare(chosen, control) if control and control is not chosen else None
    return Answer(
        title=title,
        budget=budget,
        best=chosen,
        teacher=reference_teacher(facts, chosen.teacher),
        tied=tuple(sides[0]),
        ahead=tuple(sides[-1]),
        unsure=tuple(sides[None]),
        behind=len(sides[1]),
        gain=against[0] if against else None,
        gain_kind=against[1] if against else "paired",
    )


def _rank(each: Configuration) -> tuple[float, float, str]:
    return (-each.validation.mean, each.metric("parameters") or 0.0, each.key)


def _within(best: Iterable[Configuration], budget: Budget) -> list[Configuration]:
    return [each for each in best if (size := each.metric(budget.metric)) is not None and size <= budget.limit]


def _chosen(best: Iterable[Configuration], budget: Budget) -> Configuration | None:
    return min(_within(best, budget), key=_rank, default=None)


def _knees(front: Sequence[Configuration], size: str) -> list[int]:
    """Where the front bends: the points highest above the chord of accuracy against log size, by halving (Douglas-Peucker)."""
    if len(front) < 3:
        return []
    xs = _unit(np.log([each.metric(size) or 1.0 for each in front]))
    ys = _unit(np.array([each.validation.mean for each in front]))
    knees: list[int] = []
    spans = [(0, len(front) - 1)]
    while spans and len(knees) < _MAX_KNEES:
        heights = [_highest(xs, ys, span) for span in spans]
        index = max(range(len(spans)), key=lambda each: heights[each][1])
        (knee, height), (start, stop) = heights[index], spans.pop(index)
        if height < _KNEE_HEIGHT:
            break
        knees.append(knee)
        spans += [(start, knee), (knee, stop)]
    return sorted(knees, reverse=True)


def _highest(xs: NDArray[np.float64], ys: NDArray[np.float64], span: tuple[int, int]) -> tuple[int, float]:
    start, stop = span
    inside = np.arange(start + 1, stop)
    if inside.size == 0:
        return start, -1.0
    slope = (ys[stop] - ys[start]) / max(float(xs[stop] - xs[start]), 1e-12)
    heights = ys[inside] - (ys[start] + slope * (xs[inside] - xs[start]))
    return int(inside[int(np.argmax(heights))]), float(heights.max())


def _unit(values: NDArray[np.float64]) -> NDArray[np.float64]:
    width = float(np.ptp(values))
    return (values - values.min()) / width if width > 0 else np.zeros_like(values)
