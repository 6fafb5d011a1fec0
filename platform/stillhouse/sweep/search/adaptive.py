"""An adaptive search as the plan knows it: its studies, their first trials, and how a choice becomes a trial."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stillhouse.spec.records import StudentChoice, Trial, TrialRecord
from stillhouse.spec.schema import SweepSpec
from stillhouse.sweep.search.budget import BudgetTracker
from stillhouse.sweep.search.draws import Draw, list_settings, random_draws, student_variants, teachers_in_turn
from stillhouse.sweep.search.studies import Memory, Study, StudyPlan
from stillhouse.sweep.search.trial_queue import StudyQueue

_RESERVE = 32
"""Random draws that stand in for suggestions which repeat themselves; a study that has used them up is at its end."""


@dataclass(frozen=True, kw_only=True)
class AdaptiveSearch:
    """The part of a plan whose trials are chosen while the sweep runs.

    Attributes:
        studies: in the order of a round: all methods of one student, then those of the next.
        samples: trials that stand for all that may be chosen, to find out what they ask of the teachers.
        make_trial: the trial of a draw; None when the method can not run so.
        memory: what was suggested, so that asking the same again is quick.
    """

    spec: SweepSpec
    studies: tuple[StudyPlan, ...]
    samples: tuple[Trial, ...]
    make_trial: Callable[[Draw], Trial | None]
    memory: Memory = field(default_factory=dict)

    @property
    def num_trials(self) -> int:
        """How many trials are run at most."""
        return sum(study.trials for study in self.studies)

    def queue(
        self,
        records: Mapping[str, TrialRecord],
        budget: BudgetTracker,
        *,
        refuse: Callable[[Trial], bool] = lambda trial: False,
    ) -> StudyQueue:
        """The trials that `records` lack.

        Args:
            refuse: trials that must not start, which the studies are told.
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
    """One study for each method and student that suit each other, with its share of `trials_per_method`.

    Args:
        suited: samples of all methods and students that were found to work.
        allowed: whether a student keeps within the limits.
        size_of: parameters of a student.
    """
    teachers_of: dict[tuple[str, str], set[str | None]] = {}
    for draw in suited:
        teachers_of.setdefault((draw.method, draw.student.name), set()).add(draw.teacher)
    studies = []
    for place, student in enumerate(spec.students):
        students = sorted(filter(allowed, student_variants(spec, student)), key=size_of)
        share = len(range(place, spec.search.trials_per_method, len(spec.students)))
        for method, settings in (spec.methods or {}).items():
            found = teachers_of.get((method, student.name))
            if not found or not students or not share:
                continue
            turns = teachers_in_turn(method, spec)
            # Methods that ask nothing of a teacher are the same with each.
            teachers = [name for name in turns if name in found] or turns[:1]
            drawn = [
                _fitting(draw, number, students, teachers)
                for number, draw in enumerate(random_draws(spec, method, student, spec.search.startup_trials + _RESERVE))
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


def _fitting(draw: Draw, number: int, students: Sequence[StudentChoice], teachers: Sequence[str | None]) -> Draw:
    """The draw with another student or teacher where its own is not to be had."""
    student = draw.student if draw.student in students else students[number % len(students)]
    teacher = draw.teacher if draw.teacher in teachers else teachers[number % len(teachers)]
    return Draw(draw.method, student, teacher, draw.hyperparameters)


def _every_point(
    method: str,
    settings: Mapping[str, Any],
    students: Sequence[StudentChoice],
    teachers: Sequence[str | None],
    trials: int,
) -> list[Draw] | None:
    """All points there are; None when they are more than the trials."""
    rows = list_settings(settings, trials)
    if rows is None or len(rows) * len(students) * len(teachers) > trials:
        return None
    return [Draw(method, student, teacher, row) for student in students for teacher in teachers for row in rows]


def _distinct(draws: Iterable[Draw]) -> list[Draw]:
    return list({repr(draw): draw for draw in draws}.values())
