"""Whether a method with its hyper-parameters fits a student and its teachers, and whether it needs a teacher at all."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from stillhouse import methods, tasks
from stillhouse.compress.students import chain_of, sketch_student
from stillhouse.distill.ddp import split_problem, sync_batchnorm_problem
from stillhouse.distill.hook_returns import helpers_of, knowledge_of, student_layers_of
from stillhouse.distill.hyperparameters import make_method
from stillhouse.distill.method import Method, MethodError, Setup, Unsuitable, WrongReturnError, serves_task
from stillhouse.distill.stages import check_stages
from stillhouse.durable import canonical_json
from stillhouse.errors import Problem, describe_error
from stillhouse.knowledge.kinds import Knowledge
from stillhouse.models.architecture import Architecture, UnknownLayer
from stillhouse.spec.combinations import Soundness
from stillhouse.spec.hyperparameter import plain
from stillhouse.spec.records import TEACHER_JOINT, StudentChoice
from stillhouse.spec.schema import SweepSpec
from stillhouse.sweep.search.draws import Draw
from stillhouse.tasks import Task
from stillhouse.user_code import user_code

Describe = Callable[[StudentChoice, Sequence[str]], Architecture]

NEEDS_TEACHER = "needs a teacher"
_ASSUMED_SAMPLES = 1000
"""Size of the training split while the data set has not been loaded."""


class NeedsTeacherError(ValueError):
    """The method needs a teacher and there is none."""


class _TooFewEpochsError(ValueError):
    """The method cannot work with so few epochs."""


@dataclass(frozen=True, kw_only=True)
class MethodFit:
    """A method with concrete hyper-parameters, and what it needs of each teacher of a trial.

    Attributes:
        knowledge: by teacher in the order of the trial's teachers, each kind by the method's name for it; empty without one.
        needs_teacher: whether the trial runs with its teachers: the method reads knowledge or calls the teacher.
    """

    method: Method
    knowledge: tuple[Mapping[str, Knowledge], ...]
    needs_teacher: bool


def fit_method(method: Method, student: Architecture, teachers: Sequence[Architecture]) -> MethodFit:
    """What the method needs of these teachers for this student. This is the only place that decides about a teacher.

    Raises:
        NeedsTeacherError: the method needs a teacher and `teachers` is empty.
        Exception: whatever the method raises about the combination; a user-defined one can raise anything.
    """
    if teachers:
        knowledge = tuple(knowledge_of(method, teacher, student) for teacher in teachers)
        return MethodFit(method=method, knowledge=knowledge, needs_teacher=any(knowledge) or method.calls_teacher)
    try:
        # The student stands in for the missing teacher, only to learn whether the method needs anything of one.
        needed = bool(knowledge_of(method, student, student))
    except WrongReturnError:
        raise
    except ValueError as error:
        raise NeedsTeacherError(NEEDS_TEACHER) from error
    if needed or method.calls_teacher:
        raise NeedsTeacherError(NEEDS_TEACHER)
    return MethodFit(method=method, knowledge=(), needs_teacher=False)


def runnable_draw(draw: Draw, fit: MethodFit) -> Draw:
    """The draw as its trial runs: without the teacher that the method does not need, with typed hyper-parameters."""
    hyperparameters = {name: plain(getattr(fit.method, name)) for name in draw.hyperparameters}
    return Draw(draw.method, draw.student, draw.teacher if fit.needs_teacher else None, hyperparameters)


def settle(draw: Draw, spec: SweepSpec, describe: Describe) -> Draw | None:
    """The draw as its trial runs; None when it cannot run.

    Args:
        describe: the architecture of a network, and for a student the names of its teachers.
    """
    names = draw.teacher.split(TEACHER_JOINT) if draw.teacher else []
    try:
        student = describe(draw.student, names)
        networks = [(name, spec.teachers[name]) for name in names]
        teachers = [describe(StudentChoice(name=name, model=each.model, options=each.options), ()) for name, each in networks]
        with user_code():
            method = make_method(draw.method, draw.hyperparameters)
            task = tasks.find(spec.task)
            if not serves_task(method, task) or method.recipe_problem(spec.training):
                return None
            if _is_divided(spec) and split_problem(method, task, chain_of(draw.student)):
                return None
            fit = fit_method(method, student, teachers)
    except Exception:  # a user's method can raise anything about a combination of values
        return None
    return runnable_draw(draw, fit)


def _is_divided(spec: SweepSpec) -> bool:
    """Whether trials train on a part of each batch at a time."""
    return spec.trial_resources.num_workers > 1 or isinstance(spec.training.micro_batch, int)


@dataclass(frozen=True)
class PassedOver:
    """Why a draw has no trial although nothing about the spec is wrong."""

    reason: str
    needs_teacher: bool = False


class DrawChecker:
    """Tries the draws of a spec, each with its method on its student and its teachers, without training anything.

    Args:
        spec: with every method and hyper-parameter spelled out.
        sound: which of the spec's sections have no problem of their own.
        task: of the data set.
        num_samples: of the training split; None while the data set has not been loaded.
        num_classes: of the data set.
    """

    def __init__(self, spec: SweepSpec, sound: Soundness, task: Task, *, num_classes: int, num_samples: int | None) -> None:
        self._spec = spec
        self._sound = sound
        self._task = task
        self._num_classes = num_classes
        self._num_samples = _ASSUMED_SAMPLES if num_samples is None else num_samples
        self._modules_checked: set[str] = set()

    def check(
        self, draw: Draw, student: Architecture, teachers: Sequence[Architecture]
    ) -> tuple[Draw | Problem | PassedOver, list[str]]:
        """The draw as it runs, what is wrong with it, or why it is passed over; and the warnings that came up."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            outcome = self._outcome(draw, student, teachers)
        return outcome, [str(warning.message) for warning in caught]

    def _outcome(self, draw: Draw, student: Architecture, teachers: Sequence[Architecture]) -> Draw | Problem | PassedOver:
        taught = bool(teachers)
        try:
            with user_code():
                method = make_method(draw.method, draw.hyperparameters)
                if (divided := self._divided_batches()) and (
                    problem := split_problem(method, self._task, chain_of(draw.student))
                ):
                    return PassedOver(f"{problem}, and {divided}")
                if self._spec.training.sync_batchnorm and (problem := sync_batchnorm_problem(method)):
                    return PassedOver(f"{problem}; training.sync_batchnorm is true")
                if self._sound("training") and (unsuited := method.recipe_problem(self._spec.training)):
                    return PassedOver(unsuited)
                if not serves_task(method, self._task):
                    return PassedOver(f"does not serve task {self._task.name} with these hyper-parameters")
                fit = fit_method(method, student, teachers)
                taught = fit.needs_teacher
                for teacher, knowledge in zip(teachers, fit.knowledge, strict=True):
                    for kind in knowledge.values():
                        self._check_kind(kind, teacher)
                with torch.device("meta"):
                    for partner in teachers if taught else [None]:
                        for layer in student_layers_of(method, partner, student):
                            student.shape(layer)
                        self._check_setup(method, draw, partner, student)
        except NeedsTeacherError as error:
            return PassedOver(str(error), needs_teacher=True)
        except Unsuitable as error:
            return PassedOver(str(error))
        except Exception as error:  # a user's method can raise anything
            named = _named_hyperparameter(draw, error)
            if isinstance(error, MethodError | UnknownLayer) and named is None:
                return PassedOver(str(error))
            return _method_problem(draw, error, named, taught=taught)
        if method.calls_teacher and self._spec.knowledge.way == "cached":
            return Problem(
                "knowledge.way",
                f"must be auto, served or inline for {draw.method}, which calls the teacher on inputs that it generates, "
                "got 'cached'",
            )
        return runnable_draw(draw, fit)

    def _check_kind(self, kind: Knowledge, teacher: Architecture) -> None:
        """Checks that the teacher has what the kind of knowledge reads.

        Raises:
            UnknownLayer: it has no such layer.
            MethodError: the task has no such output, or its samples have no losses of their own.
        """
        for layer in kind.layers:
            teacher.shape(layer)
        if kind.of_input and not self._task.separable:
            raise MethodError(f"reads gradients of single samples' losses, which task {self._task.name} does not have")
        outputs = self._task.output_shapes(self._num_classes, teacher.input_shape)
        if not kind.layers and not kind.of_input and kind.output not in outputs:
            raise MethodError(
                f"needs the teacher's output '{kind.output}', but task {self._task.name} has {', '.join(outputs)} only"
            )

    def _divided_batches(self) -> str | None:
        """The setting that makes trials train on a part of each batch at a time."""
        workers, micro_batch = self._spec.trial_resources.num_workers, self._spec.training.micro_batch
        if self._sound("trial_resources") and workers > 1:
            return f"trial_resources divides it among {workers} workers"
        if self._sound("training.micro_batch") and isinstance(micro_batch, int):
            return f"training.micro_batch = {micro_batch} divides it"
        return None

    def _check_setup(self, method: Method, draw: Draw, teacher: Architecture | None, student: Architecture) -> None:
        """Tries the stages of every trial, the helpers once per combination of what can change their shapes.

        Raises:
            ValueError: the method does not fit.
        """

        def new_student() -> nn.Module:
            return sketch_student(draw.student, self._num_classes, student.input_shape)

        setup = Setup(
            teacher=teacher,
            student=student,
            new_student=new_student,
            num_samples=self._num_samples,
            epochs=self._spec.search.max_epochs,
        )
        if self._sound("search.max_epochs"):
            try:
                stages = check_stages(method, setup)
            except ValueError as error:
                check_stages(method, replace(setup, epochs=1000 * setup.epochs))
                raise _TooFewEpochsError(f"{draw.method} {error}") from error
            for stage in stages:
                if stage.until is not None:
                    student.shape(stage.until)
        shaping = {name: value for name, value in draw.hyperparameters.items() if not isinstance(value, float)}
        options = {name: value for name, value in draw.student.settings.items() if not isinstance(value, float)}
        seen = canonical_json([draw.method, shaping, draw.student.name, options, draw.teacher])
        if seen not in self._modules_checked:
            self._modules_checked.add(seen)
            helpers_of(method, setup)


def _named_hyperparameter(draw: Draw, error: BaseException) -> str | None:
    """The hyper-parameter that the error is about: its value is wrong, not what the method chose by itself."""
    names: set[str] = set()
    cause: BaseException | None = error
    while cause is not None:
        names |= set(getattr(cause, "names", ()))
        cause = cause.__cause__
    defaults = methods.find(draw.method).defaults()
    for name, value in draw.hyperparameters.items():
        words = {word for word in (value if isinstance(value, list) else [value]) if isinstance(word, str)}
        if value != plain(defaults[name]) and words & names:
            return name
    return None


def _method_problem(draw: Draw, error: Exception, named: str | None, *, taught: bool) -> Problem:
    message = str(error) if isinstance(error, ValueError) else describe_error(error)
    if isinstance(error, _TooFewEpochsError):
        return Problem("search.max_epochs", f"must be larger: {message}")
    pair = f"{draw.student.name} with {draw.teacher}" if taught else draw.student.name
    key = f"methods.{draw.method}" + (f".{named}" if named else "")
    return Problem(key, f"cannot run on {pair}: {message}")
