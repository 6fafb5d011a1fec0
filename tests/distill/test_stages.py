import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from torch import Tensor

from stillhouse.distill.method import Method, MethodError, Setup, Stage, Step, Update
from stillhouse.distill.stages import epochs_of_first_stage, generations, training_of
from stillhouse.distill.trainer import Trainer
from stillhouse.spec.training import Training
from stillhouse.testing import MethodTrial
from stillhouse.testing.method_trial import TRAINING


@pytest.mark.parametrize(
    ("epochs", "share", "first"), [(10, 0.3, 3), (12, 0.25, 3), (10, 0.01, 1), (2, 0.99, 1), (240, 0.5, 120)]
)
def test_the_first_of_two_stages_takes_its_share_and_leaves_an_epoch(epochs: int, share: float, first: int) -> None:
    assert epochs_of_first_stage(epochs, share) == first


def test_two_stages_need_two_epochs() -> None:
    with pytest.raises(MethodError, match="needs an epoch for each of its 2 stages, has 1"):
        epochs_of_first_stage(1, 0.5)


def test_the_last_generation_takes_what_is_left_over_and_is_compared_alone() -> None:
    stages = generations(8, 3)
    assert [stage.epochs for stage in stages] == [2, 2, 4]
    assert [stage.comparable for stage in stages] == [False, False, True]
    assert [stage.name for stage in stages] == ["generation_1", "generation_2", "generation_3"]


def test_only_the_first_generation_reads_the_teachers_knowledge() -> None:
    assert [stage.knowledge for stage in generations(3, 3)] == [None, (), ()]


def test_each_generation_needs_an_epoch() -> None:
    with pytest.raises(MethodError, match="each of its 3 generations, has 2"):
        generations(2, 3)


@pytest.mark.parametrize(
    ("own", "of_trial", "bound"), [(None, None, None), (5.0, None, 5.0), (None, 2.0, 2.0), (5.0, 2.0, 2.0), (1.0, 2.0, 1.0)]
)
def test_the_smaller_bound_of_gradients_counts_in_a_stage(
    own: float | None, of_trial: float | None, bound: float | None
) -> None:
    changed = training_of(Stage(epochs=1, gradient_clip=own), Training(gradient_clip=of_trial))
    assert changed == Training(gradient_clip=bound)


@pytest.mark.parametrize(
    ("training", "rate"),
    [(Training(), 0.0005), (Training(optimizer="adam"), 0.00001), (Training(learning_rate=0.2), 0.002)],
)
def test_a_stage_trains_at_its_share_of_the_rate(training: Training, rate: float) -> None:
    changed = training_of(Stage(epochs=1, rate_factor=0.01), training)
    assert changed.peak_learning_rate == pytest.approx(rate)
    assert changed.model_copy(update={"learning_rate": training.learning_rate}) == training


def test_a_stage_without_a_recipe_of_its_own_leaves_the_trials_as_it_is() -> None:
    training = Training(optimizer="adamw")
    assert training_of(Stage(epochs=1), training) == training


@dataclass(frozen=True, kw_only=True)
class _SlowFirstStage(Method):
    """Plain training whose first epoch has the given recipe, and whose second one has the trial's."""

    rate_factor: float = 1.0
    gradient_clip: float | None = None

    def stages(self, setup: Setup) -> list[Stage]:
        first = Stage(name="first", epochs=1, rate_factor=self.rate_factor, gradient_clip=self.gradient_clip)
        return [first, Stage(name="second", epochs=setup.epochs - 1)]


def test_only_the_stage_that_names_a_rate_trains_at_it(make_trainer: Callable[..., Trainer]) -> None:
    recipe = {"learning_rate": 0.05, "schedule": "constant"}
    slow = make_trainer(_SlowFirstStage(rate_factor=0.01), recipe=recipe)
    assert [entry["learning_rate"] for entry in slow.fit()] == pytest.approx([0.0005, 0.05])


def test_a_stage_bounds_the_gradients_of_its_epochs_as_the_trial_would(make_trainer: Callable[..., Trainer]) -> None:
    bounded = make_trainer(_SlowFirstStage(gradient_clip=0.01), epochs=2)
    by_trial = make_trainer(_SlowFirstStage(), epochs=2, recipe={"gradient_clip": 0.01})
    free = make_trainer(_SlowFirstStage(), epochs=2)
    losses = [trainer.run_epoch()["train_loss"] for trainer in (bounded, by_trial, free)]
    assert losses[0] == losses[1] > losses[2]
    assert bounded.run_epoch()["train_loss"] != by_trial.run_epoch()["train_loss"]


@pytest.mark.parametrize("method", [_SlowFirstStage(rate_factor=0.0), _SlowFirstStage(gradient_clip=-1.0)])
def test_a_rate_and_a_bound_of_a_stage_must_be_positive(make_trainer: Callable[..., Trainer], method: Method) -> None:
    with pytest.raises(ValueError, match="need a rate_factor and a gradient_clip above 0"):
        make_trainer(method)


@dataclass(frozen=True, kw_only=True)
class Generated(Method):
    """Notes each step, on nothing but its random numbers."""

    steps_per_epoch: int | None = 5
    data_free: bool = True

    def stages(self, setup: Setup) -> Sequence[Stage]:
        return (Stage(epochs=setup.epochs, data_free=self.data_free, steps_per_epoch=self.steps_per_epoch),)

    def step(self, step: Step, update: Update) -> dict[str, Tensor]:
        weight = next(step.student.parameters())
        NOTED.append((step.epoch, step.progress, step.seed, len(step.indices)))
        update.minimise(weight.square().sum(), "student")
        return {"nothing": weight.sum()}


NOTED: list[tuple[int, float, int, int]] = []


@pytest.mark.parametrize("steps", [1, 5, 40])
def test_a_stage_without_data_has_as_many_steps_as_it_names(steps: int) -> None:
    NOTED.clear()
    trainer = MethodTrial(Generated(steps_per_epoch=steps), epochs=2).trainer()
    trainer.fit()
    assert [epoch for epoch, *_ in NOTED] == [0] * steps + [1] * steps
    assert [progress for _, progress, *_ in NOTED] == [number / (2 * steps) for number in range(2 * steps)]
    assert len({seed for _, _, seed, _ in NOTED}) == 2 * steps
    assert {size for *_, size in NOTED} == {TRAINING.batch_size}
    # The rate is that of the last step: a cosine over all of them.
    expected = 0.01 * (1 + math.cos(math.pi * (2 * steps - 1) / (2 * steps))) / 2
    assert trainer.curve[-1]["learning_rate"] == pytest.approx(expected)


@pytest.mark.parametrize("settings", [{"data_free": False}, {"steps_per_epoch": 0}])
def test_steps_of_its_own_are_refused_for_a_stage_with_data_and_must_be_at_least_one(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="steps_per_epoch only if it is data_free, and then at least 1"):
        MethodTrial(Generated(**settings), epochs=2).trainer()
