"""Whether the models of a spec can be built on its data, and given weights fit them."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from torch import Tensor

from stillhouse.data.datasets import ImageData
from stillhouse.data.normalisation import chosen
from stillhouse.errors import Problem, UsageError
from stillhouse.models import registry
from stillhouse.models.blueprint import blueprint, build_problems, sketch
from stillhouse.models.checkpoint_files import Checkpoint
from stillhouse.models.given_weights import (
    MLFLOW,
    TORCHVISION,
    Named,
    foreseen,
    is_here,
    load_start,
    open_given,
    torchvision_enum,
)
from stillhouse.models.layers import Shape
from stillhouse.models.registry import choices_of, model_options, unknown_options
from stillhouse.models.weight_names import RenameError, renamed
from stillhouse.spec.schema import StudentSpec, SweepSpec, TeacherSpec, TeacherTraining
from stillhouse.sweep.planning.method_settings import prior_corners
from stillhouse.sweep.planning.operator_check import check_operators, source_problem
from stillhouse.sweep.planning.student_outputs import student_output_problem
from stillhouse.sweep.planning.survey import Survey
from stillhouse.tasks import Task
from stillhouse.teachers.own_normalisation import own_normalisation, stated_side

NEW_HEAD = "new"

# Classes and shape in place of those of an unknown data set, so that options can be checked without it.
_SOME_IMAGES: tuple[int, Shape] = (10, (3, 32, 32))


def with_data_options(spec: SweepSpec, data_options: Mapping[str, Any]) -> SweepSpec:
    """The spec with what the data set decides about its models, such as the number of tokens, where it names no other value.

    A model that does not exist stays as it is; its check reports it.
    """

    def completed(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return registry.with_data_options(model, options, data_options)
        except UsageError:
            return dict(options)

    if not data_options:
        return spec
    teachers = {
        name: teacher.model_copy(update={"options": completed(teacher.model, teacher.options)})
        for name, teacher in spec.teachers.items()
    }
    students = tuple(
        student
        if student.source is not None
        else student.model_copy(update={"options": completed(student.model, student.options)})
        for student in spec.students
    )
    return spec.model_copy(update={"teachers": teachers, "students": students})


class ModelChecker:
    """Checks the models of a spec one at a time, and adds to the survey what it finds.

    Args:
        data: the data set if it has been read.
        dataset: its name.
        num_classes: None if the name does not tell it; so is `input_shape`.
        builds: whether models are built, which finds more than the names of their options.
    """

    def __init__(
        self,
        survey: Survey,
        task: Task,
        data: ImageData | None,
        *,
        dataset: str,
        num_classes: int | None,
        input_shape: Shape | None,
        builds: bool,
    ) -> None:
        self._survey = survey
        self._task = task
        self._data = data
        self._dataset = dataset
        self._num_classes = num_classes
        self._builds = builds
        self._facts = None if num_classes is None or input_shape is None else (num_classes, input_shape)

    def check_teacher(self, name: str, teacher: TeacherSpec) -> bool:
        """Whether the teacher's model can be built; also checks its weights."""
        key = f"teachers.{name}"
        sound = self._check_model(key, teacher.model, teacher.options)
        self._check_normalization(name, teacher)
        stated, classes = teacher.num_classes, self._num_classes
        if stated is not None and classes is not None and stated != classes:
            self._survey.add(f"{key}.num_classes", f"must be {classes}, the classes of {self._dataset}, got {stated}")
        if sound and teacher.weights is not None:
            start = {"weights": teacher.weights, "rename": teacher.rename, "head": teacher.head}
            self._check_start(key, start, teacher.model, [teacher.options])
            self._note_image_size(key, teacher)
        return sound

    def _check_start(self, key: str, start: Mapping[str, Any], model: str, candidates: Iterable[Mapping[str, Any]]) -> None:
        """Checks given weights, and notes which of several in the file are taken."""
        try:
            note = _check_weights(start, model, candidates, self._facts)
            self._survey.note(*([f"{key}: {note}"] if note else []))
        except RenameError as error:
            self._survey.problems.append(Problem.caused_by(error, f"{key}.rename"))
        except UsageError as error:
            self._survey.problems.append(Problem.caused_by(error, f"{key}.weights"))

    def _note_image_size(self, key: str, teacher: TeacherSpec) -> None:
        """Says so where given weights were trained with images of another size than the network gets."""
        side = stated_side(teacher)
        if side is None or self._facts is None or "resize" not in model_options(teacher.model):
            return
        own = teacher.options.get("resize") or self._facts[1][1]
        if own != side:
            self._survey.note(
                f"{key}: its weights were trained with images of {side}x{side} and it gets {own}x{own}; "
                f"{key}.resize: {side} scales them inside the network"
            )

    def check_student(
        self, key: str, student: StudentSpec, teachers: Mapping[str, TeacherSpec], *, fixed: bool
    ) -> StudentSpec | None:
        """The student with every option of its operators; None if it cannot be built or its outputs are not the task's.

        Args:
            teachers: those that can be built.
            fixed: whether options that the spec does not name have their defaults.
        """
        if student.source is not None:
            # What is wrong with a teacher is reported there.
            if student.source not in teachers:
                return None
            if problem := source_problem(student, key, teachers[student.source], self._data):
                self._survey.problems.append(problem)
                return None
        elif not self._check_model(key, student.model, student.options) or not self._check_outputs(
            key, student.model, student.options
        ):
            return None
        if student.start:
            self._check_start(key, student.start, student.model, prior_corners(student.options))
            self._note_normalisation(key, student)
        found = check_operators(student, key, self._facts, fixed=fixed)
        self._survey.problems += found.problems
        self._survey.note(*(f"{key} ({student.name}): {note}" for note in found.notes))
        return None if found.problems else found.student

    def _note_normalisation(self, key: str, student: StudentSpec) -> None:
        """Says so where the weights of a start were trained with another normalisation than the students'."""
        if self._data is None:
            return
        as_teacher = TeacherSpec(model=student.model, options=student.options, weights=student.weights)
        if (own := own_normalisation(as_teacher, self._data)) is not None:
            self._survey.note(
                f"{key} ({student.name}): its weights were trained with {own.own}; it sees the data set's normalisation, "
                f"{own.data}, which training has to make up for"
            )

    def _check_model(self, key: str, model: str, options: Mapping[str, Any]) -> bool:
        """Whether the model can be built at every end of the options' priors."""
        before = len(self._survey.problems)
        try:
            problems = [_pointed_to_section(problem, key) for problem in unknown_options(model, options)]
            self._survey.problems += [problem.under(key) for problem in problems]
        except UsageError as error:
            self._survey.problems.append(Problem.caused_by(error, f"{key}.model"))
        if len(self._survey.problems) > before:
            return False
        for candidate in prior_corners(options) if self._builds else ():
            for problem in build_problems(model, candidate, *(self._facts or _SOME_IMAGES)):
                if problem.key:
                    self._survey.problems.append(problem.under(key))
                elif self._facts is not None:
                    self._survey.add(key, f"cannot be used: {problem}")
            if len(self._survey.problems) == before and self._facts is not None:
                unfit = self._task.model_problem(blueprint(model, candidate, *self._facts).architecture)
                if unfit is not None:
                    self._survey.add(key, f"must name a model of task {self._task.name}: {model} {unfit}")
        return len(self._survey.problems) == before

    def _check_outputs(self, key: str, model: str, options: Mapping[str, Any]) -> bool:
        """Whether the student returns what the task's losses expect, as far as untrained outputs tell."""
        if self._facts is None:
            return True
        for candidate in prior_corners(options):
            problem = student_output_problem(model, candidate, *self._facts, self._task.name)
            if problem is not None and problem.certain:
                self._survey.add(key, f"must not be {model} as it is: {problem.description}; {problem.remedy}")
                return False
            if problem is not None:
                self._survey.note(f"{key} ({model}): {problem.description}; {problem.remedy}")
        return True

    def _check_normalization(self, name: str, teacher: TeacherSpec) -> None:
        key = f"teachers.{name}.normalization"
        if teacher.normalization is None:
            return
        if teacher.weights is None:
            self._survey.add(key, "needs weights: a teacher that the sweep trains has that of the data set; remove it")
        elif self._task.draws:
            self._survey.add(key, f"has no meaning for task {self._task.name}, whose models read no images; remove it")
        elif self._data is not None:
            try:
                chosen(teacher.normalization, self._data)
            except UsageError as error:
                self._survey.problems.append(Problem.caused_by(error, key))


