"""Whether a spec can run: the parts of it that only the models, methods and data can judge.

All problems, those of the spec's own form included, are reported at once, before anything starts.
"""

import importlib.util
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stillhouse import methods, tasks
from stillhouse.data.datasets import ImageData, dataset_facts, dataset_names, dataset_problems
from stillhouse.data.normalisation import chosen
from stillhouse.data.views import policy_mixes, policy_problems
from stillhouse.distill.batches import smallest_part
from stillhouse.errors import Problem, SpecError, UnknownNameError, UsageError, describe_error
from stillhouse.models.architecture import needs_two_samples
from stillhouse.models.blueprint import Shape, blueprint, build_problems, sketch
from stillhouse.models.checkpoint_files import open_checkpoint
from stillhouse.models.registry import unknown_options
from stillhouse.models.weights import load_state
from stillhouse.spec.combinations import (
    Soundness,
    combination_problems,
    idle_settings,
    may_have_another_metric,
    objective_problems,
)
from stillhouse.spec.display import show
from stillhouse.spec.load import Draft, draft_of, read_draft
from stillhouse.spec.metric import ACCURACY, Metric
from stillhouse.spec.records import TEACHER_JOINT
from stillhouse.spec.schema import StudentSpec, SweepSpec, TeacherSpec, TeacherTraining, default_objectives, find_code_in
from stillhouse.spec.training import Training
from stillhouse.sweep.planning.method_fit import NEEDS_TEACHER, DrawChecker
from stillhouse.sweep.planning.method_settings import prior_corners, resolve_methods
from stillhouse.sweep.planning.student_outputs import student_output_problem
from stillhouse.sweep.search.draws import MAX_TRIALS, Draw, draw_trials, draws_at_least, enumerable, grid_size
from stillhouse.text_table import shown_after
from stillhouse.user_code import is_standard_library, user_code
from stillhouse.user_paths import expand_user

TORCHVISION = "torchvision:"
MLFLOW = "mlflow:"


@dataclass(frozen=True)
class Skipped:
    """A method that the plan leaves out for one student and teacher, and why."""

    method: str
    student: str
    teacher: str | None
    reason: str
    trials: int


@dataclass
class Survey:
    """What is known about a spec after the check.

    Attributes:
        spec: with every method and hyper-parameter spelled out; None if it cannot be read at all.
        draws: the trials that can run, without the teachers that they do not need; duplicates are still included.
    """

    spec: SweepSpec | None
    problems: list[Problem] = field(default_factory=list)
    draws: list[Draw] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_file(path: str | Path, overrides: Sequence[str] = (), data: ImageData | None = None) -> SweepSpec:
    """The spec in a YAML file, checked, with every method and hyper-parameter spelled out.

    User-defined code that the spec names is found in the folder of the file.

    Raises:
        SpecError: with every problem.
    """
    draft = read_draft(path, overrides)
    if draft.spec is not None:
        find_code_in(expand_user(path, "the spec").absolute().parent, draft.spec)
    return check(draft, data)


def check(spec: SweepSpec | Draft | Mapping[str, Any], data: ImageData | None = None) -> SweepSpec:
    """`spec`, checked, with every method and hyper-parameter spelled out.

    Args:
        spec: validated or as plain data.
        data: the data set if it has been read; None checks with what is known of its name.

    Raises:
        SpecError: with every problem.
    """
    found = survey(spec, data)
    if found.problems or found.spec is None:
        raise SpecError(found.problems)
    return found.spec


def survey(spec: SweepSpec | Draft | Mapping[str, Any], data: ImageData | None = None) -> Survey:
    """Everything that is known about `spec` without training; see `check`."""
    draft = _as_draft(spec)
    if draft.spec is None:
        return Survey(None, list(draft.problems))
    return _Surveyor(draft, draft.spec, data).run()


def metric_of(data: ImageData) -> Metric:
    """What the task of the data set judges its models by."""
    return tasks.of(data).metric


def _as_draft(spec: SweepSpec | Draft | Mapping[str, Any]) -> Draft:
    if isinstance(spec, Draft):
        return spec
    if isinstance(spec, SweepSpec):
        return Draft(spec, tuple(combination_problems(spec)), student_places=tuple(range(len(spec.students))))
    return draft_of(spec)


