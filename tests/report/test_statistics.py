import math
from collections.abc import Callable

import numpy as np
import pytest

from stillhouse.report.configurations import compare, configurations, winners
from stillhouse.report.estimates import difference_of_means, mean_with_interval
from stillhouse.report.gains import gains
from stillhouse.report.sensitivities import sensitivities
from stillhouse.spec.metric import ACCURACY
from stillhouse.spec.records import TrialRecord

Make = Callable[..., TrialRecord]


def test_the_interval_of_one_two_three_is_the_textbooks() -> None:
    # t(0.975, 2) = 4.30265 in every table; s = 1, n = 3.
    estimate = mean_with_interval([1.0, 2.0, 3.0])
    assert estimate.mean == 2.0
    assert estimate.half_width == pytest.approx(4.30265 / math.sqrt(3), rel=1e-5)
    assert estimate.n == 3


def test_one_value_has_no_interval() -> None:
    assert mean_with_interval([0.5]).half_width is None
    assert mean_with_interval([0.5]).sign() is None


def test_no_values_have_no_mean() -> None:
    with pytest.raises(ValueError, match="at least one"):
        mean_with_interval([])


def test_the_interval_covers_the_truth_in_95_of_100_samples() -> None:
    random = np.random.default_rng(0)
    held = [abs(each.mean) <= (each.half_width or 0) for each in map(mean_with_interval, random.normal(size=(2_000, 4)))]
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)


def test_welch_reduces_to_students_t_for_samples_of_equal_size_and_variance() -> None:
    # Then the degrees of freedom are 2 n - 2 = 4: t = 2.77645.
    estimate = difference_of_means([1.0, 2.0, 3.0], [11.0, 12.0, 13.0])
    assert estimate.mean == -10.0
    assert estimate.half_width == pytest.approx(2.77645 * math.sqrt(2 / 3), rel=1e-5)
    assert estimate.sign() == -1


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
    left = [record("kd", seed=seed, test=0.80 + seed / 10 + 0.01) for seed in range(2)]
    right = [record("control", seed=seed, test=0.80 + seed / 10) for seed in range(2)]
    a, b = configurations([*left, *right])
    difference, kind = compare(a, b)
    assert kind == "paired"
    assert difference.mean == pytest.approx(0.01)
    assert difference.half_width == pytest.approx(0.0, abs=1e-12)


def test_without_a_common_seed_the_comparison_is_unpaired(record: Make) -> None:
    a, b = configurations([record("kd", seed=1, test=0.9), record("control", seed=2, test=0.8)])
    difference, kind = compare(a, b)
    assert (kind, difference.half_width) == ("unpaired", None)
    assert difference.mean == pytest.approx(0.1)


def test_a_gain_is_only_taken_on_the_same_concrete_student(record: Make) -> None:
    records = [
        record("kd", options={"width": 2.0}, test=0.95),
        record("control", options={"width": 1.0}, test=0.85),
        record("kd", options={"width": 1.0}, test=0.86),
    ]
    by_column = {gain.column: gain.difference for gain in gains(winners(configurations(records)), "control")}
    assert by_column["lenet width=2"] is None
    same = by_column["lenet width=1"]
    assert same is not None
    assert same.mean == pytest.approx(0.01)


def test_many_widths_of_one_student_are_pooled_under_its_label(record: Make) -> None:
    records = [
        record(method, options={"width": float(width)}, test=0.8 + width / 100 + bonus)
        for width in range(14)
        for method, bonus in (("kd", 0.02), ("control", 0.0))
    ]
    (gain,) = gains(winners(configurations(records)), "control")
    assert (gain.column, gain.over) == ("lenet", "students")
    assert gain.difference is not None
    assert gain.difference.n == 14
    assert gain.difference.mean == pytest.approx(0.02)


def test_a_monotone_setting_has_rank_correlation_one_whatever_the_student_sizes(record: Make) -> None:
    records = [
        record(student=student, hyperparameters={"weight": 10.0**step}, test=base + step / 100)
        for student, base in (("small", 0.5), ("large", 0.9))
        for step in range(4)
    ]
    (found,) = sensitivities(records, ACCURACY)
    assert found.correlation == pytest.approx(1.0)
    assert found.best == 1000.0


def test_a_word_setting_that_decides_everything_explains_all_variance(record: Make) -> None:
    records = [
        record(hyperparameters={"loss": loss, "n": number}, test=accuracy)
        for loss, accuracy in (("l1", 0.8), ("l2", 0.9))
        for number in range(2)
    ]
    by_name = {each.hyperparameter: each for each in sensitivities(records, ACCURACY)}
    assert by_name["loss"].explained == pytest.approx(1.0)
    assert by_name["n"].correlation == pytest.approx(0.0)


def test_a_setting_with_one_value_has_no_sensitivity(record: Make) -> None:
    assert sensitivities([record(hyperparameters={"t": 4.0}, seed=seed) for seed in range(3)], ACCURACY) == []


def test_a_setting_that_differs_between_students_only_has_no_sensitivity(record: Make) -> None:
    records = [
        record("a", student="small", validation=0.5, hyperparameters={"weight": 1.0}),
        record("a", student="large", validation=0.9, hyperparameters={"weight": 2.0}),
    ]
    assert sensitivities(records, ACCURACY) == []
