"""The task protocol: all that depends on what a student is trained to do, and how it is judged.

The trainer, the teachers, the sweep and the report know this protocol alone, no task by name. Shapes: B samples of a batch, N
samples of a split, K numbers that a model returns for each sample.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from stillhouse.data.images import ImageData, Images, Split
from stillhouse.data.targets import TargetRule
from stillhouse.data.views import Views
from stillhouse.spec.measure import Measure
from stillhouse.spec.metric import Metric

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
        outputs: {name: float32 [N, ...]}, as `Task.outputs` names them.
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


class Evaluator(Protocol):
    """Accumulates what a metric needs over the batches of a split; parts that were seen apart can be merged.

    A metric need not be a mean over batches: the state holds what the whole is computed from.
    """

    def update(self, outputs: Mapping[str, Tensor], targets: Tensor) -> None:
        """Adds one batch.

        Args:
            outputs: {name: [B, ...]}, as `Task.outputs` names them, of a model in evaluation mode.
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
        measures: what `evidence` finds; a task without any is not asked.
    """

    default: ClassVar[bool] = False
    metric: ClassVar[Metric]
    targets: ClassVar[TargetRule]
    output: ClassVar[str] = "prediction"
    mixes: ClassVar[bool] = False
    measures: ClassVar[tuple[Measure, ...]] = ()

    @property
    def name(self) -> str:
        """As a spec names the task: its file's name for a shipped one, `module:Class` for a user-defined one."""
        kind = type(self)
        package, _, file = kind.__module__.rpartition(".")
        return file if package == SHIPPED else f"{kind.__module__}:{kind.__qualname__}"

    def model_arguments(self, data: ImageData) -> dict[str, Any]:
        """What every model of this data set is built with: `num_classes`, how many numbers it returns, and `input_shape`."""
        return {"num_classes": data.num_classes, "input_shape": data.input_shape}

    def example_input(self, data: ImageData, count: int = 1, device: str | torch.device = "cpu") -> Tensor:
        """Inputs [count, channels, H, W] of the right shape and type; of no particular content."""
        return torch.zeros(count, *data.input_shape, device=device)

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

    def first_inputs(self, data: ImageData, split: Split, count: int, device: str | torch.device = "cpu") -> Tensor:
        """What a model reads of the first `count` samples of a split as they are."""
        images = split.images[:count].to(device)
        return self.evaluation_inputs(data, images, torch.arange(len(images), device=device))

    def mix(self, own: Tensor, others: Tensor, shares: Tensor, num_outputs: int) -> Tensor:
        """The targets of mixed samples: `shares` [B] of the own targets, the rest of those of the others.

        Needed where `mixes` is True.
        """
        raise NotImplementedError(f"{self.name} does not mix targets")

    def outputs(self, raw: Any) -> dict[str, Tensor]:
        """The named outputs {name: [B, ...]} of what a model returned: a tensor, or what else the task's models return."""
        return {self.output: raw}

    def output_shapes(self, num_outputs: int) -> dict[str, tuple[int, ...]]:
        """The shape, for one sample, of each output that a teacher can provide.

        Args:
            num_outputs: how many numbers a model returns for each sample, `ImageData.num_classes`.
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

    @abstractmethod
    def evaluator(self) -> Evaluator:
        """A new evaluator that has seen nothing."""

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
            validation: for what has to be fitted before it can be reported, such as a temperature.
            test: what is reported.
            teacher: the outputs on the test split of the teacher that the student is compared with; None where there is none.
        """
        return Evidence()
