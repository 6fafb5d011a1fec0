"""Learning rates against their closed forms, and against torch's where torch has the same schedule."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.distill.schedule import learning_rate, risen
from stillhouse.spec.training import Training


def rates(total: int = 100, per_epoch: int = 10, **recipe: object) -> list[float]:
    training = Training.model_validate({"learning_rate": 0.4, **recipe})
    return [learning_rate(training, step, per_epoch, total) for step in range(total)]


def test_a_constant_rate_is_constant() -> None:
    assert rates(schedule="constant") == [0.4] * 100


def test_the_cosine_is_that_of_sgdr() -> None:
    for step, rate in enumerate(rates(schedule="cosine")):
        assert rate == pytest.approx(0.2 * (1 + math.cos(math.pi * step / 100)))


def test_the_cosine_is_that_of_torch() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)
    for rate in rates(schedule="cosine"):
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        scheduler.step()


def test_steps_fall_after_each_milestone() -> None:
    found = rates(schedule="step", milestones=(0.5, 0.8), gamma=0.1)
    assert found[:50] == [0.4] * 50
    assert found[50:80] == pytest.approx([0.04] * 30)
    assert found[80:] == pytest.approx([0.004] * 20)


def test_the_order_of_milestones_does_not_matter() -> None:
    assert rates(schedule="step", milestones=(0.8, 0.5)) == rates(schedule="step", milestones=(0.5, 0.8))


def test_one_cycle_rises_to_the_peak_and_falls_below_its_start() -> None:
    found = rates(total=1000, schedule="one_cycle")
    assert found[0] == pytest.approx(0.4 / 25)
    assert found[150] == pytest.approx((0.4 / 25 + 0.4) / 2)
    assert found[300] == pytest.approx(0.4)
    assert found[650] == pytest.approx((0.4 + 0.4 / 25e4) / 2)
    assert found[:301] == sorted(found[:301])
    assert found[300:] == sorted(found[300:], reverse=True)
    assert found[-1] < 0.4 / 25


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step"])
def test_the_warm_up_is_linear_and_reaches_the_peak(schedule: str) -> None:
    found = rates(schedule=schedule, warmup_epochs=2)
    assert found[:20] == pytest.approx([0.4 * (step + 1) / 20 for step in range(20)])
    assert found[20] == pytest.approx(0.4)


def test_the_cosine_begins_after_the_warm_up() -> None:
    assert rates(schedule="cosine", warmup_epochs=2)[60] == pytest.approx(0.2)


def test_a_warm_up_longer_than_the_training_still_ends() -> None:
    found = rates(total=5, schedule="cosine", warmup_epochs=100)
    assert found[:4] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert all(rate > 0 for rate in found)


@given(
    schedule=st.sampled_from(["constant", "cosine", "step", "one_cycle"]),
    total=st.integers(1, 300),
    per_epoch=st.integers(1, 50),
    warmup=st.floats(0, 20),
)
def test_every_rate_is_positive_and_at_most_the_peak(schedule: str, total: int, per_epoch: int, warmup: float) -> None:
    for rate in rates(total=total, per_epoch=per_epoch, schedule=schedule, warmup_epochs=warmup):
        assert 0 < rate <= 0.4 * (1 + 1e-12)


def test_the_peak_depends_on_the_optimiser_unless_given() -> None:
    peaks = {name: Training(optimizer=name).peak_learning_rate for name in ("sgd", "adam", "adamw")}
    assert peaks == {"sgd": 0.05, "adam": 0.001, "adamw": 0.001}


@pytest.mark.parametrize(
    ("progress", "fraction", "share"), [(0.0, 0.5, 0.0), (0.125, 0.5, 0.25), (0.5, 0.5, 1.0), (0.9, 0.5, 1.0), (0.0, 0.0, 1.0)]
)
def test_a_weight_rises_linearly_over_a_fraction_of_the_training(progress: float, fraction: float, share: float) -> None:
    assert risen(progress, fraction) == share
