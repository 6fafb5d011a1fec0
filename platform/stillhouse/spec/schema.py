"""The sweep spec as types: the values that each key may have, and its default.

Validate through `stillhouse.spec.load`, which reports all problems in the user's words.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PlainValidator, PrivateAttr, TypeAdapter, model_validator

from stillhouse.errors import UsageError
from stillhouse.spec.display import show
from stillhouse.spec.metric import ACCURACY, Metric
from stillhouse.spec.recipes import FIRST, NEWEST
from stillhouse.spec.records import StudentChoice, operator_settings
from stillhouse.spec.size_bound import bound_problem, parse_budget, parse_number
from stillhouse.spec.sizes import parse_bytes
from stillhouse.spec.training import Training
from stillhouse.spec.values import Section, Setting, StudentName, SweepName, TeacherName, invalid, parse_plain
from stillhouse.user_code import make_importable, modules_of

FIXED = "defaults"
MAX_STUDENTS = 1_000


def _parse_validation(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or (isinstance(value, float) and value >= 1):
        raise invalid(f"must be a number of samples >= 0 or a fraction between 0 and 1, got {show(value)}")
    return value or 0


_SETTINGS = TypeAdapter(dict[str, Setting])


def _parse_method(value: Any) -> Any:
    if value is None:
        return {}
    if value == FIXED:
        return FIXED
    if not isinstance(value, Mapping):
        raise invalid(f"must be a mapping of hyper-parameters, {{}} for the method's priors, or '{FIXED}', got {show(value)}")
    return _SETTINGS.validate_python(dict(value))


MethodSettings = Annotated[dict[str, Any] | Literal["defaults"], PlainValidator(_parse_method)]


def _parse_policy_entry(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping) and len(value) == 1:
        name, options = next(iter(value.items()))
        if options is None or isinstance(options, Mapping):
            return {name: {key: parse_plain(item) for key, item in (options or {}).items()}}
    raise invalid(f"must be a name such as crop or a one-key mapping such as {{crop: {{padding: 4}}}}, got {show(value)}")


def gather_options(entry: Any, own: frozenset[str]) -> Any:
    """An entry as the user writes it; keys that are not in `own` are moved into `options`."""
    if isinstance(entry, str):
        entry = {"model": entry}
    if not isinstance(entry, Mapping):
        return entry
    gathered = {key: value for key, value in entry.items() if key in own}
    return {**gathered, "options": {key: value for key, value in entry.items() if key not in own}}


class DatasetSpec(Section):
    """The data set.

    Attributes:
        name: a built-in data set, `image_folder`, `pack`, or `module:function` of a user-defined one.
        root: the folder of its files; relative to the spec file's folder.
        validation: how many samples of the training split, or which fraction, become the validation split. 0 makes none, as to
            repeat a published result: students see all training samples, and nothing is chosen.
        download: whether missing files may be downloaded.
        size: height and width to which images are resized.
        options: further arguments of the data set, such as `limit` and `limit_test`, which take a part of it.
    """

    name: str
    root: str | None = None
    validation: Annotated[int | float, PlainValidator(_parse_validation)] = 0.1
    download: bool = False
    size: Annotated[int, Field(ge=1, le=4096)] | None = None
    options: dict[str, Annotated[Any, PlainValidator(parse_plain)]] = Field(default_factory=dict)


class ViewsSpec(Section):
    """How images are augmented, and how many augmentations of the whole data set the trials share.

    Attributes:
        policy: the operations in their order, each a name or `{name: {option: value}}`; none leaves images as they are.
        count: how many augmentations of the whole data set there are; a trial reads another one in each epoch.
    """

    policy: tuple[Annotated[Any, PlainValidator(_parse_policy_entry)], ...] = ()
    count: Annotated[int, Field(ge=1, le=100_000)] = 1


def _parse_custom(value: Any) -> dict[str, float]:
    if not isinstance(value, Mapping):
        raise invalid(f"must be a mapping such as {{teacher_node: 1}}, got {show(value)}")
    for name, amount in value.items():
        if not isinstance(name, str) or not name or name.lower() in ("cpu", "gpu", "memory", "object_store_memory"):
            raise invalid(f"must name custom resources, such as teacher_node, got {show(name)}")
        number = isinstance(amount, int | float) and not isinstance(amount, bool)
        if not number or amount <= 0 or (amount > 1 and amount != int(amount)):
            raise invalid(f"must be a fraction of one or a whole number, got {show(amount)}", below=name)
    return dict(value)


def _parse_labels(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise invalid(f"must be a mapping such as {{pool: teacher}}, got {show(value)}")
    for name, label in value.items():
        if not isinstance(name, str) or not isinstance(label, str) or not label:
            problem = f"must be text such as teacher, in quotes if YAML would read a number, got {show(label)}"
            raise invalid(problem, below=str(name))
    return dict(value)


class Claim(Section):
    """What a process claims on a node besides cores and GPUs.

    Attributes:
        custom: resources that nodes were started with, `ray start --resources='{"teacher_node": 1}'`.
        labels: what the node must be labelled with, `ray start --labels=pool=teacher`; `"!trial"` and `in(a, b)` are
            conditions as in Ray.
    """

    custom: Annotated[dict[str, float], PlainValidator(_parse_custom)] = Field(default_factory=dict)
    labels: Annotated[dict[str, str], PlainValidator(_parse_labels)] = Field(default_factory=dict)


class Resources(Claim):
    """What a teacher claims of the cluster.

    Attributes:
        cpu: cores; a teacher that only fills views needs none of its own.
        gpu: GPUs, or a share of one.
    """

    cpu: Annotated[float, Field(ge=0)] = 0.0
    gpu: Annotated[float, Field(ge=0)] = 0.0


class TrialResources(Claim):
    """What one trial claims of the cluster while it runs.

    Attributes:
        cpu: cores of one trial; as many threads compute in it.
        gpu: GPUs of one trial, or a share of one; 0 trains on the CPU.
        workers: processes on one node that train each student together and share the rest evenly; null means one for each GPU.
        packed: how many trials share one process, and its claim, by taking turns; 1 gives each trial a process of its own.
    """

    cpu: Annotated[float, Field(gt=0)] = 1.0
    gpu: Annotated[float, Field(ge=0)] = 0.0
    workers: Annotated[int, Field(ge=1, le=1024)] | None = None
    packed: Annotated[int, Field(ge=1, le=64)] = 1

    @property
    def num_workers(self) -> int:
        return max(1, int(self.gpu)) if self.workers is None else self.workers


class TeacherTraining(Training):
    """The recipe of a teacher that the sweep trains, once.

    Attributes:
        epochs: how long it is trained.
        seed: determines its first weights and its batches.
    """

    epochs: Annotated[int, Field(ge=1)] = 30
    seed: Annotated[int, Field(ge=0)] = 0


NORMALIZATIONS = ("dataset", "imagenet", "0..1", "-1..1", "0..255")


def _parse_normalization(value: Any) -> str | dict[str, list[float]] | None:
    if value is None or (isinstance(value, str) and value in NORMALIZATIONS):
        return value
    if isinstance(value, Mapping) and set(value) == {"mean", "std"}:
        lists = {name: each if isinstance(each, list | tuple) else [each] for name, each in value.items()}
        numbers = [each for values in lists.values() for each in values]
        if all(isinstance(each, int | float) and not isinstance(each, bool) for each in numbers):
            return {name: [float(each) for each in values] for name, values in lists.items()}
    raise invalid(f"must be one of {', '.join(NORMALIZATIONS)} or {{mean: [...], std: [...]}}, got {show(value)}")


class TeacherSpec(Section):
    """One teacher; keys that are not listed here are options of its model.

    Attributes:
        model: a shipped model, or `module:function` of a user-defined one.
        options: options of the model; in a spec they stand beside `model`.
        weights: a checkpoint file (relative to the spec file's folder), `torchvision:<weights enum>` or
            `mlflow:models:/name/1`; null trains the teacher by the recipe `train`.
        normalization: of the pixels, as given weights expect it: `dataset`, `imagenet`, `0..1`, `-1..1`, `0..255`, or
            `{mean: [...], std: [...]}` for pixels in [0, 1]. Null takes what torchvision, or a file beside the weights, states,
            or else that of the data set.
        num_classes: the expected number of classes; checked against the data set.
        train: how a teacher without given weights is trained; the keys of `training`, `epochs` and `seed`.
        resources: what it claims of the cluster.
        replicas: how many actors share its work, each with these `resources`: they fill views together; a trial calls
            the one on its node, or else the one with the fewest waiting calls.
    """

    model: str
    options: dict[str, Annotated[Any, PlainValidator(parse_plain)]] = Field(default_factory=dict)
    weights: str | None = None
    normalization: Annotated[str | dict[str, list[float]] | None, PlainValidator(_parse_normalization)] = None
    num_classes: Annotated[int, Field(ge=2)] | None = None
    train: TeacherTraining = Field(default_factory=TeacherTraining)
    resources: Resources = Field(default_factory=Resources)
    replicas: Annotated[int, Field(ge=1, le=64)] = 1

    @classmethod
    def from_entry(cls, entry: Any) -> Any:
        """The spec's entry in the layout of the fields."""
        return gather_options(entry, frozenset(cls.model_fields) - {"options"})


def _name_operator(value: Any) -> Any:
    if isinstance(value, str):
        return {value: {}}
    if isinstance(value, Mapping) and len(value) == 1:
        name, options = next(iter(value.items()))
        if isinstance(name, str) and (options is None or isinstance(options, Mapping)):
            return {name: dict(options or {})}
    raise invalid(f"must be the name of an operator or {{name: {{option: value}}}}, got {show(value)}")


class StudentSpec(Section):
    """One entry of `students`; keys that are not listed here are options of its model, or priors of them.

    Attributes:
        model: a shipped model, or `module:function` of a user-defined one.
        name: the label in every table; the model's name unless given.
        options: options of the model, or priors of them; in a spec they stand beside `model`.
        source: the key `from`: the teacher whose model and trained weights the student begins with.
        compress: operators that make it smaller, in order, each as {name: settings}.
    """

    model: str = ""
    name: StudentName = ""
    options: dict[str, Setting] = Field(default_factory=dict)
    source: Annotated[str | None, Field(alias="from")] = None
    compress: tuple[Annotated[dict[str, dict[str, Setting]], BeforeValidator(_name_operator)], ...] = ()

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if self.source is None and not self.model:
            raise invalid("is required; name the model, such as model: mlp", below="model")
        if self.source is not None and (self.model or self.options):
            given = "model" if self.model else next(iter(self.options))
            raise invalid(f"must not be given with from: {self.source}, whose model the student has", below=given)
        if self.source is not None and not self.name:
            raise invalid("must be given to a student with from; name it, such as name: pruned", below="name")
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """Values and priors of the model's options by name, and of the operators' by their place: `compress[0].prune.ratio`."""
        return {**self.options, **operator_settings(self.compress)}

    def choose(self, values: Mapping[str, Any]) -> StudentChoice:
        """The concrete student with a value for each of `settings`."""
        compress = [
            {name: {option: values[f"compress[{place}].{name}.{option}"] for option in options}}
            for place, entry in enumerate(self.compress)
            for name, options in entry.items()
        ]
        return StudentChoice(
            name=self.name,
            model=self.model,
            options={name: values[name] for name in self.options},
            compress=compress,
            derived_from=self.source,
        )

    def only(self, wanted: Callable[[Any], bool]) -> "StudentSpec":
        """The student without the settings that are not wanted."""
        compress = tuple(
            {name: {key: value for key, value in options.items() if wanted(value)} for name, options in entry.items()}
            for entry in self.compress
        )
        options = {key: value for key, value in self.options.items() if wanted(value)}
        return self.model_copy(update={"options": options, "compress": compress})

    def to_entry(self) -> dict[str, Any]:
        """The entry as the user writes it, with priors as they are."""
        if self.source is None:
            entry: dict[str, Any] = {"model": self.model, "name": self.name, **self.options}
        else:
            entry = {"name": self.name, "from": self.source}
        return {**entry, "compress": self.compress} if self.compress else entry

    @classmethod
    def from_entry(cls, entry: Any) -> Any:
        """The spec's entry in the layout of the fields: a bare name is a model, its label is the model's name."""
        entry = gather_options(entry, frozenset({"model", "name", "from", "compress"}))
        if isinstance(entry, Mapping) and isinstance(entry.get("model"), str) and "name" not in entry:
            return {**entry, "name": re.sub(r"[^A-Za-z0-9._:-]", "-", entry["model"]).lstrip("._:-") or "student"}
        return entry


ADAPTIVE = ("tpe", "nsga2")
"""Search algorithms that choose a trial by the results of earlier ones."""


DEFAULTS = "defaults"
"""In `search.start`: the search starts at the methods' defaults."""


class SearchBudget(Section):
    """What all runs of a sweep may spend together. When it is spent, no trial is started and running trials are stopped.

    Attributes:
        trials: trials that are started.
        epochs: epochs of all trials.
        hours: the time during which the sweep runs.
        gpu_hours: hours of trials times the GPUs of each.
        trial_hours: hours of trials; trials that run at the same time all count.
    """

    trials: Annotated[int, Field(ge=1)] | None = None
    epochs: Annotated[int, Field(ge=1)] | None = None
    hours: Annotated[float, Field(gt=0)] | None = None
    gpu_hours: Annotated[float, Field(gt=0)] | None = None
    trial_hours: Annotated[float, Field(gt=0)] | None = None


def _parse_limits(value: Any) -> dict[str, float]:
    if not isinstance(value, Mapping):
        raise invalid(f"must be a mapping such as {{parameters: 100k}}, got {show(value)}")
    limits = {}
    for name, limit in value.items():
        if isinstance(limit, bool) or not isinstance(limit, int | float | str):
            raise invalid(f"must be a number such as 100k, got {show(limit)}", below=name)
        number = parse_number(str(limit).removesuffix("B"))
        if number is None:
            raise invalid(f"must be a number such as 100k, got {show(limit)}", below=name)
        if problem := bound_problem(str(name), number):
            raise invalid(problem.message, below=name)
        limits[name] = number
    return limits


class SearchSpec(Section):
    """How trials are chosen and how long they run.

    Attributes:
        algorithm: `random` draws `trials_per_method` stratified samples of the priors, the same students for every method;
            `grid` runs every combination of the choices that the spec lists, other hyper-parameters at their defaults;
            `tpe` and `nsga2` begin like `random`, and then choose the trials of each method and student by the `objectives` of
            its earlier ones.
        trials_per_method: assigned to the students in turn; not used by `grid`.
        start: the first trial of each method and student: `defaults` has the method's default hyper-parameters, which are the
            paper's, where the spec sets no others, and a student in the middle of its priors; `random` draws it as well, as the
            first release did. In a spec file the default is `defaults` (`spec.recipes`).
        scheduler: `none` runs every trial to its end. `asha` stops trials that are worse than others of similar size, `median`
            those whose best epoch is worse than the median of the others' means so far. Which trials are stopped depends on the
            order in which they report, so two runs of the same spec may stop different trials.
        max_epochs: epochs of a trial.
        confirm_seeds: number of new seeds with which each method's best trial per student is repeated.
        seed: determines every draw of the sweep.
        grace_epochs: epochs that every trial runs before a scheduler may stop it.
        reduction_factor: at each rung, asha continues one trial in this many.
        startup_trials: trials of each method and student that are drawn at random before results are used; the
            population size of `nsga2`.
        trials_ahead: trials of one method and student that may run at the same time, without each other's results. A larger
            number keeps more machines busy and makes the search less efficient.
        limits: sizes that no student may exceed, such as `{parameters: 100k, latency_ms: 2}`.
        budget: what the sweep may spend.
    """

    algorithm: Literal["random", "grid", "tpe", "nsga2"] = "random"
    trials_per_method: Annotated[int, Field(ge=1, le=100_000)] = 8
    start: Literal["defaults", "random"] = "random"
    scheduler: Literal["none", "asha", "median"] = "none"
    max_epochs: Annotated[int, Field(ge=1)] = 20
    confirm_seeds: Annotated[int, Field(ge=0, le=1000)] = 0
    seed: Annotated[int, Field(ge=0)] = 0
    grace_epochs: Annotated[int, Field(ge=1)] = 1
    reduction_factor: Annotated[float, Field(gt=1)] = 3.0
    startup_trials: Annotated[int, Field(ge=2, le=1000)] = 8
    trials_ahead: Annotated[int, Field(ge=1, le=1000)] = 4
    limits: Annotated[dict[str, float], PlainValidator(_parse_limits)] = Field(default_factory=dict)
    budget: SearchBudget = Field(default_factory=SearchBudget)


Way = Literal["auto", "cached", "served", "inline"]


def _parse_max_bytes(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise invalid(f"must be a size such as 500MB or 20GB, or null, got {show(value)}")
    try:
        return parse_bytes(str(value))
    except ValueError as error:
        raise invalid(str(error)) from error


class KnowledgeSpec(Section):
    """How the teacher's knowledge reaches the trials, and how it is stored.

    Attributes:
        way: the delivery mode of all knowledge; `auto` chooses by the measured cost of reading and of computing.
        ways: the delivery modes of single kinds, by the names in the sweep's log, such as `{logits: inline}`.
        dtype: the number format of sealed views.
        top_k: how many of a teacher's largest logits are stored, with the probability mass of the others; null stores all.
            It applies only to logits, and only if it makes them smaller. `stillhouse.knowledge.top_k` describes what is exact.
        tail_draws: how many of the other classes are drawn to represent that mass, which is then correct on average; 0 spreads
            it evenly.
        max_bytes: disk space for all sealed views together, such as `20GB`, including those of other sweeps, which are removed
            least recently used first if this sweep needs space. Null: half of their size plus the free space. The same limit
            applies to the copies on each node that cannot access the home.
    """

    way: Way = "auto"
    ways: dict[str, Way] = Field(default_factory=dict)
    dtype: Literal["float32", "float16"] = "float32"
    top_k: Annotated[int, Field(ge=1)] | None = None
    tail_draws: Annotated[int, Field(ge=0)] = 0
    max_bytes: Annotated[int | None, PlainValidator(_parse_max_bytes)] = None


class TrackingSpec(Section):
    """Where runs are tracked with MLflow.

    Attributes:
        uri: the address of a tracking server or store; null means an embedded SQLite store in the home.
        experiment: the name of the experiment; null means the sweep's name.
    """

    uri: str | None = None
    experiment: str | None = None


def _parse_budget(value: Any) -> str:
    if not isinstance(value, str):
        raise invalid(f"must look like parameters=100k, got {show(value)}")
    try:
        parse_budget(value)
    except UsageError as error:
        raise invalid(str(error)) from error
    return value.strip()


class ReportSpec(Section):
    """The questions of the report.

    Attributes:
        budgets: size bounds, such as `parameters=100k`; the page names the best student within each.
        robustness: whether winners are also evaluated on test images with noise, blur and the losses of JPEG.
    """

    budgets: tuple[Annotated[str, PlainValidator(_parse_budget)], ...] = ()
    robustness: bool = False


def _methods(value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, list | tuple):
        if unfit := [item for item in value if not isinstance(item, str)]:
            raise invalid(f"must be a list of names or a mapping of names to hyper-parameters, got the entry {show(unfit[0])}")
        if twice := [item for number, item in enumerate(value) if item in value[:number]]:
            raise invalid(f"must name each method once, '{twice[0]}' appears twice")
        value = {item: {} for item in value}
    if not isinstance(value, Mapping):
        raise invalid(f"must be a list of names or a mapping of names to hyper-parameters, got {show(value)}")
    return _METHODS.validate_python(dict(value))


_METHODS = TypeAdapter(dict[str, MethodSettings])


RANDOM_TEACHER = "random_teacher"
"""The control that every winner with a teacher is compared with: the same trial, taught by an untrained network."""


def _parse_controls(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise invalid(f"must be a list such as [scratch, {RANDOM_TEACHER}], got {show(value)}")
    if twice := [item for number, item in enumerate(value) if item in value[:number]]:
        raise invalid(f"must name each control once, '{twice[0]}' appears twice")
    return tuple(value)


def default_objectives(metric: Metric = ACCURACY) -> dict[str, Literal["max", "min"]]:
    """The objectives of a spec that names none: the task's metric and the number of parameters."""
    return {metric.column("validation"): metric.direction, "parameters": "min"}


class SweepSpec(Section):
    """One sweep: data set x teachers x students x methods x priors x seeds, with one budget.

    Attributes:
        name: the sweep's name, which is also that of its folder and of its experiment in MLflow.
        dataset: what the students learn.
        views: how images are augmented.
        teachers: each by a name of its own; none for methods that need no teacher.
        students: what is trained.
        search: how trials are chosen.
        training: how every student is trained.
        objectives: columns of the table with `max` or `min`, by which the Pareto front is made and adaptive searches choose.
        trial_resources: what a trial claims of the cluster.
        max_concurrent_trials: how many trials may run at the same time; null means as many as fit.
        knowledge: how the teachers' knowledge is delivered and stored.
        tracking: where runs are tracked.
        report: what the report answers.
        task: what the students are trained to do, `module:Class` of a user-defined one; null means the task that the data set
            declares.
        methods: hyper-parameters by method; null means every known method that can run with the teachers.
        method_paths: folders with user-defined method files; relative to the spec file's folder.
        controls: what the methods' students are compared with: the method that learns without a teacher, which every sweep
            runs, and `random_teacher`, each winner again with an untrained teacher. Null means the first one alone.
        recipe: the training defaults that complete the spec (`spec.recipes`); 1 in specs that the first release stored.
    """

    name: SweepName
    task: Annotated[str, Field(min_length=1)] | None = None
    dataset: DatasetSpec
    views: ViewsSpec = Field(default_factory=ViewsSpec)
    teachers: dict[TeacherName, TeacherSpec] = Field(default_factory=dict)
    students: Annotated[tuple[StudentSpec, ...], Field(min_length=1, max_length=MAX_STUDENTS)]
    methods: Annotated[dict[str, Any] | None, PlainValidator(_methods)] = None
    search: SearchSpec = Field(default_factory=SearchSpec)
    training: Training = Field(default_factory=Training)
    objectives: dict[str, Literal["max", "min"]] = Field(default_factory=default_objectives)
    trial_resources: TrialResources = Field(default_factory=TrialResources)
    max_concurrent_trials: Annotated[int, Field(ge=1)] | None = None
    knowledge: KnowledgeSpec = Field(default_factory=KnowledgeSpec)
    tracking: TrackingSpec = Field(default_factory=TrackingSpec)
    report: ReportSpec = Field(default_factory=ReportSpec)
    method_paths: tuple[str, ...] = ()
    controls: Annotated[tuple[str, ...] | None, PlainValidator(_parse_controls)] = None
    recipe: Annotated[int, Field(ge=FIRST, le=NEWEST)] = FIRST
    # The dotted keys that `spec.recipes.with_recipe` added: the user did not write them.
    _from_recipe: frozenset[str] = PrivateAttr(frozenset())

    def __eq__(self, other: object) -> bool:
        """Whether both have equal keys, wherever these come from."""
        if not isinstance(other, SweepSpec):
            return NotImplemented
        return all(getattr(self, key) == getattr(other, key) for key in type(self).model_fields)

    __hash__ = None  # type: ignore[assignment]


def named_code(spec: SweepSpec) -> list[str | None]:
    """What may be `module:function` in a spec: its task, its data set, the models of students and teachers, and operators."""
    operators = [name for student in spec.students for entry in student.compress for name in entry]
    models = [*(student.model for student in spec.students), *(teacher.model for teacher in spec.teachers.values())]
    return [spec.task, spec.dataset.name, *models, *operators]


def find_code_in(folder: Path, spec: SweepSpec) -> None:
    """Lets Python import the user-defined code of a spec from a folder; does nothing for a spec without such code."""
    if modules_of(named_code(spec)) or spec.method_paths:
        make_importable(folder)
