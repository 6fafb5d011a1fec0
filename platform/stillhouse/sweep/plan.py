"""The plan: the trials that a spec implies, each student's size before it is trained, and what the teachers will cost."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from stillhouse import methods
from stillhouse.data.datasets import ImageData
from stillhouse.data.views import Views
from stillhouse.durable import bytes_hash, canonical_json, content_hash
from stillhouse.errors import SpecError
from stillhouse.models.registry import model_options
from stillhouse.models.size import ModelSize
from stillhouse.spec.priors import Prior
from stillhouse.spec.records import TEACHER_JOINT, StudentChoice, Trial, TrialRecord
from stillhouse.spec.schema import SweepSpec, TeacherSpec
from stillhouse.sweep.blueprint import blueprint
from stillhouse.sweep.check import MLFLOW, TORCHVISION, Skipped, survey
from stillhouse.sweep.draw import Draw
from stillhouse.sweep.hyperparameters import plain

KEY_DIGITS = 16
KEY_VERSION = 1
# Forward and backward pass of a network cost about three forward passes: one more for the gradient of the inputs and one
# for that of the weights.
_TRAINING_PASSES = 3


@dataclass(frozen=True, kw_only=True)
class PlannedStudent:
    """A student that trials train, and how many of them do."""

    student: StudentChoice
    size: ModelSize
    trials: int


@dataclass(frozen=True, kw_only=True)
class PlannedTeacher:
    """A teacher, how many trials ask something of it, and whether it must be trained if it never was."""

    name: str
    model: str
    options: Mapping[str, Any]
    size: ModelSize
    trials: int
    trains: bool


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Multiply-accumulates of the search phase; training counts three times the forward pass.

    Attributes:
        teacher_shared: each teacher's forward pass over the views that the trials see, once.
        teacher_inside: the same knowledge with the teacher inside every trial.
        teacher_training: training the teachers that are not given, if that was never done.
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


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a sweep will do.

    Attributes:
        spec: with every method and hyper-parameter spelled out.
        trials: of the search phase, in the order in which they start.
        duplicates: trials dropped since another one has all the same settings, by method.
        confirm_trials: how many trials the confirm phase adds at most.
    """

    spec: SweepSpec
    trials: tuple[Trial, ...]
    students: tuple[PlannedStudent, ...]
    teachers: tuple[PlannedTeacher, ...]
    skipped: tuple[Skipped, ...]
    duplicates: Mapping[str, int]
    confirm_trials: int
    cost: Cost
    notes: tuple[str, ...]
    keys: "TrialKeys"

    def size_of(self, trial: Trial) -> ModelSize:
        """The size of the trial's student."""
        return self._sizes[_student_text(trial.student)]

    @cached_property
    def _sizes(self) -> Mapping[str, ModelSize]:
        return {_student_text(planned.student): planned.size for planned in self.students}

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data."""
        return {
            "sweep": self.spec.name,
            "planned": len(self.trials),
            "confirm_trials": self.confirm_trials,
            "trials": [trial.model_dump(mode="json") for trial in self.trials],
            "students": [
                {**planned.student.model_dump(mode="json"), **asdict(planned.size), "trials": planned.trials}
                for planned in self.students
            ],
            "teachers": [
                {
                    "name": teacher.name,
                    "model": teacher.model,
                    "options": dict(teacher.options),
                    **asdict(teacher.size),
                    "trials": teacher.trials,
                    "trains": teacher.trains,
                }
                for teacher in self.teachers
            ],
            "skipped": [asdict(item) for item in self.skipped],
            "duplicates": dict(self.duplicates),
            "cost": {**asdict(self.cost), "ratio_shared": self.cost.ratio_shared, "ratio_inside": self.cost.ratio_inside},
            "notes": list(self.notes),
        }


class TrialKeys:
    """Keys of a sweep's trials: hashes of all that decides a result, and of nothing else.

    The names of sweep and teachers, the home, the machine, the time and the phase are left out. Weights given as a file
    count by the file's content.
    """

    def __init__(self, spec: SweepSpec, data: ImageData) -> None:
        views = make_views(spec, data)
        self._common = {
            "version": KEY_VERSION,
            "data": data.fingerprint,
            "split": [len(data.train.labels), len(data.validation.labels)],
            "views": {**views.identity(), "count": views.count},
            "training": spec.training.model_dump(mode="json"),
        }
        self._dtype = spec.knowledge.dtype
        self._teachers = {name: teacher_identity(teacher) for name, teacher in spec.teachers.items()}

    def make_trial(self, draw: Draw, *, seed: int, epochs: int, phase: str = "search") -> Trial:
        """The trial with its key."""
        identity: dict[str, Any] = {
            **self._common,
            "student": _model_identity(draw.student.model, draw.student.options),
            "method": draw.method,
            "hyperparameters": dict(draw.hyperparameters),
            "seed": seed,
            "epochs": epochs,
        }
        if draw.teacher is not None:
            teachers = [self._teachers[name] for name in draw.teacher.split(TEACHER_JOINT)]
            identity["teacher"] = teachers[0] if len(teachers) == 1 else teachers
            identity["dtype"] = self._dtype
        return Trial(
            key=content_hash(identity, digits=KEY_DIGITS),
            phase="confirm" if phase == "confirm" else "search",
            student=draw.student,
            method=draw.method,
            hyperparameters=dict(draw.hyperparameters),
            teacher=draw.teacher,
            seed=seed,
            epochs=epochs,
        )


def make_views(spec: SweepSpec, data: ImageData) -> Views:
    """The views that all trials of the sweep share; they do not depend on the seed of the search."""
    return Views(
        policy=spec.views.policy,
        count=spec.views.distinct,
        input_shape=data.input_shape,
        num_samples=len(data.train.labels),
    )


def teacher_identity(teacher: TeacherSpec) -> dict[str, Any]:
    """Plain data that is equal if and only if two teachers of one data set and view policy are."""
    identity = _model_identity(teacher.model, teacher.options)
    if teacher.weights is None:
        return {**identity, "train": teacher.train.model_dump(mode="json")}
    if teacher.weights.startswith((TORCHVISION, MLFLOW)):
        return {**identity, "weights": teacher.weights}
    with open(teacher.weights, "rb") as file:  # noqa: PTH123
        return {**identity, "weights": bytes_hash(file.read())}


def _model_identity(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Equal for equal models: options at their defaults are left out, 1 is 1.0 where the default is a float."""
    defaults = model_options(model)
    typed = {
        name: float(value) if isinstance(defaults.get(name), float) and isinstance(value, int) else value
        for name, value in options.items()
    }
    return {"model": model, "options": {name: value for name, value in typed.items() if value != plain(defaults.get(name))}}


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
    trials: dict[str, Trial] = {}
    duplicates: Counter[str] = Counter()
    for draw in found.draws:
        trial = keys.make_trial(draw, seed=spec.search.seed, epochs=spec.search.max_epochs)
        if trial.key in trials:
            duplicates[trial.method] += 1
        else:
            trials[trial.key] = trial
    ordered = _interleaved(trials.values(), spec)
    students = _planned_students(ordered, data)
    teachers = _planned_teachers(spec, ordered, data)
    return Plan(
        spec=spec,
        trials=tuple(ordered),
        students=students,
        teachers=teachers,
        skipped=tuple(found.skipped),
        duplicates=dict(duplicates),
        confirm_trials=_count_confirm(spec, ordered),
        cost=_cost(spec, ordered, students, teachers, data),
        notes=(*found.notes, *_skip_notes(found.skipped), *_duplicate_notes(duplicates)),
        keys=keys,
    )


