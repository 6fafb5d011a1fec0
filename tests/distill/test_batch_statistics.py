"""Recomputed statistics of BatchNorm: against the mean and variance of the activations, and what must stay as it is."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stillhouse.data.datasets import ImageData
from stillhouse.distill.batch_statistics import NUM_SAMPLES, recompute_statistics
from stillhouse.distill.method import Method, Setup, Stage
from stillhouse.distill.trainer import Trainer

MakeTrainer = Callable[..., Trainer]


class Normed(nn.Module):
    """Two BatchNorms, the second of which sees the first one's output; dropout in between must be off."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.5)
        self.conv2, self.bn2 = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, momentum=0.25)
        self.head = nn.Linear(6, 10)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.dropout(self.bn1(self.conv1(images)).relu())
        logits: Tensor = self.head(self.bn2(self.conv2(maps)).relu().mean((2, 3)))
        return logits


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(3)
    return Normed().train()


def recompute(model: nn.Module, data: ImageData, batch_size: int = 1000, seed: int = 0) -> None:
    recompute_statistics({"student": model}, data, data.train.images, seed=seed, batch_size=batch_size, device="cpu")


def test_they_are_mean_and_variance_of_each_layers_input_with_the_present_weights(model: Any, digits: ImageData) -> None:
    images = digits.normalise(digits.train.images)
    with torch.no_grad():
        first = model.conv1(images).transpose(0, 1).flatten(1)
        normed = (first - first.mean(1, keepdim=True)) / (first.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        maps = normed.relu().reshape(4, len(images), 6, 6).transpose(0, 1)
        second = model.conv2(maps).transpose(0, 1).flatten(1)
    recompute(model, digits)
    for norm, values in ((model.bn1, first), (model.bn2, second)):
        torch.testing.assert_close(norm.running_mean, values.mean(1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, values.var(1), rtol=1e-4, atol=1e-5)


def test_over_several_batches_the_first_layers_mean_is_still_that_of_all_images(model: Any, digits: ImageData) -> None:
    recompute(model, digits, batch_size=40)
    with torch.no_grad():
        expected = model.conv1(digits.normalise(digits.train.images)).mean((0, 2, 3))
    torch.testing.assert_close(model.bn1.running_mean, expected, rtol=1e-4, atol=1e-5)


def test_weights_modes_momenta_and_random_numbers_stay(model: Any, digits: ImageData) -> None:
    model.dropout.eval()
    weights = {name: weight.clone() for name, weight in model.named_parameters()}
    modes, random = [part.training for part in model.modules()], torch.get_rng_state()
    recompute(model, digits)
    assert all(torch.equal(weight, weights[name]) for name, weight in model.named_parameters())
    assert [part.training for part in model.modules()] == modes
    assert (model.bn1.momentum, model.bn2.momentum) == (0.1, 0.25)
    assert torch.equal(torch.get_rng_state(), random)


def test_a_frozen_norm_and_a_network_in_evaluation_mode_keep_their_statistics(model: Any, digits: ImageData) -> None:
    model.bn1.eval()
    recompute(model, digits)
    assert torch.equal(model.bn1.running_mean, torch.zeros(4))
    assert not torch.equal(model.bn2.running_mean, torch.zeros(6))
    frozen: Any = Normed().eval()
    recompute(frozen, digits)
    assert torch.equal(frozen.bn2.running_mean, torch.zeros(6))


def test_a_norm_without_statistics_and_a_network_without_norms_are_passed_over(digits: ImageData) -> None:
    class NeverCalled(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise AssertionError("has nothing to recompute")

    recompute(NeverCalled(), digits)
    recompute(nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), NeverCalled()), digits)


def test_of_many_images_a_part_is_read_which_the_seed_chooses(digits: ImageData) -> None:
    read: list[int] = []
    images = digits.train.images.repeat(10, 1, 1, 1)

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(1)

        def forward(self, images: Tensor) -> Tensor:
            read.append(len(images))
            maps: Tensor = self.norm(images)
            return maps

    means = []
    for seed in (0, 0, 1):
        model: Any = Counting()
        recompute_statistics({"student": model}, digits, images, seed=seed, batch_size=100, device="cpu")
        means.append(float(model.norm.running_mean))
    assert sum(read) == 3 * NUM_SAMPLES
    assert max(read) <= 100
    assert means[0] == means[1] != means[2]


# In the trainer


class WithoutImages(Method):
    """Looks at no image of the data set."""

    def stages(self, setup: Setup) -> list[Stage]:
        return [Stage(name="blind", epochs=setup.epochs, data_free=True)]

    def step(self, step: Any, update: Any) -> dict[str, Tensor]:
        loss = step.student(step.normal(32, 1, 8, 8)).square().mean()
        update.minimise(loss)
        return {"loss": loss}


def test_training_itself_is_the_same_and_evaluation_judges_like_training(make_trainer: MakeTrainer, digits: ImageData) -> None:
    """After 3 steps, an average with momentum is 73 % the initial value."""
    trainers = {
        kind: make_trainer(model=Normed, epochs=1, recipe={"batchnorm_statistics": kind}) for kind in ("running", "recomputed")
    }
    for trainer in trainers.values():
        trainer.fit()
    one, other = (trainer.student for trainer in trainers.values())
    assert all(torch.equal(weight, dict(other.named_parameters())[name]) for name, weight in one.named_parameters())
    images = digits.normalise(digits.train.images)
    distance = {}
    for kind, trainer in trainers.items():
        student: Any = trainer.student
        with torch.no_grad():
            evaluated = student.eval()(images)
            student.train().dropout.eval()
            distance[kind] = float((student(images) - evaluated).abs().max() / evaluated.std())
    assert distance["recomputed"] < 0.2 < distance["running"]


def test_a_stage_that_may_see_no_image_keeps_the_running_statistics(make_trainer: MakeTrainer) -> None:
    trainers = [
        make_trainer(WithoutImages(), model=Normed, epochs=1, recipe={"batchnorm_statistics": kind})
        for kind in ("running", "recomputed")
    ]
    for trainer in trainers:
        trainer.fit()
    one, other = (trainer.student.state_dict() for trainer in trainers)
    assert all(torch.equal(value, other[name]) for name, value in one.items())
