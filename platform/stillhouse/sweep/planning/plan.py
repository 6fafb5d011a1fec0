"""The plan: the trials that a spec implies, each student's size before it is trained, and what the teachers will cost."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from stillhouse import methods
from stillhouse.data.datasets import ImageData
from stillhouse.data.views import Views
from stillhouse.distill.hyperparameters import plain
from stillhouse.durable import bytes_hash, canonical_json, content_hash
from stillhouse.errors import Problem, SpecError
from stillhouse.knowledge.code import named_version
from stillhouse.models.architecture import Architecture
from stillhouse.models.blueprint import blueprint
from stillhouse.models.registry import model_options
from stillhouse.models.size import ModelSize
from stillhouse.models.size_limits import known_sizes, over_limit
from stillhouse.spec.priors import Prior
from stillhouse.spec.records import TEACHER_JOINT, StudentChoice, Trial, TrialRecord
from stillhouse.spec.schema import ADAPTIVE, SearchBudget, SweepSpec, TeacherSpec
from stillhouse.sweep.planning.spec_check import MLFLOW, TORCHVISION, Skipped, survey
from stillhouse.sweep.search.adaptive import AdaptiveSearch, plan_studies, settle
from stillhouse.sweep.search.budget import BudgetTracker
from stillhouse.sweep.search.draws import Draw
from stillhouse.sweep.search.trial_queue import ListQueue, TrialQueue, start_queue

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
        teacher_shared: each teacher's forward pass over the views that the trials see, once; calls on inputs of a method's
            own making are left out.
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
        trials: of the search phase, in the order in which they start; of an adaptive search, those that are known before
            any result.
        search: chooses the other trials of an adaptive search; None for the other algorithms.
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
    search: AdaptiveSearch | None = None

    @property
    def num_trials(self) -> int:
        """How many trials the search phase has, at most for an adaptive search."""
        return len(self.trials) if self.search is None else self.search.num_trials

    @property
    def trials_per_method(self) -> Counter[str]:
        """How many trials each method has, at most for an adaptive search."""
        if self.search is None:
            return Counter(trial.method for trial in self.trials)
        counts: Counter[str] = Counter()
        for study in self.search.studies:
            counts[study.method] += study.trials
        return counts

    @property
    def representative_trials(self) -> tuple[Trial, ...]:
        """Trials that ask everything of the teachers that any trial will, as far as can be foreseen."""
        return self.trials if self.search is None else (*self.trials, *self.search.samples)

    def queue(
        self,
        records: Mapping[str, TrialRecord],
        budget: BudgetTracker,
        *,
        refuse: Callable[[Trial], bool] = lambda trial: False,
    ) -> TrialQueue:
        """Hands out the trials of the search phase that `records` lack.

        Args:
            refuse: trials that must not start.
        """
        if self.search is not None:
            return self.search.queue(records, budget, refuse=refuse)
        return ListQueue(self.trials, records, budget, refuse=refuse)

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
            "planned": self.num_trials,
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
            "studies": [
                {"method": study.method, "student": study.label, "trials": study.trials}
                for study in (self.search.studies if self.search else ())
            ],
            "skipped": [asdict(item) for item in self.skipped],
            "duplicates": dict(self.duplicates),
            "cost": {**asdict(self.cost), "ratio_shared": self.cost.ratio_shared, "ratio_inside": self.cost.ratio_inside},
            "notes": list(self.notes),
        }


class TrialKeys:
    """Keys of a sweep's trials: hashes of all that decides a result, and of nothing else.

    The names of sweep and teachers, the home, the machine, the time and the phase are left out. Weights given as a file
    count by the file's content, methods and models of the user's own by their text.
    """

    def __init__(self, spec: SweepSpec, data: ImageData) -> None:
        views = make_views(spec, data)
        self._common = {
            "version": KEY_VERSION,
            "data": data.fingerprint,
            "split": [len(data.train.labels), len(data.validation.labels)],
            "views": {**views.identity(), "count": views.count},
            "training": spec.training.identity(),
        }
        self._dtype = spec.knowledge.dtype
        self._top_k = [spec.knowledge.top_k, spec.knowledge.tail_draws] if spec.knowledge.top_k else None
        self._teachers = {name: teacher_identity(teacher) for name, teacher in spec.teachers.items()}
        self._methods = frozenset(spec.methods or ())
        self._own_code: dict[tuple[str, str, str | None], str] = {}
        self._teacher_models = {name: teacher.model for name, teacher in spec.teachers.items()}

    def own_code(self, method: str, student: StudentChoice, teacher: str | None) -> str:
        """The version of all code of the user's own that a trial runs: method, student and teachers; empty where it is none."""
        place = method, student.model, teacher
        if place not in self._own_code:
            models = [student.model, *(self._teacher_models[name] for name in (teacher or "").split(TEACHER_JOINT) if name)]
            versions = [methods.own_version(method), *map(named_version, models)]
            self._own_code[place] = content_hash(versions, digits=KEY_DIGITS) if any(versions) else ""
        return self._own_code[place]

    def is_of_other_code(self, trial: Trial) -> bool:
        """Whether the text of a method or model of the user's own has changed since the trial was made."""
        if trial.method not in self._methods or not self._teacher_models.keys() >= {*trial.teachers}:
            return False
        return trial.own_code != self.own_code(trial.method, trial.student, trial.teacher)

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
        if code := self.own_code(draw.method, draw.student, draw.teacher):
            identity["code"] = code
        if draw.teacher is not None:
            teachers = [self._teachers[name] for name in draw.teacher.split(TEACHER_JOINT)]
            identity["teacher"] = teachers[0] if len(teachers) == 1 else teachers
            identity["dtype"] = self._dtype
            if self._top_k is not None:
                identity["top_k"] = self._top_k
        return Trial(
            key=content_hash(identity, digits=KEY_DIGITS),
            phase="confirm" if phase == "confirm" else "search",
            student=draw.student,
            method=draw.method,
            hyperparameters=dict(draw.hyperparameters),
            teacher=draw.teacher,
            seed=seed,
            epochs=epochs,
            own_code=code,
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
        return {**identity, "train": teacher.train.identity()}
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
    too_large: dict[str, tuple[str, int]] = {}
    for draw in found.draws:
        if (excess := _excess(spec, draw.student, data)) is not None:
            _, count = too_large.get(draw.student.name, ("", 0))
            too_large[draw.student.name] = (excess, count + 1)
            continue
        trial = keys.make_trial(draw, seed=spec.search.seed, epochs=spec.search.max_epochs)
        if trial.key in trials:
            duplicates[trial.method] += 1
        else:
            trials[trial.key] = trial
    if found.draws and not trials:
        raise SpecError([Problem("search.limits", f"must leave a student: {next(iter(too_large.values()))[0]}")])
    search = None
    ordered = expected = _interleaved(trials.values(), spec)
    if spec.search.algorithm in ADAPTIVE:
        search = _adaptive_search(spec, found.draws, trials.values(), keys, data)
        ordered = start_queue(search.queue({}, BudgetTracker(SearchBudget())))
        expected = _expected(search, ordered)
        duplicates = Counter()
    students = _planned_students(expected, data)
    if search is not None:
        known = {_student_text(planned.student) for planned in students}
        pool = {_student_text(choice): choice for study in search.studies for choice in study.students}
        students += tuple(
            PlannedStudent(student=choice, size=_size(choice, data), trials=0)
            for text, choice in pool.items()
            if text not in known
        )
    teachers = _planned_teachers(spec, expected, data)
    return Plan(
        spec=spec,
        trials=tuple(ordered),
        search=search,
        students=students,
        teachers=teachers,
        skipped=tuple(found.skipped),
        duplicates=dict(duplicates),
        confirm_trials=_count_confirm(spec, ordered),
        cost=_cost(spec, expected, students, teachers, data),
        notes=(
            *found.notes,
            *_skip_notes(found.skipped),
            *_limit_notes(too_large, search),
            *_duplicate_notes(duplicates),
            *_search_notes(search, ordered, students),
            *_budget_notes(spec.search.budget),
        ),
        keys=keys,
    )


def confirm_trials(
    spec: SweepSpec, plan: Plan, records: Iterable[TrialRecord], searched: Iterable[Trial] | None = None
) -> list[Trial]:
    """The best finished search trial of each (method, student label) again, on `search.confirm_seeds` fresh seeds.

    The baseline also runs with the very student of each winner, so that every gain is a difference of pairs.

    Args:
        searched: the trials of the search phase; those of the plan by default.
    """
    candidates = list(plan.trials if searched is None else searched)
    order = {trial.key: place for place, trial in enumerate(candidates)}
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
        trial = candidates[order[record.trial.key]]
        best.setdefault((trial.method, trial.student.name), trial)
        if trial.method == baseline:
            controls.setdefault(_student_text(trial.student), trial)
    wanted: list[Trial] = []
    for winner in sorted(best.values(), key=lambda trial: order[trial.key]):
        control = controls.get(_student_text(winner.student))
        if control is None and (best_control := best.get((baseline, winner.student.name))) is not None:
            # An adaptive search may not have tried the baseline with this very student.
            control = best_control.model_copy(update={"student": winner.student})
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
            size=_size(choice, data),
            trials=counts[text],
        )
        for text, choice in choices.items()
    )


