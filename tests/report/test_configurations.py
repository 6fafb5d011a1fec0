"""Trials that differ in their seed only are one configuration; winners are chosen on validation data."""

import math
from collections.abc import Callable

import pytest

from stillhouse.report.configurations import compare, configurations, winners
from stillhouse.spec.records import TrialRecord

Make = Callable[..., TrialRecord]


def test_seeds_of_one_configuration_are_one_configuration(record: Make) -> None:
    found = configurations([record(seed=seed, test=0.9 + seed / 100) for seed in range(3)])
    assert len(found) == 1
    assert found[0].test.mean == pytest.approx(0.91)


def test_only_the_fresh_seeds_of_a_confirmed_winner_are_reported(record: Make) -> None:
    lucky = record(seed=0, test=0.99)
    fresh = [record(seed=seed, test=0.90, phase="confirm") for seed in (1, 2)]
    (found,) = configurations([lucky, *fresh])
    assert found.test.mean == pytest.approx(0.90)
    assert found.search_validation == 0.99
    assert found.confirmed


def test_winners_are_chosen_by_validation_never_by_test(record: Make) -> None:
    honest = record(hyperparameters={"t": 1}, validation=0.92, test=0.80)
    tempting = record(hyperparameters={"t": 2}, validation=0.91, test=0.99)
    (winner,) = winners(configurations([tempting, honest]))
    assert winner.hyperparameters == {"t": 1}


def test_failed_and_nan_trials_are_in_no_comparison(record: Make) -> None:
    assert (
        configurations([record(status="failed", test=None), record(test=math.nan), record(status="stopped", test=None)]) == []
    )


def test_pairs_by_seed_cancel_what_seeds_share(record: Make) -> None:
    left = [record("kd", seed=seed, test=0.80 + seed / 10 + gain) for seed, gain in enumerate((0.009, 0.011))]
    right = [record("control", seed=seed, test=0.80 + seed / 10) for seed in range(2)]
    a, b = configurations([*left, *right])
    difference, kind = compare(a, b)
    assert kind == "paired"
    assert difference.mean == pytest.approx(0.01)
    # s = 0.0014142, n = 2, t(0.975, 1) = 12.706.
    assert difference.half_width == pytest.approx(12.706 * 0.001, rel=1e-4)


def test_without_a_common_seed_the_comparison_is_unpaired(record: Make) -> None:
    a, b = configurations([record("kd", seed=1, test=0.9), record("control", seed=2, test=0.8)])
    difference, kind = compare(a, b)
    assert (kind, difference.half_width) == ("unpaired", None)
    assert difference.mean == pytest.approx(0.1)
