"""Whether a spec can run: the parts of it that only the models, methods and data can judge.

All problems, those of the spec's own form included, are reported at once, before anything starts.
"""

import importlib.util
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillhouse import methods, tasks
from stillhouse.data.datasets import ImageData, dataset_facts, dataset_names, dataset_problems
from stillhouse.data.views import policy_mixes, policy_problems
from stillhouse.distill.hyperparameters import plain, setting_problem, typed
from stillhouse.distill.method import Method
from stillhouse.errors import Problem, SpecError, UnknownNameError, UsageError, describe_error, did_you_mean
from stillhouse.models.blueprint import Shape, blueprint, build_problems, sketch
from stillhouse.models.registry import unknown_options
from stillhouse.models.weights import load_state, read_checkpoint
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
from stillhouse.spec.priors import Prior
from stillhouse.spec.records import TEACHER_JOINT
from stillhouse.spec.schema import FIXED, SweepSpec, TeacherSpec, default_objectives
from stillhouse.sweep.planning.method_fit import NEEDS_TEACHER, DrawChecker, can_serve
from stillhouse.sweep.search.draws import MAX_TRIALS, Draw, draw_trials, enumerable, grid_size

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
    """What was found out about a spec.

    Attributes:
        spec: with every method and hyper-parameter spelled out; None when nothing of it can be read.
        draws: the trials that can run, teachers taken off those that ask nothing of one, duplicates still there.
    """

    spec: SweepSpec | None
    problems: list[Problem] = field(default_factory=list)
    draws: list[Draw] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_file(path: str | Path, overrides: Sequence[str] = (), data: ImageData | None = None) -> SweepSpec:
    """The spec in a YAML file with every method and hyper-parameter spelled out, once all of it has been checked.

    Raises:
        SpecError: with every problem.
    """
    return check(read_draft(path, overrides), data)


def check(spec: SweepSpec | Draft | Mapping[str, Any], data: ImageData | None = None) -> SweepSpec:
    """`spec` with every method and hyper-parameter spelled out, once all of it has been checked.

    Args:
        spec: validated or as plain data.
        data: the data set, where it has been read; without it, what is known of its name.

    Raises:
        SpecError: with every problem.
    """
    found = survey(spec, data)
    if found.problems or found.spec is None:
        raise SpecError(found.problems)
    return found.spec