class _Surveyor:
    """Checks a spec step by step; each step adds to the survey what it found."""

    def __init__(self, draft: Draft, spec: SweepSpec, data: ImageData | None) -> None:
        self._spec = spec
        self._data = data
        self._sound = Soundness(draft.broken)
        self._places = dict(zip((student.name for student in spec.students), draft.student_places, strict=True))
        self._student_places = draft.student_places
        self._read_problems = draft.problems
        self._survey = Survey(spec, list(draft.problems), notes=idle_settings(spec))
        self._names_methods = spec.methods is not None
        self._num_classes: int | None = None
        self._input_shape: Shape | None = None
        self._task = tasks.find()

    def run(self) -> Survey:
        if not self._check_count():
            return self._survey
        self._add_folders()
        self._resolve_task()
        self._check_dataset()
        self._check_views()
        self._check_last_batch()
        teachers = {name: spec for name, spec in self._spec.teachers.items() if self._check_teacher(name, spec)}
        students = [
            student
            for place, student in zip(self._student_places, self._spec.students, strict=True)
            if self._check_model(f"students[{place}]", student.model, student.options)
            and self._check_outputs(f"students[{place}]", student.model, student.options)
        ]
        self._check_parts(students, teachers)
        resolved_methods = resolve_methods(self._spec, self._sound, self._task)
        self._survey.problems += resolved_methods.problems
        self._note(*resolved_methods.notes)
        settings = resolved_methods.settings
        known = self._num_classes is not None and self._input_shape is not None
        # Which of all methods fit is only known with the shape of the images.
        resolved = self._spec.model_copy(update={"methods": settings if known or self._names_methods else None})
        # Without the unsound parts, so that a bad student does not hide a method's problem with another one.
        partial = resolved.model_copy(update={"methods": settings, "students": tuple(students), "teachers": teachers})
        if self._check_grid(partial) and self._num_classes is not None and self._input_shape is not None:
            left_out = self._check_draws(partial, self._num_classes, self._input_shape)
            resolved = resolved.model_copy(
                update={"methods": {name: value for name, value in settings.items() if name not in left_out}}
            )
        self._note_coverage(resolved)
        found = self._survey
        found.spec = resolved
        found.problems = list(dict.fromkeys([*self._read_problems, *self._new_problems()]))
        return found

    def _new_problems(self) -> list[Problem]:
        """What was found after reading the spec. A value that could not be read is null here, which is no second problem."""
        reported = {problem.key for problem in self._read_problems}
        return [problem for problem in self._survey.problems if problem.key not in reported]

    def _problem(self, key: str, message: str) -> None:
        self._survey.problems.append(Problem(key, message))

    def _check_count(self) -> bool:
        """Whether the trials are few enough to plan; counted before anything is built or drawn."""
        count, grid = draws_at_least(self._spec), self._spec.search.algorithm == "grid"
        if count <= MAX_TRIALS:
            return True
        key = "search.algorithm" if grid else "search.trials_per_method"
        what = f"must give at most {MAX_TRIALS:,} trials, this grid has {count:,}; use random or fewer choices"
        if not grid:
            what = f"must give at most {MAX_TRIALS:,} trials of all methods together, got {count:,}; use a smaller number"
        self._problem(key, what)
        return False

    def _add_folders(self) -> None:
        for number, folder in enumerate(self._spec.method_paths):
            try:
                methods.add_folder(folder)
            except UsageError as error:
                self._survey.problems.append(Problem.caused_by(error, f"method_paths[{number}]"))

    def _resolve_task(self) -> None:
        """Finds the task: that of the spec, else the one that the data set declares; its metric is the default objective."""
        declared = None
        if self._data is not None:
            declared = self._data.task
        elif ":" in self._spec.dataset.name and self._sound("dataset.name"):
            declared = dataset_facts(self._spec.dataset.name).task
        name = self._spec.task or declared
        try:
            self._task = tasks.find(name)
        except UsageError as error:
            self._survey.problems.append(Problem.caused_by(error, "task"))
            return
        metric, objectives = self._task.metric, self._spec.objectives
        if metric != ACCURACY and objectives == default_objectives(ACCURACY):
            objectives = default_objectives(metric)
        if may_have_another_metric(self._spec) and self._sound("objectives"):
            self._survey.problems += objective_problems(objectives, metric)
        self._spec = self._spec.model_copy(update={"task": tasks.name_of(name), "objectives": objectives})

    def _check_dataset(self) -> None:
        spec = self._spec.dataset
        if self._data is not None:
            self._num_classes, self._input_shape = self._data.num_classes, self._data.input_shape
            return
        if not self._sound("dataset", "dataset.name"):
            return
        problems = dataset_problems(
            spec.name,
            root=spec.root,
            validation=spec.validation,
            download=spec.download,
            size=spec.size,
            options=spec.options,
        )
        self._survey.problems += [problem for problem in problems if self._sound(problem.key)]
        if ":" in spec.name:
            self._problem_if_not_importable("dataset.name", spec.name)
        elif spec.name in dataset_names() and self._sound("dataset.size", "dataset.options"):
            facts = dataset_facts(spec.name, size=spec.size, options=spec.options)
            self._num_classes = self._task.targets.foreseen_outputs(facts.num_classes)
            self._input_shape = facts.input_shape

    def _problem_if_not_importable(self, key: str, name: str) -> None:
        module = name.partition(":")[0]
        if is_standard_library(module):
            self._problem(key, f"must name a module of your own, got {show(name)} of Python's standard library")
            return
        try:
            with user_code():  # finding a module of a package imports the package
                there = importlib.util.find_spec(module) is not None
        except Exception:
            there = False
        if not there:
            self._problem(key, f"must name a module that can be imported, got {show(name)}; put its file beside the spec")

    def _check_views(self) -> None:
        if self._sound("views", "views.policy"):
            problems = policy_problems(self._spec.views.policy, self._input_shape)
            self._survey.problems += [problem.under("views") for problem in problems]
            if not problems and not self._task.mixes and policy_mixes(self._spec.views.policy):
                self._problem(
                    "views.policy",
                    f"must not mix samples: task {self._task.name} cannot mix targets; remove the last",
                )

    def _check_teacher(self, name: str, teacher: TeacherSpec) -> bool:
        """Whether the teacher's model can be built; also checks its weights."""
        key = f"teachers.{name}"
        sound = self._check_model(key, teacher.model, teacher.options)
        self._check_normalization(name, teacher)
        stated, classes = teacher.num_classes, self._num_classes
        if stated is not None and classes is not None and stated != classes:
            self._problem(f"{key}.num_classes", f"must be {classes}, the classes of {self._spec.dataset.name}, got {stated}")
        if sound and teacher.weights is not None:
            facts = None if classes is None or self._input_shape is None else (classes, self._input_shape)
            try:
                note = _check_weights(teacher, teacher.weights, facts)
                self._note(*([f"{key}: {note}"] if note else []))
            except UsageError as error:
                self._survey.problems.append(Problem.caused_by(error, f"{key}.weights"))
        return sound

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
        facts = None if self._num_classes is None or self._input_shape is None else (self._num_classes, self._input_shape)
        for candidate in prior_corners(options):
            for problem in build_problems(model, candidate, *(facts or _SOME_IMAGES)):
                if problem.key:
                    self._survey.problems.append(problem.under(key))
                elif facts is not None:
                    self._problem(key, f"cannot be used: {problem}")
        return len(self._survey.problems) == before

    def _check_outputs(self, key: str, model: str, options: Mapping[str, Any]) -> bool:
        """Whether the student returns what the task's losses expect, as far as untrained outputs tell."""
        if self._num_classes is None or self._input_shape is None:
            return True
        for candidate in prior_corners(options):
            problem = student_output_problem(model, candidate, self._num_classes, self._input_shape, self._task.name)
            if problem is not None and problem.certain:
                self._problem(key, f"must not be {model} as it is: {problem.description}; {problem.remedy}")
                return False
            if problem is not None:
                self._note(f"{key} ({model}): {problem.description}; {problem.remedy}")
        return True

    def _check_normalization(self, name: str, teacher: TeacherSpec) -> None:
        key = f"teachers.{name}.normalization"
        if teacher.normalization is None:
            return
        if teacher.weights is None:
            self._problem(key, "needs weights: a teacher that the sweep trains has that of the data set; remove it")
        elif self._data is not None:
            try:
                chosen(teacher.normalization, self._data)
            except UsageError as error:
                self._survey.problems.append(Problem.caused_by(error, key))

    def _check_grid(self, spec: SweepSpec) -> bool:
        """Whether the combinations of a grid can be listed."""
        if spec.search.algorithm != "grid":
            return True
        searched = [
            (f"students[{self._places[student.name]}].{option}", setting)
            for student in spec.students
            for option, setting in student.options.items()
        ]
        searched += [
            (f"methods.{name}.{key}", setting)
            for name, settings in (spec.methods or {}).items()
            for key, setting in settings.items()
        ]
        unlistable = [(key, setting) for key, setting in searched if not enumerable(setting)]
        for key, setting in unlistable:
            self._problem(key, f"must be a value, choice or integers in a grid, got {show(setting.to_json())}")
        if not unlistable and (size := grid_size(spec)) > MAX_TRIALS:
            self._problem(
                "search.algorithm", f"must give at most {MAX_TRIALS} trials, this grid has {size}; use random or fewer choices"
            )
            return False
        return not unlistable

    def _check_draws(self, spec: SweepSpec, num_classes: int, input_shape: Shape) -> set[str]:
        """Tries the method of every draw on its student and teachers; returns the methods that the sweep leaves out."""
        skipped: Counter[tuple[str, str, str | None, str]] = Counter()
        reported: set[tuple[str, str, str, str | None]] = set()
        unmet: set[str] = set()
        teachers = {
            name: blueprint(teacher.model, teacher.options, num_classes, input_shape).architecture
            for name, teacher in spec.teachers.items()
        }
        num_samples = len(self._data.train) if self._data is not None else None
        checker = DrawChecker(spec, self._sound, self._task, num_classes=num_classes, num_samples=num_samples)
        no_teachers = not self._spec.teachers and not self._sound.touched("teachers")
        for draw in shown_after(draw_trials(spec), "trials checked"):
            if draw.method in unmet:
                continue
            try:
                student = blueprint(draw.student.model, draw.student.options, num_classes, input_shape).architecture
            except Exception as error:
                place = self._places[draw.student.name]
                self._problem(
                    f"students[{place}]", f"cannot be built with {show(draw.student.options)}: {describe_error(error)}"
                )
                continue
            names = draw.teacher.split(TEACHER_JOINT) if draw.teacher else []
            outcome, cautions = checker.check(draw, student, [teachers[name] for name in names])
            self._note(*(f"methods.{draw.method}: {caution}" for caution in cautions))
            if isinstance(outcome, Draw):
                self._survey.draws.append(outcome)
            elif isinstance(outcome, Problem):
                if (pair := (outcome.key, draw.method, draw.student.name, draw.teacher)) not in reported:
                    reported.add(pair)
                    self._survey.problems.append(outcome)
            elif not outcome.needs_teacher:
                skipped[draw.method, draw.student.name, draw.teacher, outcome.reason] += 1
            elif no_teachers:
                unmet.add(draw.method)
        self._survey.skipped = [Skipped(*where, trials=trials) for where, trials in skipped.items()]
        return self._left_out(unmet)

    def _left_out(self, unmet: set[str]) -> set[str]:
        """Reports the methods without any trial; those that the spec names are problems."""
        ran = {draw.method for draw in self._survey.draws}
        for method in sorted(unmet):
            if self._names_methods:
                self._problem(
                    f"methods.{method}", f"{NEEDS_TEACHER}, and the spec has none; add one under teachers or remove {method}"
                )
        if unmet and not self._names_methods:
            self._note(f"left out, since there are no teachers: {', '.join(sorted(unmet))}")
        for item in self._survey.skipped:
            if item.method not in ran and self._names_methods:
                pair = f"{item.student} with {item.teacher}" if item.teacher else item.student
                self._problem(f"methods.{item.method}", f"fits no student: for {pair} it {item.reason}; remove {item.method}")
        return unmet | ({item.method for item in self._survey.skipped} - ran)

    def _check_last_batch(self) -> None:
        """Checks that every worker gets a sample of an epoch's last batch. The trainer drops a last batch of one sample."""
        workers, size = self._spec.trial_resources.num_workers, self._spec.training.batch_size
        if self._data is None or not self._sound("trial_resources", "training"):
            return
        left = len(self._data.train) % size
        if 1 < left < workers <= size:
            self._problem(
                "training.batch_size",
                f"must leave a last batch of at least {workers} samples, one for each worker of a trial, got {size}, which "
                f"leaves {left} of {len(self._data.train)}; change it",
            )

    def _check_parts(self, students: Sequence[StudentSpec], teachers: Mapping[str, TeacherSpec]) -> None:
        """Checks that no forward pass of a training sees one sample alone where the network's BatchNorm cannot train on it."""
        if self._data is None or not self._sound("trial_resources", "training"):
            return
        workers = self._spec.trial_resources.num_workers
        checked: list[tuple[str, Training, int, StudentSpec | TeacherSpec]] = [
            ("training", self._spec.training, workers, student) for student in students
        ]
        checked += [(f"teachers.{name}.train", each.train, 1, each) for name, each in teachers.items() if not each.weights]
        for key, training, count, entry in checked:
            micro = training.micro_batch if isinstance(training.micro_batch, int) else None
            if smallest_part(len(self._data.train), training.batch_size, count, micro) != 1:
                continue
            facts = self._data.num_classes, self._data.input_shape
            for options in prior_corners(entry.options):
                if needs_two_samples(blueprint(entry.model, options, *facts).architecture):
                    of = f"{count} workers" if micro is None else f"micro_batch {micro}"
                    self._problem(
                        f"{key}.{'batch_size' if micro is None else 'micro_batch'}",
                        f"must leave at least two samples to every forward pass, since BatchNorm of {entry.model} cannot "
                        f"train on one, got batches of {training.batch_size} for {of}, with "
                        f"{len(self._data.train)} training images; "
                        f"{'enlarge it' if micro is None else 'enlarge it or set it to null'}",
                    )
                    break

    def _note(self, *notes: str) -> None:
        self._survey.notes += [note for note in notes if note not in self._survey.notes]

    def _note_coverage(self, spec: SweepSpec) -> None:
        cells = len(spec.students) * max(1, len(spec.teachers))
        if spec.search.algorithm != "grid" and spec.search.trials_per_method < cells:
            self._note(
                f"search.trials_per_method = {spec.search.trials_per_method} is less than the {cells} pairs of students and "
                "teachers: some are never tried"
            )
        used = {name for draw in self._survey.draws for name in (draw.teacher or "").split(TEACHER_JOINT)}
        for name in spec.teachers:
            if self._survey.draws and name not in used and not self._survey.problems:
                self._note(f"no trial needs teacher {name}")


