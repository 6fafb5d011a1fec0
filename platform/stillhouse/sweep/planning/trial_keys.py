"""Keys of trials: a hash of everything that determines a result, and of nothing else."""

from collections.abc import Mapping
from typing import Any

from stillhouse import compress, methods, tasks
from stillhouse.data.datasets import ImageData
from stillhouse.data.views import Views
from stillhouse.durable import content_hash
from stillhouse.knowledge.code_version import named_version
from stillhouse.models.given_weights import content_of
from stillhouse.models.registry import model_options
from stillhouse.spec.controls import teacher_spec
from stillhouse.spec.hyperparameter import plain
from stillhouse.spec.records import TEACHER_JOINT, Phase, StudentChoice, Trial, untrained_name
from stillhouse.spec.schema import SweepSpec, TeacherSpec
from stillhouse.sweep.search.draws import Draw
from stillhouse.teachers.own_normalisation import own_normalisation

KEY_DIGITS = 16
KEY_VERSION = 1


class TrialKeys:
    """Computes the keys of a sweep's trials: hashes of everything that determines a result, and of nothing else.

    The names of sweep and teachers, the home, the machine, the time and the phase are not part of a key. Weights given as a
    file are part of it by the file's content, user-defined methods, models and tasks by their source text, and shipped methods
    by their revision.
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
        self._task = tasks.name_of(data.task)
        if self._task is not None:
            self._common["task"] = self._task
        self._dtype = spec.knowledge.dtype
        self._top_k = [spec.knowledge.top_k, spec.knowledge.tail_draws] if spec.knowledge.top_k else None
        self._teachers = {name: teacher_identity(teacher, data) for name, teacher in spec.teachers.items()}
        self._starts = {student.name: student.start for student in spec.students if student.start}
        self._contents: dict[str, dict[str, str]] = {}
        self._methods = frozenset(spec.methods or ())
        self._own_code: dict[tuple[tuple[str, ...], tuple[str, ...], str | None], str] = {}
        self._teachers |= {untrained_name(name): _untrained_identity(teacher) for name, teacher in spec.teachers.items()}
        self._teacher_models = {name: teacher_spec(spec, name).model for name in self._teachers}

    def own_code(self, method: str, hyperparameters: Mapping[str, Any], student: StudentChoice, teacher: str | None) -> str:
        """The version of the code that a trial runs: method, task, student, teachers.

        Empty if all of it is shipped and is as in the first release.
        """
        run = (method, *methods.find(method).other_methods(hyperparameters))
        operators = tuple(name for entry in student.compress for name in entry)
        combination = run, (student.model, *operators), teacher
        if combination not in self._own_code:
            models = [student.model, *(self._teacher_models[name] for name in (teacher or "").split(TEACHER_JOINT) if name)]
            versions = [*map(methods.version_in_key, run), *map(named_version, models)]
            if self._task is not None:
                versions.append(tasks.own_version(self._task))
            versions += map(compress.version_in_key, operators)
            self._own_code[combination] = content_hash(versions, digits=KEY_DIGITS) if any(versions) else ""
        return self._own_code[combination]

    def _student_identity(self, student: StudentChoice) -> dict[str, Any]:
        """Of a student without operators and origin, the identity of its model, as in the first release."""
        identity = _model_identity(student.model, student.options)
        if student.compress:
            identity["compress"] = student.compress
        if student.derived_from is not None:
            identity["from"] = self._teachers[student.derived_from]
        if student.start:
            identity["start"] = {**student.start, **self._start_content(student)}
        return identity

    def _start_content(self, student: StudentChoice) -> dict[str, str]:
        """The content of the weights that a student starts with; an earlier run may have named them by another path."""
        reference = self._starts.get(student.name, student.start)["weights"]
        if reference not in self._contents:
            self._contents[reference] = content_of(reference)
        return self._contents[reference]

    def is_of_other_code(self, trial: Trial) -> bool:
        """Whether user-defined code or the method's revision has changed since the trial was made."""
        if not self._knows(trial):
            return False
        return trial.own_code != self.own_code(trial.method, trial.hyperparameters, trial.student, trial.teacher)

    def _knows(self, trial: Trial) -> bool:
        """Whether the spec still names the trial's method and its teachers, that of its student's weights included."""
        needed = {*trial.teachers, *([trial.student.derived_from] if trial.student.derived_from else [])}
        started = not trial.student.start or trial.student.name in self._starts
        return started and trial.method in self._methods and self._teacher_models.keys() >= needed

    def stands_for(self, trial: Trial) -> bool:
        """Whether the trial has the key that its settings give now: not if data, code or a teacher's file have changed since.

        True for a trial of a method or a teacher that the spec no longer names.
        """
        if not self._knows(trial):
            return True
        draw = Draw(trial.method, trial.student, trial.teacher, trial.hyperparameters)
        return self.make_trial(draw, seed=trial.seed, epochs=trial.epochs, phase=trial.phase).key == trial.key

    def make_trial(self, draw: Draw, *, seed: int, epochs: int, phase: Phase = "search") -> Trial:
        """The trial with its key."""
        identity: dict[str, Any] = {
            **self._common,
            "student": self._student_identity(draw.student),
            "method": draw.method,
            "hyperparameters": dict(draw.hyperparameters),
            "seed": seed,
            "epochs": epochs,
        }
        if code := self.own_code(draw.method, draw.hyperparameters, draw.student, draw.teacher):
            identity["code"] = code
        if draw.teacher is not None:
            teachers = [self._teachers[name] for name in draw.teacher.split(TEACHER_JOINT)]
            identity["teacher"] = teachers[0] if len(teachers) == 1 else teachers
            identity["dtype"] = self._dtype
            if self._top_k is not None:
                identity["top_k"] = self._top_k
        return Trial(
            key=content_hash(identity, digits=KEY_DIGITS),
            phase=phase,
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
        count=spec.views.count,
        input_shape=data.input_shape,
        num_samples=len(data.train.labels),
        drawn=tasks.of(data).draws,
    )


def teacher_identity(teacher: TeacherSpec, data: ImageData) -> dict[str, Any]:
    """Plain data that is equal if and only if two teachers of one data set and view policy are equal.

    A normalisation counts where it is stated and not that of the data set.
    """
    identity = _model_identity(teacher.model, teacher.options)
    if (stated := own_normalisation(teacher, data)) is not None:
        identity["normalization"] = stated.own.to_json()
    if teacher.weights is None:
        return {**identity, "train": teacher.train.identity()}
    identity |= content_of(teacher.weights)
    identity |= {"rename": teacher.rename} if teacher.rename else {}
    return identity if teacher.head is None else {**identity, "head": teacher.head, "train": teacher.train.identity()}


def _untrained_identity(teacher: TeacherSpec) -> dict[str, Any]:
    """As `teacher_identity`, of the untrained counterpart: given weights, training and normalisation do not belong to it."""
    return {**_model_identity(teacher.model, teacher.options), "untrained": teacher.train.seed}


def _model_identity(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data that is equal for equal models: without options at their defaults, with 1 as 1.0 if the default is a float."""
    defaults = model_options(model)
    typed = {
        name: float(value) if isinstance(defaults.get(name), float) and isinstance(value, int) else value
        for name, value in options.items()
    }
    return {"model": model, "options": {name: value for name, value in typed.items() if value != plain(defaults.get(name))}}
