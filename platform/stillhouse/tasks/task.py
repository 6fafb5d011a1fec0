"""The task protocol: all that depends on what a student is trained to do, and how it is judged.

The trainer, the teachers, the sweep and the report know this protocol alone, no task by name. Shapes: B samples of a batch, N
samples of a split, K numbers that a model returns for each sample.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stillhouse.data.images import ImageData, Images, Split
from stillhouse.data.targets import TargetRule
from stillhouse.data.views import Views
from stillhouse.models.architecture import Architecture
from stillhouse.models.layers import Shape
from stillhouse.spec.measure import Measure
from stillhouse.spec.metric import Metric
from stillhouse.spec.training import Training

Reduction = Literal["mean", "sum"]

SHIPPED = "stillhouse.tasks"


@dataclass(frozen=True, kw_only=True)
class OutputProblem:
    """Outputs that losses and methods would misunderstand.

    Attributes:
        description: what they are, as a sentence.
        remedy: what to do.
        certain: whether results with such outputs are wrong; otherwise they are only unusual.
    """

    description: str
    remedy: str
    certain: bool


@dataclass(frozen=True, kw_only=True)
class SplitOutputs:
    """What a model returned for a whole split, in evaluation mode, on the CPU.

    Attributes:
        outputs: {name: float32 [N, ...]}, as `Task.judged` returns them; some may have the first samples only.
        targets: [N] or [N, K], the samples' own.
    """

    outputs: Mapping[str, Tensor]
    targets: Tensor


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a task finds out about a finished student besides its metric.

    Attributes:
        numbers: by the names of `Task.measures`; what does not apply is missing.
        details: lists of numbers that the task's part of the page is drawn from; small, since each record holds them.
    """

    numbers: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Sequence[Any]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A classifier of the data set's own classes that a metric needs. A sweep trains it once, and finds it by its content.

    Attributes:
        model: a shipped name, with `options`.
        training: its recipe.
    """

    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    training: Training
    epochs: int
    seed: int = 0


class SupervisedStep(Protocol):
    """A training step as a task sees it; `distill.method.Step` describes the attributes."""

    @property
    def images(self) -> Tensor: ...
    @property
    def labels(self) -> Tensor: ...
    @property
    def targets(self) -> Tensor: ...
    @property
    def student(self) -> nn.Module: ...
    @property
    def outputs(self) -> Mapping[str, Tensor]: ...
    @property
    def modules(self) -> Mapping[str, nn.Module]: ...


class Evaluator(Protocol):
    """Accumulates what a metric needs over the batches of a split; parts that were seen apart can be merged.

    A metric need not be a mean over batches: the state holds what the whole is computed from.
    """

    def update(self, outputs: Mapping[str, Tensor], targets: Tensor) -> None:
        """Adds one batch.

        Args:
            outputs: {name: [B, ...]}, as `Task.judged` returns them, of a model in evaluation mode.
            targets: [B] or [B, K], the samples' own, on the outputs' device.
        """

    def state(self) -> dict[str, Tensor]:
        """What was accumulated. Each tensor has at least one dimension; only the first one's length depends on the samples."""

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Adds what another evaluator of the same task accumulated on other samples; the order of merging does not matter."""

    def result(self) -> float:
        """The metric's value over all samples so far, at least one."""


