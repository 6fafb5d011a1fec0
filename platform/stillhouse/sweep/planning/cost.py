"""What a plan costs before anything is trained: each student's size, and the multiply-accumulates of students and teachers."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from stillhouse import methods
from stillhouse.compress.students import chain_of, student_blueprint
from stillhouse.data.datasets import ImageData
from stillhouse.models.blueprint import blueprint
from stillhouse.models.size import ModelSize
from stillhouse.spec.networks import start_words
from stillhouse.spec.records import StudentChoice, Trial
from stillhouse.spec.schema import SweepSpec
from stillhouse.sweep.planning.trial_keys import make_views
from stillhouse.sweep.search.adaptive import AdaptiveSearch

# The forward and backward passes of a network cost about three forward passes: one more for the gradients of its inputs and
# one for those of its weights.
_TRAINING_PASSES = 3


@dataclass(frozen=True, kw_only=True)
class PlannedStudent:
    """A student that trials train, and how many of them do.

    Attributes:
        compression: its operators, readable.
        estimated: whether its size depends on weights that are not known yet.
    """

    student: StudentChoice
    size: ModelSize
    trials: int
    compression: str = ""
    estimated: bool = False

    @property
    def changes(self) -> list[str]:
        """Where the student's weights come from, and its operators; empty for a new model as it is."""
        source = self.student.derived_from
        if self.student.start:
            return [start_words(self.student.start), *([self.compression] if self.compression else [])]
        return [*([f"from {source}"] if source else []), *([self.compression] if self.compression else [])]


@dataclass(frozen=True, kw_only=True)
class PlannedTeacher:
    """A teacher, how many trials use it, and whether it must be trained if that was never done.

    Attributes:
        derived: how many trials train a student that begins with its weights.
        start: the given weights from which its training begins, readable; empty for new weights, and if it is not trained.
    """

    name: str
    model: str
    options: Mapping[str, Any]
    size: ModelSize
    trials: int
    trains: bool
    derived: int = 0
    start: str = ""

    @property
    def is_needed(self) -> bool:
        return self.trials > 0 or self.derived > 0


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Multiply-accumulates of the search phase; training counts three times the forward pass.

    Attributes:
        teacher_shared: one forward pass of each teacher over the views that the trials read; calls on generated inputs are
            not counted.
        teacher_inside: the same knowledge with the teacher inside every trial.
        teacher_training: training the teachers that are trained, if that was never done.
    """

    students: int
    teacher_shared: int
    teacher_inside: int
    teacher_training: int
    samples_forwarded: int
    samples_inside: int

    @property
    def ratio_shared(self) -> float:
        """Students and shared teachers over students alone."""
        return 1 + self.teacher_shared / self.students if self.students else 1.0

    @property
    def ratio_inside(self) -> float:
        """Students with a teacher inside every trial over students alone."""
        return 1 + self.teacher_inside / self.students if self.students else 1.0


def planned_students(trials: Iterable[Trial], data: ImageData) -> tuple[PlannedStudent, ...]:
    choices: dict[str, StudentChoice] = {}
    counts: Counter[str] = Counter()
    for trial in trials:
        text = trial.student.variant
        choices.setdefault(text, trial.student)
        counts[text] += 1
    return tuple(planned_student(choice, data, counts[text]) for text, choice in choices.items())


def planned_student(choice: StudentChoice, data: ImageData, trials: int) -> PlannedStudent:
    known = student_blueprint(choice, data.num_classes, data.input_shape)
    return PlannedStudent(
        student=choice,
        size=known.size,
        trials=trials,
        compression=chain_of(choice).readable,
        estimated=known.estimated,
    )


def student_size(choice: StudentChoice, data: ImageData) -> ModelSize:
    return student_blueprint(choice, data.num_classes, data.input_shape).size


def planned_teachers(spec: SweepSpec, trials: Iterable[Trial], data: ImageData) -> tuple[PlannedTeacher, ...]:
    trials = list(trials)
    counts = Counter(name for trial in trials for name in trial.teachers)
    derived = Counter(trial.student.derived_from for trial in trials)
    return tuple(
        PlannedTeacher(
            name=name,
            model=teacher.model,
            options=teacher.options,
            size=blueprint(teacher.model, teacher.options, data.num_classes, data.input_shape).size,
            trials=counts[name],
            trains=teacher.is_trained,
            start=teacher.start,
            derived=derived[name],
        )
        for name, teacher in spec.teachers.items()
    )


def estimate_cost(
    spec: SweepSpec,
    trials: Iterable[Trial],
    students: Iterable[PlannedStudent],
    teachers: Iterable[PlannedTeacher],
    data: ImageData,
) -> Cost:
    samples = len(data.train.labels)
    epochs = spec.search.max_epochs
    # All search trials have one seed, hence one order of the views: e epochs see the first e of it.
    seen = min(make_views(spec, data).count, epochs) * samples
    # How often trials call the teacher on generated inputs is known only after they ran.
    reading = Counter(name for trial in trials if not methods.find(trial.method).calls_teacher for name in trial.teachers)
    used = [teacher for teacher in teachers if teacher.is_needed]
    read = [teacher for teacher in teachers if reading[teacher.name]]
    return Cost(
        students=sum(_TRAINING_PASSES * planned.size.macs * planned.trials * samples * epochs for planned in students),
        teacher_shared=sum(teacher.size.macs * seen for teacher in read),
        teacher_inside=sum(teacher.size.macs * reading[teacher.name] * samples * epochs for teacher in read),
        teacher_training=sum(
            _TRAINING_PASSES * teacher.size.macs * samples * spec.teachers[teacher.name].train.epochs
            for teacher in used
            if teacher.trains
        ),
        samples_forwarded=seen * len(read),
        samples_inside=samples * epochs * sum(reading.values()),
    )


def expected_trials(search: AdaptiveSearch, known: Iterable[Trial]) -> list[Trial]:
    """As many trials as the search will run, each study's first ones over and over, to estimate its cost."""
    first: dict[tuple[str, str], list[Trial]] = {}
    for trial in known:
        first.setdefault((trial.method, trial.student.name), []).append(trial)
    return [
        own[number % len(own)]
        for study in search.studies
        if (own := first.get((study.method, study.label)))
        for number in range(study.trials)
    ]
