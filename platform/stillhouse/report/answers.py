"""The questions that a sweep answers: the best student of a size, how sure that is, what it gained and lost."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stillhouse.report.configurations import Configuration, compare, preferred
from stillhouse.report.estimates import Estimate
from stillhouse.report.fronts import configuration_front
from stillhouse.spec.metric import Metric
from stillhouse.spec.records import SweepFacts, TeacherFacts
from stillhouse.spec.schema import RANDOM_TEACHER
from stillhouse.spec.size_bound import SIZES, Budget
from stillhouse.spec.teacher_comparison import RATIO_COLUMN, against_teacher, reference_teacher

Question = Literal["budget", "best", "knee", "smallest"]

_MAX_KNEES = 2
# Of the unit square that the front is scaled to: less than this above the chord is a straight front, not a knee.
_KNEE_HEIGHT = 0.08


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The student that validation data choose within a size, and how it does on test data.

    Attributes:
        question: `best` of all sizes, `knee`, `smallest` or `budget`.
        metric: by which the sweep's task judges students.
        best: None when no finished student is small enough.
        teacher: which `best` is compared with: the best of its own, or of the sweep's where it has none.
        tied: other students and methods within the size whose difference from `best` has an interval that contains zero.
        better: those that are better than `best` over the whole interval: the choice on validation data was unlucky.
        unsure: those that share too few seeds with `best` for an interval.
        worse: how many rivals are surely worse.
        level: other students and methods that are as good on the validation split: of those within the budget, or, for the best
            of all sizes, of all. `spec.preference` decided between them.
        least: the smallest size that any finished student has, in the budget's own measure.
        gain: over the baseline on the same student, positive where `best` is better; paired where they share seeds. None where
            seeds of either collapsed.
        untrained_gain: over the same method with an untrained teacher; None if that did not run, or either collapsed.
        control: the baseline on the same student; None if it has no result, or is `best` itself.
    """

    question: Question
    metric: Metric
    budget: Budget | None = None
    best: Configuration | None = None
    teacher: TeacherFacts | None = None
    tied: tuple[Configuration, ...] = ()
    better: tuple[Configuration, ...] = ()
    unsure: tuple[Configuration, ...] = ()
    worse: int = 0
    level: tuple[Configuration, ...] = ()
    least: float | None = None
    control: Configuration | None = None
    gain: Estimate | None = None
    gain_kind: Literal["paired", "unpaired"] = "paired"
    untrained_gain: Estimate | None = None

    @property
    def title(self) -> str:
        """The name of the question in JSON."""
        return self.metric.superlative if self.question == "best" else self.question

    @property
    def own_teacher(self) -> bool:
        """Whether `teacher` taught `best`; a student that learned alone is compared with a teacher of the sweep."""
        return self.best is not None and self.teacher is not None and self.teacher.name in self.best.teachers

    @property
    def compression(self) -> float | None:
        """Parameters of the teacher over those of the student."""
        return self._against_teacher().get(RATIO_COLUMN)

    @property
    def drop(self) -> Estimate | None:
        """By how much the student is worse than the teacher on test data. The teacher was trained once and adds no width."""
        drop = self._against_teacher().get(self.metric.drop_column)
        return None if drop is None or self.best is None else Estimate(drop, self.best.test.half_width, self.best.test.n)

    def _against_teacher(self) -> dict[str, float]:
        if self.best is None or self.teacher is None:
            return {}
        student = {self.metric.column("test"): self.best.test.mean}
        if (parameters := self.best.median("parameters")) is not None:
            student["parameters"] = parameters
        score = self.teacher.value(self.metric.column("test"))
        return against_teacher(student, self.metric, parameters=self.teacher.parameters, score=score)

    def to_json(self) -> dict[str, Any]:
        """The answer as plain data; `trial` is null when nothing meets the budget."""
        budget = {self.budget.metric: self.budget.limit} if self.budget else None
        if self.best is None:
            return {"question": self.title, "budget": budget, "trial": None}
        drop = self.metric.drop_column
        return {
            "question": self.title,
            "budget": budget,
            "trial": self.best.key,
            **({"sweep": self.best.sweep} if self.best.sweep else {}),
            "method": self.best.method,
            "student": self.best.choice,
            "hyperparameters": dict(self.best.hyperparameters),
            **{name: self.best.median(name) for name in SIZES},
            self.metric.column("validation"): self.best.validation.mean,
            "validation_interval": _interval(self.best.validation),
            self.metric.column("test"): self.best.test.mean,
            "test_interval": _interval(self.best.test),
            "test_split_interval": list(of_split) if (of_split := self.best.test_split_interval) else None,
            "test_samples": self.best.test_samples,
            "seeds": self.best.test.n,
            "teacher": self.teacher.name if self.teacher else None,
            RATIO_COLUMN: self.compression,
            drop: self.drop.mean if self.drop else None,
            f"{drop}_interval": _interval(self.drop),
            "gain": self.gain.mean if self.gain else None,
            "gain_interval": _interval(self.gain),
            "gain_seeds": self.gain.n if self.gain else None,
            **_gain_over_untrained(self.untrained_gain),
            "tied_with": [each.key for each in (*self.better, *self.tied)],
            "level_on_validation": [each.key for each in self.level],
        }