def survey(spec: SweepSpec | Draft | Mapping[str, Any], data: ImageData | None = None) -> Survey:
    """Finds everything that can be said of `spec` without training; see `check`."""
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
    """One pass over a spec; each step adds to the survey what it found."""

    def __init__(self, draft: Draft, spec: SweepSpec, data: ImageData | None) -> None:
        self._spec = spec
        self._data = data
        self._sound = Soundness(draft.broken)
        self._places = dict(zip((student.name for student in spec.students), draft.student_places, strict=True))
        self._student_places = draft.student_places
        self._survey = Survey(spec, list(draft.problems), notes=idle_settings(spec))
        self._asked_methods = spec.methods is not None
        self._num_classes: int | None = None
        self._input_shape: Shape | None = None
        self._task = tasks.find()

    def run(self) -> Survey:
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
        ]
        settings = self._resolve_methods()
        known = self._num_classes is not None and self._input_shape is not None
        # Which of all methods suit is only known with the images' shape.
        resolved = self._spec.model_copy(update={"methods": settings if known or self._asked_methods else None})
        # The trials of what is sound, so that one bad student does not hide a method's problem with another.
        partial = resolved.model_copy(update={"methods": settings, "students": tuple(students), "teachers": teachers})
        if self._check_grid(partial) and self._num_classes is not None and self._input_shape is not None:
            left_out = self._check_draws(partial, self._num_classes, self._input_shape)
            resolved = resolved.model_copy(
                update={"methods": {name: value for name, value in settings.items() if name not in left_out}}
            )
        self._note_coverage(resolved)
        found = self._survey
        found.spec = resolved
        found.problems = list(dict.fromkeys(found.problems))
        return found

    def _problem(self, key: str, message: str) -> None:
        self._survey.problems.append(Problem(key, message))

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
        try:
            there = importlib.util.find_spec(module) is not None
        except (ImportError, ValueError, AttributeError):
            there = False
        if not there:
            self._problem(key, f"must name a module that can be imported, got {show(name)}; set PYTHONPATH or run beside it")

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
        """Whether the teacher's model can be built; its weights are checked besides."""
        key = f"teachers.{name}"
        sound = self._check_model(key, teacher.model, teacher.options)
        promised, classes = teacher.num_classes, self._num_classes
        if promised is not None and classes is not None and promised != classes:
            self._problem(f"{key}.num_classes", f"must be {classes}, the classes of {self._spec.dataset.name}, got {promised}")
        if sound and teacher.weights is not None:
            facts = None if classes is None or self._input_shape is None else (classes, self._input_shape)
            try:
                _check_weights(teacher, teacher.weights, facts)
            except UsageError as error:
                self._survey.problems.append(Problem.caused_by(error, f"{key}.weights"))
        return sound

    def _check_model(self, key: str, model: str, options: Mapping[str, Any]) -> bool:
        """Whether every end of the options' priors gives a model that can be built."""
        before = len(self._survey.problems)
        try:
            self._survey.problems += [problem.under(key) for problem in unknown_options(model, options)]
        except UsageError as error:
            self._survey.problems.append(Problem.caused_by(error, f"{key}.model"))
        if len(self._survey.problems) > before:
            return False
        facts = None if self._num_classes is None or self._input_shape is None else (self._num_classes, self._input_shape)
        for candidate in _corners(options):
            for problem in build_problems(model, candidate, *(facts or _SOME_IMAGES)):
                if problem.key:
                    self._survey.problems.append(problem.under(key))
                elif facts is not None:
                    self._problem(key, f"cannot be used: {problem}")
        return len(self._survey.problems) == before

    def _resolve_methods(self) -> dict[str, dict[str, Any]]:
        """Each method's hyper-parameters: what the spec says, else the method's prior, else its default."""
        asked: Mapping[str, Any] = self._spec.methods or {}
        if not self._asked_methods and self._sound("methods") and not self._sound.touched("methods"):
            asked = {name: {} for name in methods.names()}
        try:
            baseline = methods.baseline()
        except Exception as error:  # a user's file can raise anything when it is imported
            self._problem("methods", f"can not be loaded: {describe_error(error)}")
        else:
            asked = {baseline: asked.get(baseline, {}), **asked}
        resolved = {}
        for name, settings in asked.items():
            try:
                kind = methods.find(name)
            except UsageError as error:
                self._survey.problems.append(Problem.caused_by(error, f"methods.{name}"))
            except Exception as error:
                self._problem(f"methods.{name}", f"can not be loaded: {describe_error(error)}")
            else:
                resolved[name] = self._resolve_settings(name, kind, settings)
        return self._serving({name: settings for name, settings in resolved.items() if settings is not None})

    def _serving(self, settings: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """The methods that serve the task with some of their hyper-parameters; others that the spec names are problems."""
        others = [name for name, values in settings.items() if not can_serve(name, values, self._task)]
        if others and self._asked_methods:
            serving = [name for name in methods.names() if can_serve(name, {}, self._task)]
            for name in others:
                self._problem(f"methods.{name}", f"does not serve task {self._task.name}; these do: {', '.join(serving)}")
        elif others:
            self._note(f"left out, since they do not serve task {self._task.name}: {', '.join(sorted(others))}")
        return {name: values for name, values in settings.items() if name not in others}

    def _resolve_settings(self, name: str, kind: type[Method], settings: Mapping[str, Any] | str) -> dict[str, Any] | None:
        """The method's hyper-parameters in its own order; None when the spec's are wrong."""
        rules = kind.hyperparameters()
        given = {} if isinstance(settings, str) else settings
        before = len(self._survey.problems)
        for key, setting in given.items():
            if key not in rules:
                self._problem(f"methods.{name}.{key}", f"is not a hyper-parameter of {name}{did_you_mean(key, rules)}")
                continue
            if (problem := setting_problem(kind, key, setting)) is not None:
                self._survey.problems.append(problem.under(f"methods.{name}"))
        if len(self._survey.problems) > before:
            return None
        searched = settings != FIXED and self._spec.search.algorithm != "grid"
        defaults = kind.defaults()
        values: dict[str, Any] = {}
        for key, rule in rules.items():
            if key in given:
                value = given[key]
                values[key] = value if isinstance(value, Prior) else plain(typed(kind, key, value))
            else:
                values[key] = rule.prior if searched and rule.prior is not None else plain(defaults[key])
        return values

    def _check_grid(self, spec: SweepSpec) -> bool:
        """Whether the trials can be listed."""
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
        endless = [(key, setting) for key, setting in searched if not enumerable(setting)]
        for key, setting in endless:
            self._problem(key, f"must be a value, choice or integers in a grid, got {show(setting.to_json())}")
        if not endless and (size := grid_size(spec)) > MAX_TRIALS:
            self._problem(
                "search.algorithm", f"must give at most {MAX_TRIALS} trials, this grid has {size}; use random or fewer choices"
            )
            return False
        return not endless

    def _check_draws(self, spec: SweepSpec, num_classes: int, input_shape: Shape) -> set[str]:
        """Tries every trial's method on its student and teacher; returns the methods that are left out of the sweep."""
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
        for draw in draw_trials(spec):
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
        """Says which methods have no trial at all; those that the user asked for by name are problems."""
        ran = {draw.method for draw in self._survey.draws}
        for method in sorted(unmet):
            if self._asked_methods:
                self._problem(
                    f"methods.{method}", f"{NEEDS_TEACHER}, and the spec has none; add one under teachers or remove {method}"
                )
        if unmet and not self._asked_methods:
            self._note(f"left out, since there are no teachers: {', '.join(sorted(unmet))}")
        for item in self._survey.skipped:
            if item.method not in ran and self._asked_methods:
                pair = f"{item.student} with {item.teacher}" if item.teacher else item.student
                self._problem(f"methods.{item.method}", f"suits no student: for {pair} it {item.reason}; remove {item.method}")
        return unmet | ({item.method for item in self._survey.skipped} - ran)

    def _check_last_batch(self) -> None:
        """Whether every worker gets a sample of an epoch's last batch; a last batch of one is left out."""
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

    def _note(self, *notes: str) -> None:
        self._survey.notes += [note for note in notes if note not in self._survey.notes]

    def _note_coverage(self, spec: SweepSpec) -> None:
        cells = len(spec.students) * max(1, len(spec.teachers))
        if spec.search.algorithm != "grid" and spec.search.trials_per_method < cells:
            self._note(
                f"search.trials_per_method = {spec.search.trials_per_method} is less than the {cells} pairs of students and "
                "teachers: some are never tried"
            )
        asked = {name for draw in self._survey.draws for name in (draw.teacher or "").split(TEACHER_JOINT)}
        for name in spec.teachers:
            if self._survey.draws and name not in asked and not self._survey.problems:
                self._note(f"no trial asks anything of teacher {name}")


# Classes and shape that stand in for a data set which is not known yet, to learn what is wrong with options alone.
_SOME_IMAGES: tuple[int, Shape] = (10, (3, 32, 32))


def _corners(options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The options with each prior at each of its ends in turn, the others at their first."""
    priors = {name: setting for name, setting in options.items() if isinstance(setting, Prior)}
    base = {name: setting.ends()[0] if isinstance(setting, Prior) else setting for name, setting in options.items()}
    yield base
    for name, prior in priors.items():
        for end in prior.ends()[1:]:
            yield {**base, name: end}


def _check_weights(teacher: TeacherSpec, weights: str, facts: tuple[int, Shape] | None) -> None:
    """Whether given weights can be read and, where classes and images are known, fit the teacher's model.

    Raises:
        UsageError: they do not, or can not be read.
    """
    if weights.startswith(MLFLOW):
        return
    if weights.startswith(TORCHVISION):
        _check_torchvision(weights.removeprefix(TORCHVISION), facts[0] if facts else None)
        return
    state = read_checkpoint(weights)
    if facts is not None:
        load_state(sketch(teacher.model, teacher.options, *facts).to("meta"), state, source=weights)


def _check_torchvision(name: str, num_classes: int | None) -> None:
    from torchvision.models import get_weight

    try:
        categories = get_weight(name).meta.get("categories")
    except (KeyError, ValueError, AttributeError) as error:
        raise UnknownNameError(f"no torchvision weights '{name}'; write them as ResNet18_Weights.IMAGENET1K_V1") from error
    if None not in (categories, num_classes) and len(categories) != num_classes:
        raise UsageError(f"{name} has {len(categories)} classes, the data set has {num_classes}")
