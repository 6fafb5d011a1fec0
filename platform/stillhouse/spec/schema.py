"""The sweep spec as types: the values that each key may have, and its default. Larger sections have files of their own.

Validate through `stillhouse.spec.load`, which reports all problems in the user's words.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, PrivateAttr, TypeAdapter

from stillhouse.errors import UsageError
from stillhouse.spec.claims import Claim, Resources, TrialResources
from stillhouse.spec.data_section import DatasetSpec, ViewsSpec
from stillhouse.spec.display import show
from stillhouse.spec.metric import ACCURACY, Metric
from stillhouse.spec.networks import NORMALIZATIONS, StudentSpec, TeacherSpec, TeacherTraining, gather_options
from stillhouse.spec.recipes import FIRST, NEWEST
from stillhouse.spec.search_section import ADAPTIVE, DEFAULTS, SearchBudget, SearchSpec
from stillhouse.spec.size_bound import parse_budget
from stillhouse.spec.sizes import parse_bytes
from stillhouse.spec.training import Training
from stillhouse.spec.values import Section, Setting, SweepName, TeacherName, invalid
from stillhouse.user_code import make_importable, modules_of

# The types of all sections are imported from here, whichever file defines them.
__all__ = [
    "ADAPTIVE",
    "DEFAULTS",
    "FIXED",
    "MAX_STUDENTS",
    "NORMALIZATIONS",
    "RANDOM_TEACHER",
    "Claim",
    "DatasetSpec",
    "KnowledgeSpec",
    "MethodSettings",
    "ReportSpec",
    "Resources",
    "SearchBudget",
    "SearchSpec",
    "StudentSpec",
    "SweepSpec",
    "TeacherSpec",
    "TeacherTraining",
    "TrackingSpec",
    "TrialResources",
    "ViewsSpec",
    "Way",
    "default_objectives",
    "find_code_in",
    "gather_options",
    "named_code",
]

FIXED = "defaults"
MAX_STUDENTS = 1_000

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