def _gain_over_untrained(gain: Estimate | None) -> dict[str, Any]:
    """The gain over the control with an untrained teacher, where the sweep has it."""
    if gain is None:
        return {}
    key = f"gain_over_{RANDOM_TEACHER}"
    return {key: gain.mean, f"{key}_interval": _interval(gain), f"{key}_seeds": gain.n}


def _interval(estimate: Estimate | None) -> list[float] | None:
    return None if estimate is None or estimate.half_width is None else [estimate.low, estimate.high]


def answers(
    facts: SweepFacts,
    best: Sequence[Configuration],
    budgets: Iterable[Budget] = (),
    untrained: Mapping[str, Configuration] | None = None,
) -> list[Answer]:
    """One answer per budget; without budgets the best student, the knees of the front and its smallest student.

    Args:
        best: the winner of every method and concrete student.
        untrained: what `untrained_controls` returns of them.
    """
    found = pooled_answers({each.sweep: facts for each in best} or {"": facts}, best, budgets)
    return [replace(answer, untrained_gain=_over_untrained(answer.best, untrained or {})) for answer in found]


def _over_untrained(best: Configuration | None, untrained: Mapping[str, Configuration]) -> Estimate | None:
    control = None if best is None else untrained.get(best.key)
    if best is None or control is None or best.num_collapsed or control.num_collapsed:
        return None
    return compare(best, control)[0]


def best_student(best: Iterable[Configuration]) -> Configuration | None:
    """Of the winners the one that validation data choose, of all sizes; None without validation data, or if all collapsed."""
    return min((each for each in best if each.judged and not each.collapsed), key=preferred, default=None)


def pooled_answers(
    facts: Mapping[str, SweepFacts], best: Sequence[Configuration], budgets: Iterable[Budget] = ()
) -> list[Answer]:
    """`answers` over several sweeps with the same data and metric; none where no validation data choose.

    Args:
        facts: of each sweep, by its name.
    """
    if best and not any(each.judged for each in best):
        return []
    wanted = list(budgets)
    if wanted:
        return [_answer(facts, best, "budget", _chosen(best, budget), budget) for budget in wanted]
    objectives = next(iter(facts.values())).objectives
    size = next((name for name, direction in objectives.items() if direction == "min" and name in SIZES), "parameters")
    front = configuration_front(best, size)
    if not front:
        return []
    questions: list[tuple[Question, Configuration]] = []
    if (chosen := best_student(each for each in best if each.median(size))) is not None:
        questions.append(("best", chosen))
    questions += [("knee", front[position]) for position in _knees(front, size)]
    if len(front) > 1:
        questions.append(("smallest", front[0]))
    return [_answer(facts, best, title, each, Budget(size, limit)) for title, each in questions if (limit := each.median(size))]


def _answer(
    sweeps: Mapping[str, SweepFacts],
    best: Sequence[Configuration],
    question: Question,
    chosen: Configuration | None,
    within: Budget,
) -> Answer:
    metric = next(iter(sweeps.values())).metric
    budget = within if question == "budget" else None
    if chosen is None:
        sizes = [size for each in best if not each.collapsed and (size := each.median(within.metric)) is not None]
        return Answer(question=question, metric=metric, budget=budget, least=min(sizes, default=None))
    sides: dict[int | None, list[Configuration]] = {1: [], 0: [], -1: [], None: []}
    for rival in sorted(_within(best, within), key=preferred):
        # Sweeps may share a trial: it is no rival of itself.
        if rival.key != chosen.key:
            sides[compare(chosen, rival)[0].sign()].append(rival)
    compared = sorted(best if question == "best" else _within(best, within), key=preferred)
    facts = sweeps[chosen.sweep]
    place = (facts.baseline, chosen.choice, chosen.sweep)
    control = next((each for each in best if (each.method, each.choice, each.sweep) == place), None)
    comparable = control is not None and control is not chosen and not (control.num_collapsed or chosen.num_collapsed)
    against = compare(chosen, control) if control is not None and comparable else None
    return Answer(
        question=question,
        metric=metric,
        budget=budget,
        best=chosen,
        teacher=reference_teacher(facts.teachers, chosen.teachers, metric),
        tied=tuple(sides[0]),
        better=tuple(sides[-1]),
        unsure=tuple(sides[None]),
        worse=len(sides[1]),
        level=tuple(each for each in compared if each.key != chosen.key and each.preference[0] == chosen.preference[0]),
        control=None if control is chosen else control,
        gain=against[0] if against else None,
        gain_kind=against[1] if against else "paired",
    )


def _within(best: Iterable[Configuration], budget: Budget) -> list[Configuration]:
    return [each for each in best if (size := each.median(budget.metric)) is not None and size <= budget.limit]


def _chosen(best: Iterable[Configuration], budget: Budget) -> Configuration | None:
    return best_student(_within(best, budget))


def _knees(front: Sequence[Configuration], size: str) -> list[int]:
    """Where the front bends: the points highest above the chord of quality against log size, by halving (Douglas-Peucker)."""
    if len(front) < 3:
        return []
    xs = _unit(np.log([each.median(size) or 1.0 for each in front]))
    ys = _unit(np.array([each.quality for each in front]))
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
