"""The records of a sweep: one per trial, the facts of each teacher, the facts of the sweep.

Plain data that every package may read. The ledger stores them; the report and MLflow are derived from them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from stillhouse.durable import canonical_json
from stillhouse.spec.measure import Measure
from stillhouse.spec.metric import ACCURACY, Metric

TEACHER_JOINT = "+"
"""Joins the names of teachers that teach one trial together; a teacher's name does not contain it."""

FULL_BITS = 32
"""Of weights and activations that no operator has changed."""

Phase = Literal["search", "confirm", "control"]

_UNTRAINED = ".untrained"
"""Ends the name of an untrained network of a teacher's architecture; a name in the spec has no dot."""


def untrained_name(teacher: str) -> str:
    """The name of the untrained counterpart of a teacher, or of each of several that are joined."""
    return TEACHER_JOINT.join(f"{name}{_UNTRAINED}" for name in teacher.split(TEACHER_JOINT))


def is_untrained(teacher: str) -> bool:
    """Whether the name is that of an untrained counterpart."""
    return teacher.endswith(_UNTRAINED)


def trained_name(teacher: str) -> str:
    """The name of the teacher that an untrained one is the counterpart of."""
    return teacher.removesuffix(_UNTRAINED)


class _Record(BaseModel):
    """Plain data. Fields named in `omitted` are left out of JSON while they are empty, as in earlier releases."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    omitted: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _without_empty(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = serialise(self)
        return {name: value for name, value in data.items() if value or name not in self.omitted}


class StudentChoice(_Record):
    """One concrete student: a model with every option decided, and the operators that change it.

    `name` is the label of the spec's entry: its model's name, or the `name` that the user gave. All students of one entry share
    it.

    Attributes:
        compress: the operators in order, each as {name: options}.
        derived_from: the teacher whose trained weights the student begins with; None for fresh weights.
        start: the weights that it starts with: `weights`, with `rename` and `head` as in the spec; empty for fresh weights.
    """

    omitted: ClassVar[tuple[str, ...]] = ("compress", "derived_from", "start")
    name: str
    model: str
    options: dict[str, Any] = Field(default_factory=dict)
    compress: list[dict[str, dict[str, Any]]] = Field(default_factory=list)
    derived_from: str | None = None
    start: dict[str, Any] = Field(default_factory=dict)

    @property
    def variant(self) -> str:
        """Text that is equal if and only if label, model, options, operators and origin are."""
        changed = [self.compress, self.derived_from] if self.compress or self.derived_from else []
        started = [self.start] if self.start else []
        return canonical_json([self.name, self.model, self.options, *changed, *started])

    @property
    def settings(self) -> dict[str, Any]:
        """The model's options by name, and the operators' by their place: `compress[0].prune.ratio`."""
        return {**self.options, **operator_settings(self.compress)}


def operator_settings(compress: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """The options of operators by their dotted keys below a student: `compress[0].prune.ratio`."""
    return {
        f"compress[{place}].{name}.{option}": value
        for place, entry in enumerate(compress)
        for name, options in entry.items()
        for option, value in options.items()
    }


class Trial(_Record):
    """One student, one method, one set of hyper-parameters, one seed. `key` is the hash of all that determines the result.

    Attributes:
        phase: `search`; `confirm`, a winner of the search on a fresh seed; or `control`, a winner with an untrained teacher.
        teacher: the teacher's name, or the names of several joined by `+`.
        own_code: the version of the user-defined method and models of the trial and of a shipped method that was revised;
            empty if there are none.
    """

    key: str
    phase: Phase = "search"
    student: StudentChoice
    method: str
    hyperparameters: dict[str, Any] = Field(default_factory=dict)
    teacher: str | None = None
    seed: int = 0
    epochs: int
    own_code: str = ""

    @property
    def teachers(self) -> tuple[str, ...]:
        """The teachers' names: none, one, or several that teach the trial together."""
        return tuple(self.teacher.split(TEACHER_JOINT)) if self.teacher else ()

    @property
    def loaded_teachers(self) -> tuple[str, ...]:
        """The teachers without which the trial cannot run: those that teach it, and the one whose weights it begins with."""
        source = self.student.derived_from
        return self.teachers if source is None or source in self.teachers else (*self.teachers, source)

    @property
    def is_control(self) -> bool:
        """Whether an untrained network taught it: it is compared with, and never chosen."""
        return self.phase == "control"