class Task(ABC):
    """What a student is trained to do. A task has no state, so that it travels to every process by its name.

    A user-defined task sets `metric` and `targets` and implements `losses` and `evaluator`; the other hooks suit models that
    take images and return one tensor [B, K].

    Attributes:
        default: whether data sets that declare no task mean this one; exactly one shipped task does.
        metric: what models are judged by.
        targets: what the targets of a data set must look like.
        output: the name of the tensor that a model returns.
        mixes: whether the targets of two samples can be mixed, so that views may mix their images.
        draws: whether inputs are drawn anew in each view, so that views differ although nothing is augmented.
        separable: whether the loss of a batch is the mean of its samples' own losses. If not, batches are not divided among
            workers or micro-batches, and no sample has a gradient of its own.
        several: whether `outputs` reads models that return more than one tensor.
        measures: what `evidence` finds; a task without any is not asked.
        input_name: what the input of an exported model is called.
        differentiable: whether gradients can flow to what models read, so that methods may differentiate or generate it.
        any_length: whether a batch is read only as far as its longest sample, so that the inputs' second dimension varies.
    """

    default: ClassVar[bool] = False
    metric: ClassVar[Metric]
    targets: ClassVar[TargetRule]
    output: ClassVar[str] = "prediction"
    mixes: ClassVar[bool] = False
    draws: ClassVar[bool] = False
    separable: ClassVar[bool] = True
    several: ClassVar[bool] = False
    measures: ClassVar[tuple[Measure, ...]] = ()
    input_name: ClassVar[str] = "images"
    differentiable: ClassVar[bool] = True
    any_length: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """As a spec names the task: its file's name for a shipped one, `module:Class` for a user-defined one."""
        return _name_of(type(self))

    @property
    def kinds(self) -> tuple[str, ...]:
        """The task's name, and those of the tasks that its class derives from: their methods serve it too."""
        kinds = (each for each in type(self).__mro__ if issubclass(each, Task) and not each.__abstractmethods__)
        return tuple(_name_of(each) for each in kinds)

    def model_arguments(self, data: ImageData) -> dict[str, Any]:
        """What every model of this data set is built with: `num_classes`, how many numbers it returns, and `input_shape`."""
        return {"num_classes": data.num_classes, "input_shape": data.input_shape}

    def sample_shape(self, num_outputs: int, input_shape: Shape) -> Shape:
        """The shape of what a model reads of one sample.

        Args:
            num_outputs: `ImageData.num_classes`.
            input_shape: of a sample of the data set.
        """
        return input_shape

    def example_input(self, data: ImageData, count: int = 1, device: str | torch.device = "cpu") -> Tensor:
        """Inputs [count, *sample_shape] of the right shape and type; of no particular content."""
        return torch.zeros(count, *self.sample_shape(data.num_classes, data.input_shape), device=device)

    def model_problem(self, model: Architecture) -> str | None:
        """Why a model cannot be trained for the task, as words that follow its name; None if nothing is known."""
        given = self.sample_shape(model.num_classes, model.input_shape)
        if model.reads == given:
            unread = not model.returns and not self.several
            return f"returns more than one tensor, task {self.name} reads one" if unread else None
        return f"reads {in_words(model.reads)} of each sample, task {self.name} gives {in_words(given)}"

    def inputs(self, data: ImageData, views: Views, images: Images, indices: Tensor, view: int) -> Tensor:
        """What student and teacher read of the samples `indices` in `view`: normalised float32 [B, channels, H, W].

        A function of its arguments alone, so that both see the same bits.

        Args:
            images: the whole training split, uint8 [N, channels, H, W], on any device.
            indices: int64 [B], places in it.
        """
        return data.normalise(views.augment(images, indices, view))

    def evaluation_inputs(self, data: ImageData, images: Tensor, indices: Tensor) -> Tensor:
        """What a model reads of samples as they are, without a view: in evaluation, in exports, for statistics.

        Args:
            images: the samples' own, as a split holds them, uint8 [B, channels, H, W] on the model's device.
            indices: int64 [B], their places in the split.
        """
        return data.normalise(images)

    def split_inputs(self, data: ImageData, split: Split, images: Tensor, indices: Tensor) -> Tensor:
        """As `evaluation_inputs`, for a task whose inputs depend on the split: its `name` tells which one it is."""
        return self.evaluation_inputs(data, images, indices)

    def first_inputs(self, data: ImageData, split: Split, count: int, device: str | torch.device = "cpu") -> Tensor:
        """What a model reads of the first `count` samples of a split as they are."""
        images = split.images[:count].to(device)
        return self.split_inputs(data, split, images, torch.arange(len(images), device=device))

    def training_targets(
        self, data: ImageData, views: Views, images: Images, indices: Tensor, view: int, labels: Tensor
    ) -> Tensor:
        """What the supervised loss compares the outputs of a batch with: the samples' own targets, or what they imply.

        Args:
            images, indices, view: as for `inputs`.
            labels: [B] or [B, K], the samples' own targets.
        """
        return labels

    def mix(self, own: Tensor, others: Tensor, shares: Tensor, num_outputs: int) -> Tensor:
        """The targets of mixed samples: `shares` [B] of the own targets, the rest of those of the others.

        Needed where `mixes` is True.
        """
        raise NotImplementedError(f"{self.name} does not mix targets")

    def outputs(self, raw: Any) -> dict[str, Tensor]:
        """The named outputs {name: [B, ...]} of what a model returned: a tensor, or what else the task's models return."""
        return {self.output: raw}

    def output_shapes(self, num_outputs: int, input_shape: Shape) -> dict[str, tuple[int, ...]]:
        """The shape, for one sample, of each output that a teacher can provide.

        Args:
            num_outputs: how many numbers a model returns for each sample, `ImageData.num_classes`.
            input_shape: of a sample of the data set.
        """
        return {self.output: (num_outputs,)}

    def output_problem(self, outputs: Mapping[str, Tensor]) -> OutputProblem | None:
        """What is wrong with the outputs {name: [B, ...]} of a model in evaluation mode; None if nothing is known to be."""
        return None

    @abstractmethod
    def losses(self, outputs: Mapping[str, Tensor], targets: Tensor, reduction: Reduction = "mean") -> dict[str, Tensor]:
        """The terms of the supervised loss, scalars, by the names under which they are logged; their sum is minimised.

        Args:
            outputs: {name: [B, ...]}, as `outputs` names them.
            targets: [B] or [B, K], or what `mix` makes of them.
            reduction: `mean` over the batch, or the `sum` of the samples' own losses.
        """

    def supervised_terms(
        self, student: nn.Module, outputs: Mapping[str, Tensor], targets: Tensor, reduction: Reduction = "mean"
    ) -> dict[str, Tensor]:
        """As `losses`, for a task whose loss needs a part of the network itself, such as a head that runs on chosen regions.

        Args:
            student: the network that returned the outputs.
        """
        return self.losses(outputs, targets, reduction)

    def step_terms(self, step: SupervisedStep) -> dict[str, Tensor]:
        """As `supervised_terms`, for a task whose loss needs more of a training step, such as the task's helpers."""
        return self.supervised_terms(step.student, step.outputs, step.targets)

    def helpers(self, num_outputs: int, input_shape: Shape) -> Mapping[str, nn.Module]:
        """Networks that the supervised loss needs beside the student, by name; built under the trial's seed.

        They are trained with the student, by its recipe, for methods with `uses_supervised_loss`, and are no part of it.

        Args:
            num_outputs: `ImageData.num_classes`.
            input_shape: of a sample of the data set.
        """
        return {}

    def helper_terms(self, step: SupervisedStep) -> Mapping[str, Tensor]:
        """The loss of each helper on this batch, a scalar; minimised before the student's step."""
        return {}

    def drawn_input(self, data: ImageData) -> dict[str, int] | None:
        """Of which numbers a drawn input is made, in their order, by name; None for a task whose inputs are samples.

        `noise` are normal; `classes` are 0 but for the class wanted, which is 1.
        """
        return None

    @abstractmethod
    def evaluator(self) -> Evaluator:
        """A new evaluator that has seen nothing."""

    def evaluator_for(self, data: ImageData) -> Evaluator:
        """As `evaluator`, for a task whose metric needs the data set, such as what `prepare` made of it."""
        return self.evaluator()

    def split_problem(self, data: ImageData, split: Split) -> str | None:
        """Why the metric cannot be computed on a split of the data set, such as too few samples, with the remedy."""
        return None

    def judge(self, data: ImageData) -> Judge | None:
        """The classifier that the metric needs; None if it needs none."""
        return None

    def prepare(self, data: ImageData, judge: nn.Module, score: float) -> Mapping[str, NDArray[Any]]:
        """What the metric needs of the data set, computed once for a sweep: `ImageData.prepared` of every process.

        Args:
            judge: trained, in evaluation mode; takes `ImageData.normalise`d images and returns logits.
            score: its accuracy on the validation split.
        """
        return {}

    def prepared_notes(self, data: ImageData) -> Sequence[str]:
        """What a reader of results should know of what `prepare` computed, as sentences."""
        return ()

    def judged(self, data: ImageData, outputs: Mapping[str, Tensor], first: int) -> Mapping[str, Tensor]:
        """What evaluator and evidence read of a batch of outputs: the outputs, or less where they are large.

        Args:
            outputs: {name: [B, ...]} of a model in evaluation mode.
            first: the place of the batch's first sample in its split.
        """
        return outputs

    def pictures(self, data: ImageData, test: SplitOutputs, teacher: SplitOutputs | None) -> Sequence[Sequence[str]]:
        """Pictures of a finished student's outputs for the page, beside those that `evidence` makes of outputs alone.

        Args:
            test, teacher: as for `evidence`.

        Returns:
            triples: `truth`, `teacher` or `student`; a small PNG file in base64; what a reader who cannot see it should know.
        """
        return ()

    def trivial_value(self, targets: Tensor) -> float | None:
        """The metric's value on these targets of the best model that ignores its input; None if that is unknown.

        A finished student that is no better has learned nothing, and is marked as collapsed.

        Args:
            targets: [N] or [N, K], of a whole split.
        """
        return None

    def evidence(self, validation: SplitOutputs, test: SplitOutputs, teacher: SplitOutputs | None) -> Evidence:
        """What the outputs of a finished student tell besides the metric. Nothing is chosen by it.

        Args:
            validation: for what has to be fitted before it can be reported, such as a temperature; without outputs where the
                data set has no validation split.
            test: what is reported.
            teacher: the outputs on the test split of the teacher that the student is compared with; None where there is none.
        """
        return Evidence()


def in_words(shape: Shape) -> str:
    """`1x28x28 numbers`, `100 numbers`."""
    return f"{'x'.join(map(str, shape))} numbers"


def _name_of(kind: type[Task]) -> str:
    package, _, file = kind.__module__.rpartition(".")
    return file if package == SHIPPED else f"{kind.__module__}:{kind.__qualname__}"
