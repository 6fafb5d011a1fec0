"""The method contract: what one paper adds to supervised training.

A method is a frozen, keyword-only dataclass of hyper-parameters with a card and as few hooks as it needs. The base class is
plain supervised training, so a method overrides only what its paper changes; most stop at `knowledge` and `loss`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Final, Literal, Protocol

import torch
from torch import Tensor, nn

from stillhouse.data.hashing import derive_seed
from stillhouse.distill.calls import CallableTeacher, Procedure
from stillhouse.distill.draws import DeviceDraws
from stillhouse.distill.precision import Precision, run_network
from stillhouse.errors import UsageError
from stillhouse.knowledge.kinds import Knowledge
from stillhouse.knowledge.output_names import LOGITS
from stillhouse.models.architecture import Architecture
from stillhouse.models.registry import build_model, model_problems, with_data_options
from stillhouse.spec.hyperparameter import Configured
from stillhouse.spec.hyperparameter import HyperParameter as HyperParameter
from stillhouse.spec.hyperparameter import hyperparameter as hyperparameter
from stillhouse.spec.training import Training
from stillhouse.tasks import Task
from stillhouse.tasks import default as default_task
from stillhouse.tasks import find as find_task

Family = Literal["control", "L", "F", "R", "M", "G", "A", "Q"]

DEFAULT_TASK: Final = default_task()
"""The task of a data set that names no other."""
ANY_TASK: Final = "*"
"""In `Method.tasks`: every task whose models have feature maps or embeddings."""


class MethodError(ValueError):
    """A method that cannot run as requested: a layer that does not exist, a need that the teacher does not meet.

    Attributes:
        names: layers, models or methods that the error is about. If one of them is the value of a hyper-parameter of the trial,
            the plan reports the error as a problem of that hyper-parameter.
    """

    def __init__(self, message: str, *, names: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.names = tuple(names)


class Unsuitable(MethodError):
    """The student does not fit the method's defaults; the plan skips the pair and reports why."""


class WrongReturnError(ValueError):
    """A hook that returns something of another type than its contract; the message names the hook and the remedy."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a user should know of a method before using it.

    Attributes:
        family: control; L logits, F features, R relations, M several models, G generations, A own inputs, Q low precision.
        equations: which equations of the paper the file implements.
        deviations: where it departs from the paper, and why.
        suggested: values that the paper or practice found useful.
        interactions: known bad interactions with settings or other methods.
        baseline: whether gains are measured against this method; the sweep always runs it.
    """

    title: str
    arxiv: str | None = None
    family: Family = "L"
    equations: str = ""
    deviations: str = ""
    suggested: str = ""
    interactions: str = ""
    baseline: bool = False


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of the training with its own optimiser and schedule.

    Attributes:
        until: the student's layer after which nothing is computed; `step.outputs` is then empty.
        comparable: whether the metric in this stage tells anything about the trained student; early stopping ignores the
            stage otherwise.
        data_free: whether the method generates all inputs. The student then sees no image of the data set: `step.images`,
            `labels`, `targets` and `outputs` are empty, and only `indices` has the size of the batch.
        steps_per_epoch: how many steps an epoch of a stage that is `data_free` has. None: as many as an epoch of the data set.
        samples_per_step: how many samples pass through the student, and through the teacher that it calls, in a step of a stage
            that is `data_free`; estimates of time need it. None: those of a batch.
        knowledge: which of the names of `knowledge` the stage's losses read; only those are gathered. None: all.
        rate_factor: what the trial's learning rate is multiplied by, for a loss whose paper trains at another rate.
        gradient_clip: the largest norm of the gradients, for a loss that needs a bound; a smaller one of the trial comes first.
        full_precision: whether operators that round numbers wait, so that the student trains in full precision.
    """

    name: str = "train"
    epochs: int
    until: str | None = None
    comparable: bool = True
    data_free: bool = False
    steps_per_epoch: int | None = None
    samples_per_step: int | None = None
    knowledge: tuple[str, ...] | None = None
    rate_factor: float = 1.0
    gradient_clip: float | None = None
    full_precision: bool = False


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a method knows when it builds its helpers.

    Attributes:
        teacher: None for a method that needs no teacher.
        new_student: builds a student with a fresh initialisation; the n-th call is the same in every run of the trial.
        num_samples: size of the training split.
        labels: the training split's targets on the CPU, [num_samples, ...], int64 [num_samples] for classes; None while the
            sweep is planned, when only shapes matter.
        teacher_weights: returns the teacher's weights by name, for a method that reuses a part of it; None while the sweep is
            planned, when only shapes matter.
    """

    teacher: Architecture | None
    student: Architecture
    new_student: Callable[[], nn.Module]
    num_samples: int
    epochs: int
    labels: Tensor | None = None
    teacher_weights: Callable[[], Mapping[str, Tensor]] | None = None

    def new_model(self, model: str, **options: Any) -> nn.Module:
        """A model of another architecture for the student's images and outputs, with fresh weights.

        Args:
            model: a shipped name, or `package.module:function`, as in the spec.
            options: the model's, such as `width`.

        Raises:
            MethodError: there is no such model, or it does not take the options or the images.
        """
        try:
            options = with_data_options(model, options, self.student.data_options)
        except UsageError as error:
            raise MethodError(f"model '{model}' cannot be used: {error}", names=[model]) from error
        problems = model_problems(model, options, self.student.num_classes, self.student.input_shape)
        if problems:
            raise MethodError(f"model '{model}' cannot be used: {'; '.join(map(str, problems))}", names=[model])
        return build_model(model, num_classes=self.student.num_classes, input_shape=self.student.input_shape, **options)


