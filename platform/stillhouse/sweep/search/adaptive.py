"""An adaptive search as planned: its studies, their first trials, and how a draw becomes a trial."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stillhouse.spec.records import StudentChoice, Trial, TrialRecord
from stillhouse.spec.schema import SweepSpec
from stillhouse.sweep.search.budget import BudgetTracker
from stillhouse.sweep.search.draws import Draw, list_settings, random_draws, student_variants, teachers_in_turn
from stillhouse.sweep.search.optuna_studies import Memory, Study, StudyPlan
from stillhouse.sweep.search.trial_queue import StudyQueue

_RESERVE = 32
"""Random draws that replace duplicate suggestions; a study that has used them up ends."""


@dataclass(frozen=True, kw_only=True)
class AdaptiveSearch:
    """The part of a plan whose trials are chosen while the sweep runs.

    Attributes:
        studies: in the order of a round: all methods of one student, then those of the next.
        samples: trials that represent all that may be chosen, to know what they need of the teachers.
        make_trial: the trial of a draw; None when it cannot run.
        memory: earlier suggestions, so that a replay is fast.
    """

    spec: SweepSpec
    studies: tuple[StudyPlan, ...]
    samples: tuple[Trial, ...]
    make_trial: Callable[[Draw], Trial | None]
    memory: Memory = field(default_factory=dict)

    @property
    def num_trials(self) -> int:
        """How many trials the search has at most."""
        return sum(study.trials for study in self.studies)

    def queue(
        self,
        records: Mapping[str, TrialRecord],
        budget: BudgetTracker,
        *,
        refuse: Callable[[Trial], bool] = lambda trial: False,
    ) -> StudyQueue:
        """The trials that have no record.

        Args:
            refuse: trials that must not start, which is reported to the studies.
        """

        def allowed(draw: Draw) -> Trial | None:
            trial = self.make_trial(draw)
            return None if trial is None or refuse(trial) else trial

        search = self.spec.search
        studies = [
            Study(
                study,
                algorithm=search.algorithm,
                objectives=self.spec.objectives,
                seed=search.seed,
                startup_trials=search.startup_trials,
                ahead=search.trials_ahead,
                make_trial=allowed,
                memory=self.memory,
            )
            for study in self.studies
        ]
        return StudyQueue(studies, records, budget, lead=search.trials_ahead)


def plan_studies(
    spec: SweepSpec,
    suited: Iterable[Draw],
    *,
    allowed: Callable[[StudentChoice], bool],
    size_of: Callable[[StudentChoice], float],
) -> list[StudyPlan]:
    """One study for each method and student that fit each other, with its share of `trials_per_method`.

    Args:
        suited: sample draws of all methods and students that can run.
        allowed: whether a student is within the limits.
        size_of: the number of parameters of a student.
    """
    teachers_of: dict[tuple[str, str], set[str | None]] = {}
    for draw in suited:
        teachers_of.setdefault((draw.method, draw.student.name), set()).add(draw.teacher)
    studies = []
    for number, student in enumerate(spec.students):
        students = sorted(filter(allowed, student_variants(spec, student)), key=size_of)
        share = len(range(number, spec.search.trials_per_method, len(spec.students)))
        for method, settings in (spec.methods or {}).items():
            found = teachers_of.get((method, student.name))
            if not found or not students or not share:
                continue
            turns = teachers_in_turn(method, spec)
            # A method that needs no teacher gives the same trial with each.
            teachers = [name for name in turns if name in found] or turns[:1]
            drawn = [
                _fitting(draw, count, students, teachers)
                for count, draw in enumerate(random_draws(spec, method, student, spec.search.startup_trials + _RESERVE))
            ]
            trials = share
            first, reserve = drawn[: min(share, spec.search.startup_trials)], drawn[spec.search.startup_trials :]
            every = _every_point(method, settings, students, teachers, share)
            if every is not None:
                first, reserve = _distinct([*first, *every]), []
                trials = len(first)
            studies.append(
                StudyPlan(
                    method=method,
                    label=student.name,
                    settings=settings,
                    students=tuple(students),
                    teachers=tuple(teachers),
                    trials=trials,
                    fixed=tuple(first),
                    reserve=tuple(reserve),
                )
            )
    return studies


def _fitting(draw: Draw, count: int, students: Sequence[StudentChoice], teachers: Sequence[str | None]) -> Draw:
    """The draw, with another student or teacher if its own is not available."""
    student = draw.student if draw.student in students else students[count % len(students)]
    teacher = draw.teacher if draw.teacher in teachers else teachers[count % len(teachers)]
    return Draw(draw.method, student, teacher, draw.hyperparameters)


def _every_point(
    method: str,
    settings: Mapping[str, Any],
    students: Sequence[StudentChoice],
    teachers: Sequence[str | None],
    trials: int,
) -> list[Draw] | None:
    """All points of the search space; None when there are more of them than trials."""
    rows = list_settings(settings, trials)
    if rows is None or len(rows) * len(students) * len(teachers) > trials:
        return None
    return [Draw(method, student, teacher, row) for student in students for teacher in teachers for row in rows]


def _distinct(draws: Iterable[Draw]) -> list[Draw]:
    return list({repr(draw): draw for draw in draws}.values())