class Basis(_Record):
    """What the numbers of a record depend on besides its key: it can change while the spec does not.

    Empty text means unknown: records of the first release have no basis. The next run takes theirs to be what the facts of
    the sweep name, or else the present one, and stores it.

    Attributes:
        test: hash of the test split.
        classes: hash of the classes' names, in their order.
        normalisation: hash of the pixels' normalisation.
        judge: hash of what the metric needs besides, such as a classifier; empty where it needs nothing.
        teachers: identities of the networks that taught the trial, as they were loaded, in the order of `Trial.teachers`.
        given: hash of the weights that a user-defined student brings with it, such as those that its function reads.
        source: identity of the teacher whose weights the student began with.
    """

    omitted: ClassVar[tuple[str, ...]] = ("source", "judge")
    test: str = ""
    classes: str = ""
    normalisation: str = ""
    judge: str = ""
    teachers: list[str] = Field(default_factory=list)
    given: str = ""
    source: str = ""

    @property
    def evaluation(self) -> dict[str, str]:
        """The part that decides the value of a trained student, by name, as far as it is known."""
        known = {"test": self.test, "classes": self.classes, "normalisation": self.normalisation, "judge": self.judge}
        return {name: value for name, value in known.items() if value}


class TrialRecord(_Record):
    """The durable record of one trial that will not run again.

    Attributes:
        status: `finished`; `stopped` early by the scheduler (no test accuracy: test data is read by finished
            students only); `failed`, with the `reason`.
        metrics: numbers of the end state: `validation_accuracy`, `test_accuracy` (fractions in [0, 1]), `parameters`,
            `trainable_parameters`, `size_bytes`, `macs`, `latency_ms` (p50, batch 1), `latency_p95_ms`,
            `latency_batch64_ms` (p50 of a whole batch), `train_seconds`, `helper_bytes` (modules that the method trains
            with the student: regressors, memories, peers) if there are any, and what the method adds. Students with operators
            have `weight_bits` and `activation_bits` (of the layers that have the fewest) and `nonzero_parameters` too.
        curve: one entry per epoch: `epoch` (from 1), `stage`, `train_loss`, each loss term by name,
            `validation_accuracy`, `learning_rate`, `seconds`, and `comparable: false` in stages whose value does
            not describe the final student.
        teaching: how the teacher's knowledge was delivered: `way`, `samples_gathered`, `bytes_gathered`, `wait_seconds`.
        weights: the student's safetensors file, relative to the sweep's folder.
        collapsed: whether a finished student is no better than a model that ignores the image; None if the task does not know
            that model's value, and in records of the first release. `spec.collapse.is_collapsed` reads both.
        basis: what the numbers depend on besides the key.
        details: lists that the task's part of the page is drawn from, as `Evidence.details`; empty in records of the first
            release.
        conversion: what the student's operators decided (`Conversion.history`), from which its network is built again.
        compression: the student's operators, readable: `prune(ratio=0.5)`; empty without operators.
        system: samples of processor and memory while it trained, each with `time_ms`; empty for a short trial.
    """

    omitted: ClassVar[tuple[str, ...]] = ("conversion", "compression", "system")
    trial: Trial
    status: Literal["finished", "stopped", "failed"]
    reason: str | None = None
    epochs_run: int = 0
    metrics: dict[str, float] = Field(default_factory=dict)
    curve: list[dict[str, Any]] = Field(default_factory=list)
    teaching: dict[str, Any] = Field(default_factory=dict)
    weights: str | None = None
    weights_hash: str | None = None
    collapsed: bool | None = None
    device: str = "cpu"
    code: dict[str, str | None] = Field(default_factory=dict)
    started: str = ""
    finished: str = ""
    basis: Basis = Field(default_factory=Basis)
    details: dict[str, list[Any]] = Field(default_factory=dict)
    conversion: dict[str, Any] = Field(default_factory=dict)
    compression: str = ""
    system: list[dict[str, float]] = Field(default_factory=list)


class KnowledgeFacts(_Record):
    """How one kind of a teacher's knowledge reached the trials.

    Attributes:
        kind: the kind as text, such as `logits`.
        mode: the delivery mode, `cached`, `served` or `inline`.
        reason: why this mode was chosen, with the measured costs.
    """

    kind: str
    mode: str
    reason: str

    def __str__(self) -> str:
        return f"{self.kind} {self.mode}: {self.reason}"