def _size(choice: StudentChoice, data: ImageData) -> ModelSize:
    return blueprint(choice.model, choice.options, data.num_classes, data.input_shape).size


def _excess(spec: SweepSpec, choice: StudentChoice, data: ImageData) -> str | None:
    """Which limit the student exceeds, in words, as far as is known before anything runs."""
    return over_limit(spec.search.limits, known_sizes(_size(choice, data))) if spec.search.limits else None


def _adaptive_search(
    spec: SweepSpec, draws: Iterable[Draw], samples: Iterable[Trial], keys: "TrialKeys", data: ImageData
) -> AdaptiveSearch:
    def describe(model: str, options: Mapping[str, Any]) -> Architecture:
        return blueprint(model, options, data.num_classes, data.input_shape).architecture

    def make_trial(draw: Draw) -> Trial | None:
        settled = settle(draw, spec, describe)
        return None if settled is None else keys.make_trial(settled, seed=spec.search.seed, epochs=spec.search.max_epochs)

    studies = plan_studies(
        spec,
        draws,
        allowed=lambda choice: _excess(spec, choice, data) is None,
        size_of=lambda choice: _size(choice, data).parameters,
    )
    return AdaptiveSearch(spec=spec, studies=tuple(studies), samples=tuple(samples), make_trial=make_trial)