def confirm_trials(spec: SweepSpec, plan: Plan, records: Iterable[TrialRecord]) -> list[Trial]:
    """The best finished search trial of each (method, student label) again, on `search.confirm_seeds` fresh seeds.

    The baseline also runs with the very student of each winner, so that every gain is a difference of pairs.
    """
    order = {trial.key: place for place, trial in enumerate(plan.trials)}
    finished = [
        record
        for record in records
        if record.status == "finished" and record.trial.key in order and "validation_accuracy" in record.metrics
    ]
    finished.sort(key=lambda record: (-record.metrics["validation_accuracy"], order[record.trial.key]))
    best: dict[tuple[str, str], Trial] = {}
    baseline = methods.baseline()
    controls: dict[str, Trial] = {}
    for record in finished:
        trial = plan.trials[order[record.trial.key]]
        best.setdefault((trial.method, trial.student.name), trial)
        if trial.method == baseline:
            controls.setdefault(_student_text(trial.student), trial)
    wanted: list[Trial] = []
    for winner in sorted(best.values(), key=lambda trial: order[trial.key]):
        control = controls.get(_student_text(winner.student))
        wanted += [*([control] if control is not None else []), winner]
    confirmed: dict[str, Trial] = {}
    for trial in wanted:
        draw = Draw(trial.method, trial.student, trial.teacher, trial.hyperparameters)
        for offset in range(1, spec.search.confirm_seeds + 1):
            again = plan.keys.make_trial(draw, seed=spec.search.seed + offset, epochs=trial.epochs, phase="confirm")
            confirmed.setdefault(again.key, again)
    return list(confirmed.values())