class TeacherFacts(_Record):
    """One teacher of a sweep: its model, its quality, its cost.

    Attributes:
        way: the delivery modes of its knowledge, joined by `+`: `cached`, `served`, `inline`.
        reason: `kinds` as one text, for readers of the first release's documents.
        kinds: each kind of its knowledge with its delivery mode; empty in facts of the first release.
        samples_forwarded: samples that its forward pass computed for this run of the sweep.
        samples_filled: those of them that went into sealed views.
        samples_reused: samples whose knowledge trials read from a sealed view.
        samples_called: inputs that methods generated; not included in `samples_forwarded`.
        seconds_per_sample: measured forward time, for the cost of a teacher inside every trial.
        metrics: its values by column if the task's metric is not accuracy; `value` reads both.
        normalization: how its pixels are normalised where that is not the data set's own way.
        doubts: what looks wrong about its outputs, as sentences with a remedy.
    """

    name: str
    model: str
    key: str
    parameters: int
    size_bytes: int
    macs: int
    latency_ms: float | None = None
    validation_accuracy: float | None = None
    test_accuracy: float | None = None
    way: str = "cached"
    reason: str = ""
    kinds: list[KnowledgeFacts] = Field(default_factory=list)
    samples_forwarded: int = 0
    samples_filled: int = 0
    samples_reused: int = 0
    samples_called: int = 0
    bytes_written: int = 0
    fill_seconds: float = 0.0
    seconds_per_sample: float | None = None
    train_seconds: float = 0.0
    trained_now: bool = False
    metrics: dict[str, float] = Field(default_factory=dict)
    normalization: str = ""
    doubts: list[str] = Field(default_factory=list)

    @property
    def untrained(self) -> bool:
        """Whether it is the untrained counterpart of a teacher, which is no teacher that a student could be compared with."""
        return is_untrained(self.name)

    @property
    def identity(self) -> str:
        """Equal for equal outputs on equal pixels: the hash of the weights, with a normalisation of its own."""
        return f"{self.key} {self.normalization}".rstrip()

    def value(self, column: str) -> float | None:
        """The teacher's value in a column of the task's metric (`metric.column("test")`); None if it is unknown."""
        known: dict[str, float | None] = {
            ACCURACY.column("validation"): self.validation_accuracy,
            ACCURACY.column("test"): self.test_accuracy,
            **self.metrics,
        }
        return known.get(column)


class RunFacts(_Record):
    """One run of a sweep that trained something after the first run.

    Attributes:
        command: how the run was called; empty for a call from Python.
        environment: the entries of the sweep's environment that were different.
    """

    command: str = ""
    started: str = ""
    seconds: float = 0.0
    environment: dict[str, Any] = Field(default_factory=dict)


class SweepFacts(_Record):
    """What is recorded about the sweep as a whole.

    Attributes:
        dataset: what `data.description.describe_data` returns, `trivial`: by split, the metric's value of a model that
            ignores the image (`Task.trivial_value`), and `evaluation`: what `evaluation_identity` returns; in facts of earlier
            releases without `folder`, `test_samples`, `class_names`, `majority`, `trivial` and `evaluation`.
        baseline: the control method that gains are measured against (`scratch`).
        metric: of the task; accuracy in facts of the first release, which name none.
        notes: sentences for the reader: pairs skipped and why, warnings.
        tracking: `uri`, `experiment`, `run_id`.
        environment: versions, hardware, commit of the first run.
        command: how the first run was called; of sweeps of the first release, the latest run.
        measures: what the task measures beside its metric; empty in facts of the first release.
        later_runs: the runs after it that trained something. A run that found nothing to do is not recorded.
        seconds: of all these runs.
        open_fills: length in bytes of the log of fills when a run began that did not end properly; later lines of the log are
            not yet counted in `teachers`.
        latency_place: where all latencies of the sweep were measured, as `provenance.place_of`; empty in facts of the first
            release.
    """

    name: str
    spec: dict[str, Any]
    dataset: dict[str, Any]
    baseline: str
    planned: int
    teachers: list[TeacherFacts] = Field(default_factory=list)
    objectives: dict[str, Literal["max", "min"]] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)
    environment: dict[str, Any] = Field(default_factory=dict)
    tracking: dict[str, str | None] = Field(default_factory=dict)
    command: str = ""
    started: str = ""
    seconds: float = 0.0
    open_fills: int | None = None
    metric: Metric = ACCURACY
    measures: list[Measure] = Field(default_factory=list)
    later_runs: list[RunFacts] = Field(default_factory=list)
    latency_place: str = ""

    @property
    def test_samples(self) -> int | None:
        """How many samples the test split has; None in facts of earlier releases."""
        return self.dataset.get("test_samples")

    @property
    def dataset_label(self) -> str:
        """The data set for readers: its name, after its folder's if that is recorded: `signs (image_folder)`."""
        name, folder = self.dataset.get("name", "unnamed data"), self.dataset.get("folder")
        return f"{folder} ({name})" if folder else str(name)