def _pointed_to_section(problem: Problem, key: str) -> Problem:
    """The problem of an unknown option with the section that has a key of this name: `train: {epochs}` of a teacher."""
    if key.startswith("teachers.") and problem.key in TeacherTraining.model_fields:
        return replace(problem, remedy=f"write it under train, {key}.train.{problem.key}")
    return problem


# Classes and shape that stand in for an unknown data set, to find out what is wrong with options alone.
_SOME_IMAGES: tuple[int, Shape] = (10, (3, 32, 32))


def _check_weights(teacher: TeacherSpec, weights: str, facts: tuple[int, Shape] | None) -> str | None:
    """Checks that given weights can be read and, if classes and images are known, that they fit the teacher's model.

    Returns:
        which of several weights in the file are taken, if there is a choice.

    Raises:
        UsageError: they cannot be read or do not fit.
    """
    if weights.startswith(MLFLOW):
        return None
    if weights.startswith(TORCHVISION):
        _check_torchvision(weights.removeprefix(TORCHVISION), facts[0] if facts else None)
        return None
    checkpoint = open_checkpoint(weights)
    if facts is not None:
        load_state(sketch(teacher.model, teacher.options, *facts).to("meta"), checkpoint.weights, source=weights)
    return checkpoint.note(weights)


def _check_torchvision(name: str, num_classes: int | None) -> None:
    from torchvision.models import get_weight

    try:
        categories = get_weight(name).meta.get("categories")
    except (KeyError, ValueError, AttributeError) as error:
        raise UnknownNameError(f"no torchvision weights '{name}'; write them as ResNet18_Weights.IMAGENET1K_V1") from error
    if None not in (categories, num_classes) and len(categories) != num_classes:
        raise UsageError(f"{name} has {len(categories)} classes, the data set has {num_classes}")
