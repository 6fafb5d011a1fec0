"""Whether a spec can run: the parts of it that only the models, methods and data can judge.

All problems, those of the spec's own form included, are reported at once, before anything starts.
"""

import importlib.util
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stillhouse import methods, tasks
from stillhouse.compress.students import student_architecture
from stillhouse.data.datasets import ImageData, dataset_facts, dataset_names, dataset_problems
from stillhouse.data.views import policy_mixes, policy_problems
from stillhouse.errors import Problem, SpecError, UsageError, describe_error
from stillhouse.models.blueprint import blueprint
from stillhouse.models.layers import Shape
from stillhouse.spec.combinations import (
    Soundness,
    combination_problems,
    idle_settings,
    may_have_another_metric,
    objective_problems,
)
from stillhouse.spec.display import show
from stillhouse.spec.load import Draft, new_draft, read_draft
from stillhouse.spec.metric import ACCURACY, Metric
from stillhouse.spec.records import TEACHER_JOINT
from stillhouse.spec.schema import SweepSpec, default_objectives, find_code_in
from stillhouse.sweep.planning.batch_checks import last_batch_problems, lone_sample_problems
from stillhouse.sweep.planning.control_checks import with_controls
from stillhouse.sweep.planning.method_fit import NEEDS_TEACHER, DrawChecker
from stillhouse.sweep.planning.method_settings import resolve_methods
from stillhouse.sweep.planning.model_checks import ModelChecker, with_data_options
from stillhouse.sweep.planning.survey import Skipped, Survey
from stillhouse.sweep.search.draws import MAX_TRIALS, Draw, draw_trials, draws_at_least, enumerable, grid_size
from stillhouse.teachers.own_normalisation import with_own_size
from stillhouse.text_table import shown_after
from stillhouse.user_code import is_standard_library, user_code
from stillhouse.user_paths import expand_user


def check_file(
    path: str | Path, overrides: Sequence[str] = (), data: ImageData | None = None, *, build: bool = True
) -> SweepSpec:
    """The spec in a YAML file, checked, with every method and hyper-parameter spelled out.

    User-defined code that the spec names is found in the folder of the file.

    Args:
        build: whether models are built; without it, only the keys, the values and the names in the spec are checked, except
            where the spec names no methods: which of all methods fit is known only with the models.

    Raises:
        SpecError: with every problem.
    """
    draft = read_draft(path, overrides)
    if draft.spec is not None:
        find_code_in(expand_user(path, "the spec").absolute().parent, draft.spec)
    return check(draft, data, build=build)


def check(spec: SweepSpec | Draft | Mapping[str, Any], data: ImageData | None = None, *, build: bool = True) -> SweepSpec:
    """`spec`, checked, with every method and hyper-parameter spelled out.

    Args:
        spec: validated or as plain data.
        data: the data set if it has been read; None checks with what is known of its name.
        build: as for `check_file`.

    Raises:
        SpecError: with every problem.
    """
    found = survey(spec, data, build=build)
    if found.problems or found.spec is None:
        raise SpecError(found.problems)
    return found.spec


def survey(spec: SweepSpec | Draft | Mapping[str, Any], data: ImageData | None = None, *, build: bool = True) -> Survey:
    """Everything that is known about `spec` without training; see `check`."""
    draft = _as_draft(spec)
    if draft.spec is None:
        return Survey(None, list(draft.problems))
    return _Surveyor(draft, draft.spec, data, build=build).run()


def metric_of(data: ImageData) -> Metric:
    """What the task of the data set judges its models by."""
    return tasks.of(data).metric


def _as_draft(spec: SweepSpec | Draft | Mapping[str, Any]) -> Draft:
    if isinstance(spec, Draft):
        return spec
    if isinstance(spec, SweepSpec):
        return Draft(spec, tuple(combination_problems(spec)), student_places=tuple(range(len(spec.students))))
    return new_draft(spec)