def _interleaved(trials: Iterable[Trial], spec: SweepSpec) -> list[Trial]:
    """The methods in turn, so that an interrupted sweep has something of each."""
    queues = dict(_by_method(trials, spec))
    longest = max(map(len, queues.values()), default=0)
    return [queue[place] for place in range(longest) for queue in queues.values() if place < len(queue)]


def _by_method(trials: Iterable[Trial], spec: SweepSpec) -> Iterator[tuple[str, list[Trial]]]:
    grouped: dict[str, list[Trial]] = {method: [] for method in spec.methods or {}}
    for trial in trials:
        grouped[trial.method].append(trial)
    yield from grouped.items()


def _planned_students(trials: Iterable[Trial], data: ImageData) -> tuple[PlannedStudent, ...]:
    choices: dict[str, StudentChoice] = {}
    counts: Counter[str] = Counter()
    for trial in trials:
        text = _student_text(trial.student)
        choices.setdefault(text, trial.student)
        counts[text] += 1
    return tuple(
        PlannedStudent(
            student=choice,
            size=blueprint(choice.model, choice.options, data.num_classes, data.input_shape).size,
            trials=counts[text],
        )
        for text, choice in choices.items()
    )


def _planned_teachers(spec: SweepSpec, trials: Iterable[Trial], data: ImageData) -> tuple[PlannedTeacher, ...]:
    counts = Counter(name for trial in trials for name in trial.teachers)
    return tuple(
        PlannedTeacher(
            name=name,
            model=teacher.model,
            options=teacher.options,
            size=blueprint(teacher.model, teacher.options, data.num_classes, data.input_shape).size,
            trials=counts[name],
            trains=teacher.weights is None,
        )
        for name, teacher in spec.teachers.items()
    )


def _cost(
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
    asked = [teacher for teacher in teachers if teacher.trials]
    return Cost(
        students=sum(_TRAINING_PASSES * planned.size.macs * planned.trials * samples * epochs for planned in students),
        teacher_shared=sum(teacher.size.macs * seen for teacher in asked),
        teacher_inside=sum(teacher.size.macs * teacher.trials * samples * epochs for teacher in asked),
        teacher_training=sum(
            _TRAINING_PASSES * teacher.size.macs * samples * spec.teachers[teacher.name].train.epochs
            for teacher in asked
            if teacher.trains
        ),
        samples_forwarded=seen * len(asked),
        samples_inside=samples * epochs * sum(teacher.trials for teacher in asked),
    )


def _count_confirm(spec: SweepSpec, trials: Iterable[Trial]) -> int:
    """Winners and, where students are searched, the control for each of them."""
    searched = {
        student.name for student in spec.students if any(isinstance(value, Prior) for value in student.options.values())
    }
    pairs = {(trial.method, trial.student.name) for trial in trials}
    methods_of = Counter(student for _, student in pairs)
    controls = sum(methods_of[student] - 1 for student in searched if methods_of[student])
    return spec.search.confirm_seeds * (len(pairs) + controls)


def _skip_notes(skipped: Iterable[Skipped]) -> list[str]:
    return [
        f"{item.method} is left out for {item.student}{f' with {item.teacher}' if item.teacher else ''}: {item.reason}"
        for item in skipped
    ]


def _duplicate_notes(duplicates: Mapping[str, int]) -> list[str]:
    return [
        f"{method}: {count} trial{'s' if count > 1 else ''} dropped, equal to others in all settings"
        for method, count in duplicates.items()
    ]


def _student_text(student: StudentChoice) -> str:
    """Equal for equal entries with equal options."""
    return canonical_json([student.name, student.model, student.options])
