"""The conformance suite for tasks: classification passes it, and tasks that break a promise are found."""

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stillhouse import tasks
from stillhouse.data.datasets import load_dataset
from stillhouse.data.images import ImageData
from stillhouse.spec.metric import Metric
from stillhouse.tasks import Reduction, Task
from stillhouse.testing import TASK_CHECKS, TaskTrial, check_task

Classification = type(tasks.find())


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_dataset("digits", validation=60, options={"limit": 240})


@pytest.mark.parametrize("name", TASK_CHECKS)
def test_classification_passes(name: str, digits: ImageData) -> None:
    TASK_CHECKS[name](TaskTrial(tasks.find(), digits))


def test_the_whole_suite_runs_on_a_named_data_set() -> None:
    check_task(tasks.default(), "digits", options={"limit": 240})


class Wrong(Classification):  # type: ignore[valid-type, misc]
    """Judged in the wrong direction."""

    metric = Metric(name="accuracy", direction="min", label="accuracy")


class BatchSum(Classification):  # type: ignore[valid-type, misc]
    """A sum whatever the reduction."""

    def losses(self, outputs: Mapping[str, Tensor], targets: Tensor, reduction: Reduction = "mean") -> dict[str, Tensor]:
        return {"cross_entropy": F.cross_entropy(outputs["logits"], targets, reduction="sum")}


class MeanOfBatches:
    """A mean over batches, which is not the accuracy of a split whose batches differ in size."""

    def __init__(self) -> None:
        self.values = torch.zeros(0)

    def update(self, outputs: Mapping[str, Tensor], targets: Tensor) -> None:
        value = (outputs["logits"].argmax(1) == targets).float().mean()
        self.values = torch.cat([self.values, value[None]])

    def state(self) -> dict[str, Tensor]:
        return {"values": self.values}

    def merge(self, state: Mapping[str, Tensor]) -> None:
        self.values = torch.cat([self.values, state["values"]])

    def result(self) -> float:
        return float(self.values.mean())


class Averaging(Classification):  # type: ignore[valid-type, misc]
    def evaluator(self) -> MeanOfBatches:
        return MeanOfBatches()


class Misnamed(Classification):  # type: ignore[valid-type, misc]
    metric = Metric(name="top-1 accuracy", direction="max", label="accuracy")


class Misshaped(Classification):  # type: ignore[valid-type, misc]
    def output_shapes(self, num_outputs: int, input_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        return {"logits": (num_outputs + 1,)}


class Random(Classification):  # type: ignore[valid-type, misc]
    """Inputs that depend on more than the sample and the view."""

    def inputs(self, *arguments: object) -> Tensor:
        pixels: Tensor = super().inputs(*arguments)
        return pixels + torch.rand_like(pixels)


@pytest.mark.parametrize(
    ("task", "check"),
    [
        (Wrong, "a_lower_loss_is_a_better_metric"),
        (BatchSum, "the_loss_is_a_mean_over_samples"),
        (Averaging, "parts_are_evaluated_as_the_whole"),
        (Misnamed, "metric"),
        (Misshaped, "models"),
        (Random, "inputs_are_a_function_of_the_sample_and_the_view"),
    ],
)
def test_a_broken_promise_is_found(task: type[Task], check: str, digits: ImageData) -> None:
    with pytest.raises(AssertionError):
        TASK_CHECKS[check](TaskTrial(task(), digits))


def test_all_failures_are_listed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "find", lambda name=None: Wrong())
    with pytest.raises(AssertionError, match=r"(?s)fails 1 of \d+ checks.*a_lower_loss_is_a_better_metric"):
        check_task(tasks.default(), "digits", options={"limit": 240})
