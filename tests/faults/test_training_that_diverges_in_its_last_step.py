"""A loss is finite before each step; the last step of a training can still spoil the weights: a failure, not a result."""

import functools

import pytest
import torch
from torch import Tensor, nn

from stillhouse.data.datasets import ImageData, load_dataset
from stillhouse.data.views import Views
from stillhouse.distill.evaluation import NoNumbersError, evaluate
from stillhouse.distill.method import Method, Step
from stillhouse.distill.trainer import Trainer
from stillhouse.errors import TrialError
from stillhouse.models.registry import build_model
from stillhouse.spec.training import Training


class LastStep(Method):
    """Supervised training whose last step gives every weight a gradient that is not finite, although the loss is."""

    def __init__(self, last: int) -> None:
        self._last, self._steps = last, 0

    def loss(self, step: Step) -> dict[str, Tensor]:
        self._steps += 1
        loss = step.supervised()
        if self._steps == self._last:
            # sqrt has the value 0 and an infinite slope at 0.
            loss = loss + sum((0 * weight.sum()).abs().sqrt() for weight in step.student.parameters())
        return {"cross_entropy": loss}


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_dataset("digits", options={"limit": 160}, validation=32)


def trainer(data: ImageData, method: Method, epochs: int, **training: object) -> Trainer:
    return Trainer(
        new_student=functools.partial(build_model, "mlp", num_classes=10, input_shape=data.input_shape, hidden=[16]),
        method=method,
        data=data,
        views=Views((), 1, data.input_shape, len(data.train)),
        training=Training.model_validate({"batch_size": 64, **training}),
        epochs=epochs,
    )


@pytest.mark.parametrize("epochs", [1, 2])
def test_weights_that_are_not_finite_after_the_last_step_fail_the_trial(digits: ImageData, epochs: int) -> None:
    training = trainer(digits, LastStep(2 * epochs), epochs)  # 128 images are two steps an epoch
    with pytest.raises(
        TrialError, match=rf"diverged in epoch {epochs} of {epochs} \(stage 'train'\): the weights of 'student' are not finite"
    ):
        training.fit()
    assert not training.finished


def test_the_same_training_without_that_step_finishes(digits: ImageData) -> None:
    training = trainer(digits, LastStep(100), 1)
    (entry,) = training.fit()
    assert 0 <= entry["validation_accuracy"] <= 1
    assert training.finished


class Overflow(nn.Module):
    """Finite weights whose outputs are inf - inf = NaN for images with bright pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1,), 3e38))

    def forward(self, images: Tensor) -> Tensor:
        huge = images.flatten(1).abs().sum(1, keepdim=True) * self.weight
        return (huge - huge).expand(-1, 10)


def test_outputs_that_are_no_numbers_have_no_accuracy(digits: ImageData) -> None:
    with pytest.raises(NoNumbersError, match="the model returns NaN for 32 of 32 images"):
        evaluate(Overflow(), digits, digits.validation, "cpu")


def test_the_failure_names_the_settings_to_change(digits: ImageData) -> None:
    with pytest.raises(TrialError, match=r"set training.gradient_clip, lower training.learning_rate \(the last was"):
        trainer(digits, LastStep(2), 1).fit()
    with pytest.raises(TrialError, match=r"finite; lower training.learning_rate \(the last was"):
        trainer(digits, LastStep(2), 1, gradient_clip=5.0).fit()