class _Surveyor:
    """Checks a spec step by step; each step adds to the survey what it found."""

    def __init__(self, draft: Draft, spec: SweepSpec, data: ImageData | None, *, build: bool) -> None:
        self._spec = spec
        self._data = data
        self._sound = Soundness(draft.broken)
        self._places = dict(zip((student.name for student in spec.students), draft.student_places, strict=True))
        self._student_places = draft.student_places
        self._read_problems = draft.problems
        self._survey = Survey(spec, list(draft.problems), notes=idle_settings(spec))
        self._names_methods = spec.methods is not None
        self._builds = build or not self._names_methods
        self._num_classes: int | None = None
        self._input_shape: Shape | None = None
        self._task = tasks.find()

    def run(self) -> Survey:
        if not self._check_count():
            return self._survey
        self._add_folders()
        self._resolve_task()
        self._check_dataset()
        if self._data is not None:
            self._spec = with_data_options(self._spec, self._data.model_options)
        self._check_views()
        if not self._builds:
            self._num_classes = self._input_shape = None
        models = ModelChecker(
            self._survey,
            self._task,
            self._data,
            dataset=self._spec.dataset.name,
            num_classes=self._num_classes,
            input_shape=self._input_shape,
            builds=self._builds,
        )
        sized = self._data if self._sound("trial_resources", "training") else None
        self._survey.problems += [] if sized is None else last_batch_problems(self._spec, len(sized.train))
        self._scale_for_teachers()
        teachers = {name: spec for name, spec in self._spec.teachers.items() if models.check_teacher(name, spec)}
        fixed = self._spec.search.algorithm == "grid"
        checked = [
            models.check_student(f"students[{place}]", student, teachers, fixed=fixed)
            for place, student in zip(self._student_places, self._spec.students, strict=True)
        ]
        students = [student for student in checked if student is not None]
        self._survey.problems += [] if sized is None else lone_sample_problems(self._spec, students, teachers, sized)
        if self._sound("controls"):
            self._spec, problems = with_controls(self._spec, teachers, self._num_classes, self._input_shape)
            self._survey.problems += problems
        resolved_methods = resolve_methods(self._spec, self._sound, self._task)
        self._survey.problems += resolved_methods.problems
        self._survey.note(*resolved_methods.notes)
        settings = resolved_methods.settings
        known = self._num_classes is not None and self._input_shape is not None
        # Which of all methods fit is only known with the shape of the images.
        by_name = {student.name: student for student in students}
        spelled_out = tuple(by_name.get(student.name, student) for student in self._spec.students)
        resolved = self._spec.model_copy(
            update={"methods": settings if known or self._names_methods else None, "students": spelled_out}
        )
        # Without the unsound parts, so that a bad student does not hide a method's problem with another one.
        partial = resolved.model_copy(update={"methods": settings, "students": tuple(students), "teachers": teachers})
        if self._check_grid(partial) and self._num_classes is not None and self._input_shape is not None:
            left_out = self._check_draws(partial, self._num_classes, self._input_shape)
            self._check_choice()
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

    def _check_count(self) -> bool:
        """Whether the trials are few enough to plan; counted before anything is built or drawn."""
        count, grid = draws_at_least(self._spec), self._spec.search.algorithm == "grid"
        if count <= MAX_TRIALS:
            return True
        key = "search.algorithm" if grid else "search.trials_per_method"
        what = f"must give at most {MAX_TRIALS:,} trials, this grid has {count:,}; use random or fewer choices"
        if not grid:
            what = f"must give at most {MAX_TRIALS:,} trials of all methods together, got {count:,}; use a smaller number"
        self._survey.add(key, what)
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
        elif self._sound("dataset.name") and (":" in self._spec.dataset.name or self._spec.dataset.name in dataset_names()):
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
            for split in (self._data.train, self._data.validation):
                if (problem := self._task.split_problem(self._data, split)) is not None:
                    self._survey.add("dataset.validation", problem)
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
            self._survey.add(key, f"must name a module of your own, got {show(name)} of Python's standard library")
            return
        try:
            with user_code():  # finding a module of a package imports the package
                there = importlib.util.find_spec(module) is not None
        except Exception:
            there = False
        if not there:
            self._survey.add(key, f"must name a module that can be imported, got {show(name)}; put its file beside the spec")

    def _scale_for_teachers(self) -> None:
        """Spells out the size to which images are scaled in networks whose weights state one."""
        if self._input_shape is None:
            return
        teachers = {name: with_own_size(teacher, self._input_shape) for name, teacher in self._spec.teachers.items()}
        students = tuple(
            student.model_copy(update={"options": teachers[student.source].options}) if student.source in teachers else student
            for student in self._spec.students
        )
        self._spec = self._spec.model_copy(update={"teachers": teachers, "students": students})

    def _check_views(self) -> None:
        if self._spec.views.count > 1 and not self._spec.views.policy and not self._task.draws:
            self._survey.note("views.count has no effect with an empty views.policy: all views are the unchanged images")
        if self._sound("views", "views.policy"):
            problems = policy_problems(self._spec.views.policy, self._input_shape)
            self._survey.problems += [problem.under("views") for problem in problems]
            if not problems and not self._task.mixes and policy_mixes(self._spec.views.policy):
                self._survey.add(
                    "views.policy",
                    f"must not mix samples: task {self._task.name} cannot mix targets; remove the last",
                )

    def _check_grid(self, spec: SweepSpec) -> bool:
        """Whether the combinations of a grid can be listed."""
        if spec.search.algorithm != "grid":
            return True
        searched = [
            (f"students[{self._places[student.name]}].{option}", setting)
            for student in spec.students
            for option, setting in student.settings.items()
        ]
        searched += [
            (f"methods.{name}.{key}", setting)
            for name, settings in (spec.methods or {}).items()
            for key, setting in settings.items()
        ]
        unlistable = [(key, setting) for key, setting in searched if not enumerable(setting)]
        for key, setting in unlistable:
            self._survey.add(key, f"must be a value, choice or integers in a grid, got {show(setting.to_json())}")
        if not unlistable and (size := grid_size(spec)) > MAX_TRIALS:
            self._survey.add(
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
            names = draw.teacher.split(TEACHER_JOINT) if draw.teacher else []
            try:
                student = student_architecture(draw.student, names, num_classes, input_shape)
            except Exception as error:
                place = self._places[draw.student.name]
                self._survey.add(
                    f"students[{place}]", f"cannot be built with {show(draw.student.settings)}: {describe_error(error)}"
                )
                continue
            outcome, cautions = checker.check(draw, student, [teachers[name] for name in names])
            self._survey.note(*(f"methods.{draw.method}: {caution}" for caution in cautions))
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

    def _check_choice(self) -> None:
        """Without a validation split nothing is chosen, so each method may have one trial with each student."""
        if self._spec.dataset.validation != 0 or not self._sound("dataset.validation"):
            return
        settings: dict[tuple[str, str], list[Draw]] = {}
        for draw in self._survey.draws:
            known = settings.setdefault((draw.method, draw.student.name), [])
            known += [] if draw in known else [draw]
        several = [(method, student, len(known)) for (method, student), known in settings.items() if len(known) > 1]
        for method, student, count in several[:1]:
            self._survey.add(
                "dataset.validation",
                f"must be > 0 to choose between settings, got 0: {method} has {count} with {student}; give each method one "
                f"setting (methods: {{{method}: defaults}}), each student fixed options, and the sweep one teacher",
            )

    def _left_out(self, unmet: set[str]) -> set[str]:
        """Reports the methods without any trial; those that the spec names are problems."""
        ran = {draw.method for draw in self._survey.draws}
        for method in sorted(unmet):
            if self._names_methods:
                self._survey.add(
                    f"methods.{method}", f"{NEEDS_TEACHER}, and the spec has none; add one under teachers or remove {method}"
                )
        if unmet and not self._names_methods:
            self._survey.note(f"left out, since there are no teachers: {', '.join(sorted(unmet))}")
        for item in self._survey.skipped:
            if item.method not in ran and self._names_methods:
                pair = f"{item.student} with {item.teacher}" if item.teacher else item.student
                self._survey.add(
                    f"methods.{item.method}", f"fits no student: for {pair} it {item.reason}; remove {item.method}"
                )
        return unmet | ({item.method for item in self._survey.skipped} - ran)

    def _note_coverage(self, spec: SweepSpec) -> None:
        cells = len(spec.students) * max(1, len(spec.teachers))
        if spec.search.algorithm != "grid" and spec.search.trials_per_method < cells:
            self._survey.note(
                f"search.trials_per_method = {spec.search.trials_per_method} is less than the {cells} pairs of students and "
                "teachers: some are never tried"
            )
        if spec.teachers:
            self._note_methods_without_views()
        used = {name for draw in self._survey.draws for name in (draw.teacher or "").split(TEACHER_JOINT)}
        used |= {student.source for student in spec.students if student.source is not None}
        for name in spec.teachers:
            if self._survey.draws and name not in used and not self._survey.problems:
                self._survey.note(f"no trial needs teacher {name}")

    def _note_methods_without_views(self) -> None:
        """Names the methods, other than controls, of which some trials need nothing from the spec's teachers."""
        alone = Counter(draw.method for draw in self._survey.draws if draw.teacher is None)
        total = Counter(draw.method for draw in self._survey.draws)
        for method, count in alone.items():
            if methods.find(method).card.family != "control":
                share = "its trials read" if count == total[method] else f"{count} of its {total[method]} draws read"
                self._survey.note(f"methods.{method}: {share} no sealed view, since nothing is needed from a teacher")
