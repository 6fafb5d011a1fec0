"""The plan: the trials that a spec implies, each student's size before it is trained, and what the teachers will cost."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from stillhouse.compress.students import student_architecture
from stillhouse.data.datasets import ImageData
from stillhouse.data.description import training_notes
from stillhouse.errors import Problem, SpecError
from stillhouse.models.architecture import Architecture
from stillhouse.models.size import ModelSize
from stillhouse.models.size_limits import known_sizes, over_limit
from stillhouse.spec.controls import has_untrained_teachers
from stillhouse.spec.metric import Metric
from stillhouse.spec.records import StudentChoice, Trial, TrialRecord
from stillhouse.spec.schema import ADAPTIVE, SearchBudget, SweepSpec
from stillhouse.sweep.planning.confirm import confirm_trials, control_trials, count_confirm_trials, count_control_trials
from stillhouse.sweep.planning.cost import (
    Cost,
    PlannedStudent,
    PlannedTeacher,
    estimate_cost,
    expected_trials,
    planned_student,
    planned_students,
    planned_teachers,
    student_size,
)
from stillhouse.sweep.planning.method_fit import settle
from stillhouse.sweep.planning.notes import (
    budget_notes,
    control_notes,
    duplicate_notes,
    limit_notes,
    robustness_notes,
    search_notes,
    skip_notes,
    start_notes,
    step_notes,
)
from stillhouse.sweep.planning.size_ranges import size_ranges, unmet_bounds
from stillhouse.sweep.planning.spec_check import metric_of, survey
from stillhouse.sweep.planning.survey import Skipped
from stillhouse.sweep.planning.trial_keys import TrialKeys
from stillhouse.sweep.search.adaptive import AdaptiveSearch, plan_studies
from stillhouse.sweep.search.budget import BudgetTracker
from stillhouse.sweep.search.draws import Draw
from stillhouse.sweep.search.trial_queue import ListQueue, TrialQueue, start_queue


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a sweep will do.

    Attributes:
        spec: with every method and hyper-parameter spelled out.
        trials: of the search phase, in the order in which they start; of an adaptive search, those known before any result.
        duplicates: how many trials were dropped because another one has the same settings, by method.
        confirm_trials: how many trials the confirm phase adds at most.
        control_trials: how many trials with untrained teachers follow at most.
        metric: what the task judges students by.
        search: chooses the other trials of an adaptive search; None for the other algorithms.
    """

    spec: SweepSpec
    trials: tuple[Trial, ...]
    students: tuple[PlannedStudent, ...]
    teachers: tuple[PlannedTeacher, ...]
    skipped: tuple[Skipped, ...]
    duplicates: Mapping[str, int]
    confirm_trials: int
    control_trials: int
    cost: Cost
    notes: tuple[str, ...]
    keys: TrialKeys
    metric: Metric
    search: AdaptiveSearch | None = None

    @property
    def num_trials(self) -> int:
        """How many trials the search phase has; for an adaptive search, at most."""
        return len(self.trials) if self.search is None else self.search.num_trials

    @property
    def trials_per_method(self) -> Counter[str]:
        """How many trials each method has; for an adaptive search, at most."""
        if self.search is None:
            return Counter(trial.method for trial in self.trials)
        counts: Counter[str] = Counter()
        for study in self.search.studies:
            counts[study.method] += study.trials
        return counts

    @cached_property
    def _searched(self) -> tuple[Trial, ...]:
        return self.trials if self.search is None else (*self.trials, *self.search.samples)

    @cached_property
    def _controls(self) -> tuple[Trial, ...]:
        """Which of them wins is not known yet, so any may run again with an untrained teacher."""
        if not has_untrained_teachers(self.spec):
            return ()
        return tuple(control_trials(self.spec, self.keys, self._searched))

    @property
    def representative_trials(self) -> tuple[Trial, ...]:
        """Trials that cover every kind of knowledge that the sweep may need of any of its teachers."""
        return (*self._searched, *self._controls)

    def queue(
        self,
        records: Mapping[str, TrialRecord],
        budget: BudgetTracker,
        *,
        refuse: Callable[[Trial], bool] = lambda trial: False,
    ) -> TrialQueue:
        """The queue of the search phase; it hands out the trials that have no record.

        Args:
            refuse: trials that must not start.
        """
        if self.search is not None:
            return self.search.queue(records, budget, refuse=refuse)
        return ListQueue(self.trials, records, budget, refuse=refuse)

    def trials_to_confirm(self, records: Iterable[TrialRecord], searched: Iterable[Trial] | None = None) -> list[Trial]:
        """The trials of the confirm phase as the records decide them; see `confirm_trials`.

        Args:
            searched: the trials of the search phase; by default those that are known before any result.
        """
        candidates = self.trials if searched is None else tuple(searched)
        return confirm_trials(self.spec, self.keys, candidates, records, self.metric)

    def size_of(self, trial: Trial) -> ModelSize:
        """The size of the trial's student."""
        return self._sizes[trial.student.variant]

    @cached_property
    def _sizes(self) -> Mapping[str, ModelSize]:
        return {planned.student.variant: planned.size for planned in self.students}

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data."""
        return {
            "sweep": self.spec.name,
            "planned": self.num_trials,
            "start": self.spec.search.start,
            "confirm_trials": self.confirm_trials,
            "training": self.spec.training.model_dump(mode="json"),
            "control_trials": self.control_trials,
            "trials": [trial.model_dump(mode="json") for trial in self.trials],
            "students": [
                {
                    **planned.student.model_dump(mode="json"),
                    **asdict(planned.size),
                    "trials": planned.trials,
                    "compression": planned.compression,
                    "estimated": planned.estimated,
                }
                for planned in self.students
            ],
            "sizes": [asdict(each) for each in size_ranges(self.students)],
            "teachers": [
                {
                    "name": teacher.name,
                    "model": teacher.model,
                    "options": dict(teacher.options),
                    **asdict(teacher.size),
                    "trials": teacher.trials,
                    "trains": teacher.trains,
                    "derived": teacher.derived,
                    "start": teacher.start,
                }
                for teacher in self.teachers
            ],
            "studies": [
                {"method": study.method, "student": study.label, "trials": study.trials}
                for study in (self.search.studies if self.search else ())
            ],
            "skipped": [asdict(item) for item in self.skipped],
            "duplicates": dict(self.duplicates),
            "cost": {**asdict(self.cost), "ratio_shared": self.cost.ratio_shared, "ratio_inside": self.cost.ratio_inside},
            "notes": list(self.notes),
        }


def make_plan(spec: SweepSpec, data: ImageData) -> Plan:
    """The trials of `spec` on `data`, with sizes and costs; linear in the number of trials.

    Raises:
        SpecError: with every problem of the spec.
    """
    found = survey(spec, data)
    if found.problems or found.spec is None:
        raise SpecError(found.problems)
    spec = found.spec
    keys = TrialKeys(spec, data)
    drawn = _draw_trials(spec, found.draws, keys, data)
    search, duplicates = None, drawn.duplicates
    ordered = expected = _interleaved(drawn.trials.values(), spec)
    if spec.search.algorithm in ADAPTIVE:
        search = _adaptive_search(spec, found.draws, drawn.trials.values(), keys, data)
        ordered = start_queue(search.queue({}, BudgetTracker(SearchBudget())))
        expected = expected_trials(search, ordered)
        duplicates = Counter()
    students = (*planned_students(expected, data), *_further_students(search, expected, data))
    teachers = planned_teachers(spec, expected, data)
    return Plan(
        spec=spec,
        trials=tuple(ordered),
        search=search,
        students=students,
        teachers=teachers,
        skipped=tuple(found.skipped),
        duplicates=dict(duplicates),
        confirm_trials=count_confirm_trials(spec, ordered),
        control_trials=count_control_trials(spec, ordered),
        cost=estimate_cost(spec, expected, students, teachers, data),
        notes=(
            *training_notes(data),
            *found.notes,
            *skip_notes(found.skipped),
            *limit_notes(drawn.too_large, search),
            *duplicate_notes(duplicates),
            *search_notes(search, ordered, students),
            *start_notes(spec),
            *step_notes(spec, len(data.train)),
            *unmet_bounds(spec.report.budgets, students),
            *control_notes(spec, ordered),
            *robustness_notes(spec, data),
            *budget_notes(spec.search.budget),
        ),
        keys=keys,
        metric=metric_of(data),
    )


@dataclass(frozen=True)
class _DrawnTrials:
    """The trials of all draws, by key.

    Attributes:
        duplicates: how many draws gave a trial that existed already, by method.
        too_large: the limit that students exceed and how many draws were dropped for it, by student.
    """

    trials: dict[str, Trial]
    duplicates: Counter[str]
    too_large: dict[str, tuple[str, int]]


def _draw_trials(spec: SweepSpec, draws: Iterable[Draw], keys: TrialKeys, data: ImageData) -> _DrawnTrials:
    """The trials within the limits, each once.

    Raises:
        SpecError: `search.limits` excludes every student.
    """
    drawn = _DrawnTrials({}, Counter(), {})
    for draw in draws:
        if (excess := _excess(spec, draw.student, data)) is not None:
            _, count = drawn.too_large.get(draw.student.name, ("", 0))
            drawn.too_large[draw.student.name] = (excess, count + 1)
            continue
        trial = keys.make_trial(draw, seed=spec.search.seed, epochs=spec.search.max_epochs)
        if trial.key in drawn.trials:
            drawn.duplicates[trial.method] += 1
        else:
            drawn.trials[trial.key] = trial
    if drawn.too_large and not drawn.trials:
        excess, _ = next(iter(drawn.too_large.values()))
        raise SpecError([Problem("search.limits", f"must leave a student: {excess}")])
    return drawn


def _further_students(search: AdaptiveSearch | None, expected: Iterable[Trial], data: ImageData) -> list[PlannedStudent]:
    """The students that an adaptive search may choose and that none of the expected trials has."""
    if search is None:
        return []
    known = {trial.student.variant for trial in expected}
    pool = {choice.variant: choice for study in search.studies for choice in study.students}
    return [planned_student(choice, data, 0) for variant, choice in pool.items() if variant not in known]


def _interleaved(trials: Iterable[Trial], spec: SweepSpec) -> list[Trial]:
    """The methods in turn, so that an interrupted sweep has trials of each."""
    queues = dict(_by_method(trials, spec))
    longest = max(map(len, queues.values()), default=0)
    return [queue[number] for number in range(longest) for queue in queues.values() if number < len(queue)]


def _by_method(trials: Iterable[Trial], spec: SweepSpec) -> Iterator[tuple[str, list[Trial]]]:
    grouped: dict[str, list[Trial]] = {method: [] for method in spec.methods or {}}
    for trial in trials:
        grouped[trial.method].append(trial)
    yield from grouped.items()


def _excess(spec: SweepSpec, choice: StudentChoice, data: ImageData) -> str | None:
    """Which limit the student exceeds, as a phrase; None if it exceeds none of the sizes known before training."""
    return over_limit(spec.search.limits, known_sizes(student_size(choice, data))) if spec.search.limits else None


def _adaptive_search(
    spec: SweepSpec, draws: Iterable[Draw], samples: Iterable[Trial], keys: TrialKeys, data: ImageData
) -> AdaptiveSearch:
    def describe(student: StudentChoice, teachers: Sequence[str]) -> Architecture:
        return student_architecture(student, teachers, data.num_classes, data.input_shape)

    def make_trial(draw: Draw) -> Trial | None:
        settled = settle(draw, spec, describe)
        return None if settled is None else keys.make_trial(settled, seed=spec.search.seed, epochs=spec.search.max_epochs)

    studies = plan_studies(
        spec,
        draws,
        allowed=lambda choice: _excess(spec, choice, data) is None,
        size_of=lambda choice: student_size(choice, data).parameters,
    )
    return AdaptiveSearch(spec=spec, studies=tuple(studies), samples=tuple(samples), make_trial=make_trial)