def _pointed_to_section(problem: Problem, key: str) -> Problem:
    """The problem of an unknown option with the section that has a key of this name: `train: {epochs}` of a teacher."""
    if key.startswith("teachers.") and problem.key in TeacherTraining.model_fields:
        return replace(problem, remedy=f"write it under train, {key}.train.{problem.key}")
    return problem


def _check_weights(
    start: Mapping[str, Any], model: str, candidates: Iterable[Mapping[str, Any]], facts: tuple[int, Shape] | None
) -> str | None:
    """Checks that given weights can be read and, if classes and images are known, that they fit the model.

    Args:
        start: `weights`, `rename` and `head`.
        candidates: options of the model.

    Returns:
        which of several weights in the file are taken, if there is a choice.

    Raises:
        UsageError: they cannot be read or do not fit.
    """
    reference = str(start["weights"])
    if reference.startswith(MLFLOW):
        return None
    if reference.startswith(TORCHVISION):
        _check_classes(reference, facts[0] if facts else None, start.get("head"))
    here = is_here(reference)
    checkpoint = open_given(reference) if here else Checkpoint(foreseen(reference), "", ())
    weights = renamed(checkpoint.weights, start.get("rename") or {}, reference)
    for options in candidates if facts is not None else ():
        assert facts is not None
        named = (model, options, *facts)
        try:
            load_start(sketch(*named).to("meta"), start, named=named, weights=weights)
        except UsageError as error:
            raise UsageError(f"{error}{_fitting_option(start, named, weights)}") from error
    return checkpoint.note(reference) if here else f"{reference} is downloaded when the sweep starts"


def _fitting_option(start: Mapping[str, Any], named: Named, weights: Mapping[str, Tensor]) -> str:
    """The value of another option of the model with which the weights fit, as a remedy; "" if there is none."""
    model, options, *facts = named
    for option, values in choices_of(model).items():
        for value in values:
            changed: Named = (model, {**options, option: value}, facts[0], facts[1])  # type: ignore[assignment]
            with suppress(UsageError):
                load_start(sketch(*changed).to("meta"), start, named=changed, weights=weights)
                return f"; they fit with {option}: {value}"
    return ""


def _check_classes(reference: str, num_classes: int | None, head: str | None) -> None:
    categories = torchvision_enum(reference).meta.get("categories")
    if head != NEW_HEAD and None not in (categories, num_classes) and len(categories) != num_classes:
        name = reference.removeprefix(TORCHVISION)
        raise UsageError(
            f"{name} has {len(categories)} classes, the data set has {num_classes}; head: {NEW_HEAD} trains it further "
            "with a new last layer"
        )