@dataclass(frozen=True, kw_only=True)
class Helper:
    """A module of the method: trained with the student, but not part of it and not counted in its size.

    Attributes:
        trainable: a frozen helper (such as an earlier generation) stays in evaluation mode and has no optimiser.
        training: fields of `Training` that differ from the student's (`{"optimizer": "adam", "learning_rate": 0.001}`).
        evaluate: whether the helper is a model of the same task whose metric is reported too (a peer).
    """

    module: nn.Module
    trainable: bool = True
    training: Mapping[str, Any] = field(default_factory=dict)
    evaluate: bool = False


@dataclass(frozen=True, kw_only=True)
class StageStart:
    """What `begin_stage` may change: the student's and the helpers' weights, in place."""

    stage: Stage
    index: int
    student: nn.Module
    modules: Mapping[str, nn.Module]
    new_student: Callable[[], nn.Module]


@dataclass(kw_only=True, slots=True)
class Step:
    """One batch as a loss sees it. B batch, C classes, K channels, H and W height and width.

    Attributes:
        images: [B, channels, H, W] float, augmented and normalised: the pixels that the teacher saw too. They require
            gradients if the method `differentiates_images`.
        labels: the samples' own targets: classes, [B] int64, or what else the task has.
        targets: what the supervised loss takes: `labels`, or what the task makes of them when the view mixes samples
            (probabilities [B, C] for classes).
        indices: [B] int64, the samples' places in the training split.
        num_views: number of distinct views of the data; the view of epoch e is that of epoch e + num_views.
        outputs: the student's outputs by the task's names, `logits` [B, C] for classes; empty in a stage with `until` and in
            one that is `data_free`.
        student_features: {layer: output} of the layers that `student_layers` named.
        teacher: {name: [B, ...]} the knowledge that `knowledge` named, or the part of it that the stage needs.
        modules: the helpers by name.
        progress: fraction of the whole training that is done, in [0, 1).
        stage_progress: fraction of the stage that is done, in [0, 1).
        seed: decides every random draw of this step; see `generator`.
        callable_teacher: see `call_teacher`.
        part: (first row, rows of the whole batch) when this is a part of a batch: one worker's slice, or a micro-batch.
        task: what the student is trained to do.
        gradient_scale: the factor that keeps gradients in a float16 student above the smallest number; see `input_gradient`.
        precision: of the passes that the method makes itself; see `run_network`.
    """

    images: Tensor
    labels: Tensor
    targets: Tensor
    indices: Tensor
    student: nn.Module
    outputs: Mapping[str, Tensor]
    student_features: Mapping[str, Tensor]
    teacher: Mapping[str, Tensor]
    modules: Mapping[str, nn.Module]
    stage: Stage
    epoch: int
    progress: float
    seed: int
    stage_progress: float = 0.0
    callable_teacher: CallableTeacher | None = None
    part: tuple[int, int] | None = None
    num_views: int = 1
    task: Task = field(default_factory=find_task)
    gradient_scale: float = 1.0
    precision: Precision = "off"
    _generator: torch.Generator | None = None
    _draws: DeviceDraws | None = None

    @property
    def logits(self) -> Tensor:
        """The student's logits [B, C], in a stage that computes them."""
        return self.output(LOGITS)

    @property
    def student_logits(self) -> Tensor | None:
        """As `logits`; None in a stage that does not compute them."""
        return self.outputs.get(LOGITS)

    def output(self, name: str) -> Tensor:
        """The student's output called `name`, [B, ...], in a stage that computes it."""
        assert self.outputs, f"stage '{self.stage.name}' does not run the student to its end"
        assert name in self.outputs, f"task {self.task.name} has no output '{name}'; it has {', '.join(self.outputs)}"
        return self.outputs[name]

    def supervised_terms(self) -> dict[str, Tensor]:
        """The terms of the task's supervised loss on this batch, by the names under which they are logged.

        Each is a scalar, the mean over the batch. It takes the student's outputs and the batch's targets.
        """
        assert self.outputs, f"stage '{self.stage.name}' does not run the student to its end"
        return self.task.step_terms(self)

    def supervised(self) -> Tensor:
        """The task's supervised loss on this batch: the sum of `supervised_terms`, a scalar."""
        return sum_of_terms(self.supervised_terms())

    def call_teacher(self, images: Tensor) -> Tensor:
        """The frozen teacher's logits [B, C] for any normalised images [B, channels, H, W], of a method that `calls_teacher`.

        Gradients flow through it to the images, once, wherever the teacher runs.
        """
        return self.call_teacher_for(images)[0]

    def call_teacher_for(self, images: Tensor, *layers: str) -> tuple[Tensor, ...]:
        """As `call_teacher`, followed by the outputs of the teacher's named layers."""
        assert self.callable_teacher is not None, "only a method with calls_teacher = True can call the teacher"
        return self.callable_teacher(images, *layers)

    def run_at_teacher(self, procedure: Procedure, images: Tensor, *tensors: Tensor, **options: Any) -> tuple[Tensor, ...]:
        """`procedure(teacher, images, *tensors, **options)`, computed where the teacher is, in one call.

        For a loop that needs the teacher's gradient in every round. The procedure is a module-level function that may call
        `teacher(images)` as often as it needs, and returns tensors [B, ...] whose rows depend on that row of the inputs alone.

        Args:
            images: normalised, [B, channels, H, W].
            tensors: [B, ...] each.
            options: plain values.
        """
        assert self.callable_teacher is not None, "only a method with calls_teacher = True can call the teacher"
        return self.callable_teacher.run(procedure, images, *tensors, **options)

    def from_each(self, name: str) -> list[Tensor]:
        """The knowledge called `name` of every teacher of this trial, in the order of the sweep's teachers."""
        return [value for key, value in self.teacher.items() if key == name or key.endswith(f"/{name}")]

    def run_network(self, network: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """What a network returns for inputs [B, ...], in the precision of the student's own passes; the result is float32.

        For passes of whole networks that a method makes itself: of the student on other images, a peer, an earlier generation,
        a generator. What is computed from their outputs, such as a loss, is computed in float32.
        """
        return run_network(self.precision, network, *inputs)

    def input_gradient(self) -> Tensor:
        """The gradient dL(s(x), y) / dx of each sample's own supervised loss L, [B, channels, H, W]: cross-entropy for classes.

        For methods with `differentiates_images`. y is the sample's own target, as in the teacher's `input_gradient()`. It
        can be differentiated again. With BatchNorm in the student a sample's gradient includes its part in the batch's
        statistics.
        """
        loss = sum_of_terms(self.task.supervised_terms(self.student, self.outputs, self.labels, "sum"))
        if self.gradient_scale == 1:
            (gradient,) = torch.autograd.grad(loss, self.images, create_graph=True)
            return gradient
        (scaled,) = torch.autograd.grad(loss * self.gradient_scale, self.images, create_graph=True)
        return scaled / self.gradient_scale

    @property
    def generator(self) -> torch.Generator:
        """A CPU generator for this step alone: the same numbers in every run, on every device, after every resume.

        On a GPU, `normal`, `uniform` and `integers` draw on the device instead, which does not wait for a copy.
        """
        if self._generator is None:
            self._generator = torch.Generator().manual_seed(self.seed)
        return self._generator

    def normal(self, *shape: int) -> Tensor:
        """Standard normal draws on the student's device; one per sample along the first dimension where it is B long."""
        if self._on_device:
            return self._drawn(self._device_draws().normal, shape)
        return self._drawn(partial(torch.randn, generator=self.generator), shape)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform draws on [0, 1) on the student's device, as for `normal`."""
        if self._on_device:
            return self._drawn(self._device_draws().uniform, shape)
        return self._drawn(partial(torch.rand, generator=self.generator), shape)

    def integers(self, bound: int, *shape: int) -> Tensor:
        """Uniform draws of whole numbers in 0..bound-1, int64 on the student's device, as for `normal`."""
        if self._on_device:
            return self._drawn(partial(self._device_draws().integers, bound), shape)
        return self._drawn(lambda *whole: torch.randint(bound, whole, generator=self.generator), shape)

    @property
    def _on_device(self) -> bool:
        return self.images.device.type != "cpu"

    def _device_draws(self) -> DeviceDraws:
        if self._draws is None:
            self._draws = DeviceDraws(self.seed, self.images.device)
        return self._draws

    def _drawn(self, draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        if self.part is None or not shape or shape[0] != len(self.indices):
            return draw(*shape)
        # A sample's draws are those that it has in the whole batch.
        first, whole = self.part
        if self._on_device:
            return draw(*shape, first=first)
        return draw(whole, *shape[1:])[first : first + shape[0]]


def serves_task(method: "Method", task: Task) -> bool:
    """Whether the method can train a student of the task, or of a task that this one is a kind of.

    A method that differentiates or generates inputs needs a task whose inputs are differentiable.
    """
    reads_gradients = method.calls_teacher or method.differentiates_images
    return any(method.serves(name) for name in task.kinds) and (task.differentiable or not reads_gradients)


def sum_of_terms(terms: Mapping[str, Tensor]) -> Tensor:
    """The loss that is minimised: the sum of its scalar terms.

    Raises:
        WrongReturnError: they are not a mapping of names to tensors.
    """
    if not isinstance(terms, Mapping) or not terms:
        got = "an empty mapping" if isinstance(terms, Mapping) else f"an object of type {type(terms).__name__}"
        raise WrongReturnError(f"a loss must return its terms by name, such as {{'kd': loss}}, got {got}")
    for name, term in terms.items():
        if not isinstance(term, Tensor):
            got = f"an object of type {type(term).__name__} for '{name}'"
            raise WrongReturnError(
                f"each term of a loss must be a scalar tensor, got {got}; compute it from the step's tensors"
            )
    return torch.stack(list(terms.values())).sum() if len(terms) > 1 else next(iter(terms.values()))


class Update(Protocol):
    """How a method that overrides `step` changes weights."""

    def minimise(self, loss: Tensor, *groups: str) -> None:
        """One optimiser step on `loss` for the named groups: `student` and helpers by name; all of them by default."""

    def minimise_separately(self, losses: Mapping[str, Tensor], momentum_shifts: Mapping[str, float]) -> None:
        """One step of SGD on the sum of several losses, for all groups; each loss has momentum of its own.

        Args:
            losses: scalars by name. Weight decay is added to the gradient of the first one that reaches a weight.
            momentum_shifts: for each loss, what is added to the recipe's momentum for its gradients. A weight that only one of
                the losses reaches has the recipe's momentum. A method that uses shifts says in `recipe_problem` which recipes
                it cannot use.
        """


@dataclass(frozen=True, kw_only=True)
class Method(Configured):
    """Plain supervised training; the base class of every method.

    Raises:
        ValueError: a hyper-parameter breaks its rule.
    """

    card: ClassVar[Card] = Card(title="Supervised training", family="control")
    revision: ClassVar[int] = 1
    """Raised whenever a release changes what a shipped method computes or its defaults. It is part of the keys of its trials,
    so that a sweep never mixes results from before and after; user-defined methods have the version of their text instead."""
    tasks: ClassVar[tuple[str, ...]] = (DEFAULT_TASK,)
    """The tasks that the method serves, by name. A method that reads neither logits nor labels, apart from the supervised
    loss, names `ANY_TASK` here."""
    every_teacher: ClassVar[bool] = False
    """Whether a trial learns from all teachers of the sweep together. `knowledge` is then called for each of them, and with
    more than one `step.teacher` has `<teacher>/<name>`; `step.from_each(name)` gives them in order."""
    calls_teacher: ClassVar[bool] = False
    """Whether steps call the teacher on inputs that the method generates, by `step.call_teacher`; it calls the first of several
    teachers."""
    brief: ClassVar[Mapping[str, Any]] = {}
    """Hyper-parameters of a training that is short enough for the tests that every method goes through; for a method whose
    steps are not counted in epochs of the data set."""

    @classmethod
    def shortened(cls, **hyperparameters: Any) -> "Method":
        """The method with the hyper-parameters of `brief`, and the given ones, for tests."""
        return cls(**{**cls.brief, **hyperparameters})

    @classmethod
    def other_methods(cls, hyperparameters: Mapping[str, Any]) -> Sequence[str]:
        """The names of other methods that run with these hyper-parameters; their versions are part of the trial's key."""
        return ()

    def serves(self, task: str) -> bool:
        """Whether the method can train a student of the named task with these hyper-parameters."""
        return ANY_TASK in self.tasks or task in self.tasks

    @property
    def differentiates_images(self) -> bool:
        """Whether the loss reads the student's gradient with respect to its images: `step.input_gradient()`."""
        return False

    @property
    def uses_supervised_loss(self) -> bool:
        """Whether the loss contains the task's supervised loss. If not, the task's own helpers are not trained.

        True for most methods.
        """
        return True

    @property
    def needs_whole_batch(self) -> bool:
        """Whether the loss of a batch is more than the mean of its samples' own losses.

        True if samples are related to each other, or if a step changes what the method remembers. Such a method can train
        neither by micro-batches nor with several workers.
        """
        return False

    def recipe_problem(self, training: Training) -> str | None:
        """Why the method cannot train a student with this recipe; None if it can. The plan passes over such trials."""
        return None

    def knowledge(self, teacher: Architecture, student: Architecture) -> Mapping[str, Knowledge]:
        """What the loss needs from the teacher, by the name under which `step.teacher` has it.

        Raises:
            MethodError: the teacher or the student lacks what the method needs.
        """
        return {}

    def student_layers(self, teacher: Architecture | None, student: Architecture) -> Sequence[str]:
        """The student's layers that the loss reads; `step.student_features` has their outputs."""
        return ()

    def stages(self, setup: Setup) -> Sequence[Stage]:
        """The parts of the training; their epochs add up to `setup.epochs`."""
        return (Stage(epochs=setup.epochs),)

    def modules(self, setup: Setup) -> Mapping[str, Helper]:
        """The helpers, built for each trial; called under the trial's seed."""
        return {}

    def classifiers(self, student: nn.Module, modules: Mapping[str, nn.Module]) -> Mapping[str, nn.Module]:
        """The trained models, by name; each takes images, returns what the student returns, and shares the trained weights.

        `student` is what is evaluated, measured and stored: the student itself, or its layers together with helpers that it
        cannot do without. The metric of every other one is reported beside it.
        """
        return {"student": student}

    def begin_stage(self, start: StageStart) -> None:
        """Called before each stage, never on resume inside one."""

    def loss(self, step: Step) -> dict[str, Tensor]:
        """Named scalar terms whose sum is minimised; each is logged."""
        return step.supervised_terms()

    def step(self, step: Step, update: Update) -> dict[str, Tensor]:
        """One training step; methods that alternate between networks override it. Returns the terms to log."""
        terms = self.loss(step)
        update.minimise(sum_of_terms(terms))
        return terms


def step_seed(trial_seed: int, global_step: int) -> int:
    """The seed of everything random in one training step."""
    return derive_seed(trial_seed, "step", global_step)