def _expected(search: AdaptiveSearch, known: Iterable[Trial]) -> list[Trial]:
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
    # What trials call on inputs of their own making is known only behind them.
    reading = Counter(name for trial in trials if not methods.find(trial.method).calls_teacher for name in trial.teachers)
    asked = [teacher for teacher in teachers if teacher.trials]
    read = [teacher for teacher in teachers if reading[teacher.name]]
    return Cost(
        students=sum(_TRAINING_PASSES * planned.size.macs * planned.trials * samples * epochs for planned in students),
        teacher_shared=sum(teacher.size.macs * seen for teacher in read),
        teacher_inside=sum(teacher.size.macs * reading[teacher.name] * samples * epochs for teacher in read),
        teacher_training=sum(
            _TRAINING_PASSES * teacher.size.macs * samples * spec.teachers[teacher.name].train.epochs
            for teacher in asked
            if teacher.trains
        ),
        samples_forwarded=seen * len(read),
        samples_inside=samples * epochs * sum(reading.values()),
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


def _limit_notes(too_large: Mapping[str, tuple[str, int]], search: AdaptiveSearch | None) -> list[str]:
    if search is not None:
        return [
            f"{student}: variants over search.limits are never chosen: {excess}" for student, (excess, _) in too_large.items()
        ]
    return [
        f"{student}: {count} trial{'s' if count > 1 else ''} dropped by search.limits: {excess}"
        for student, (excess, count) in too_large.items()
    ]


def _search_notes(search: AdaptiveSearch | None, known: Sequence[Trial], students: Sequence[PlannedStudent]) -> list[str]:
    if search is None:
        return []
    sizes = [planned.size.parameters for planned in students]
    return [
        f"{search.spec.search.algorithm} searches in {len(search.studies)} studies, one for each method and student: "
        f"{len(known)} of {search.num_trials} trials are known now, the others are chosen as results come in, from students of "
        f"{min(sizes):,} to {max(sizes):,} parameters; trials by student and costs are estimated from the first ones"
    ]


def _budget_notes(budget: SearchBudget) -> list[str]:
    given = [f"{value:g} {name.replace('_', '-')}" for name, value in budget.model_dump().items() if value is not None]
    return [f"search.budget: no trial starts beyond {' or '.join(given)} in all"] * bool(given)


def _duplicate_notes(duplicates: Mapping[str, int]) -> list[str]:
    return [
        f"{method}: {count} trial{'s' if count > 1 else ''} dropped, equal to others in all settings"
        for method, count in duplicates.items()
    ]


def _student_text(student: StudentChoice) -> str:
    """Equal for equal entries with equal options."""
    return canonical_json([student.name, student.model, student.options])
