"""Means with 95% intervals, against textbook values."""

import math

import numpy as np
import pytest

from stillhouse.report.estimates import difference_of_means, mean_of_estimates, mean_with_interval


def test_the_interval_of_one_two_three_is_the_textbooks() -> None:
    # t(0.975, 2) = 4.30265 in every table; s = 1, n = 3.
    estimate = mean_with_interval([1.0, 2.0, 3.0])
    assert estimate.mean == 2.0
    assert estimate.half_width == pytest.approx(4.30265 / math.sqrt(3), rel=1e-5)
    assert estimate.n == 3


def test_one_value_has_no_interval() -> None:
    assert mean_with_interval([0.5]).half_width is None
    assert mean_with_interval([0.5]).sign() is None


@pytest.mark.parametrize("values", [[0.9, 0.9], [0.1 + 0.2, 0.3, 0.3], [0.0, 0.0]])
def test_equal_values_have_no_interval(values: list[float]) -> None:
    """They show no spread, which is not a spread of zero: on a small test split seeds are often equal by its grain."""
    estimate = mean_with_interval(values)
    assert (estimate.half_width, estimate.sign(), estimate.n) == (None, None, len(values))
    assert difference_of_means(values, [0.5, 0.5]).half_width is None


def test_the_interval_of_a_mean_of_means_adds_their_squared_errors() -> None:
    # Two samples with s = 1 and n = 3: the error of each mean is 1 / sqrt(3), that of their mean 1 / sqrt(6), with 2 + 2
    # degrees of freedom: t(0.975, 4) = 2.77645.
    parts = [mean_with_interval([1.0, 2.0, 3.0]), mean_with_interval([4.0, 5.0, 6.0])]
    estimate = mean_of_estimates(parts)
    assert (estimate.mean, estimate.n) == (3.5, 2)
    assert estimate.half_width == pytest.approx(2.77645 / math.sqrt(6), rel=1e-5)
    assert mean_of_estimates(parts[:1]).half_width == pytest.approx(parts[0].half_width)


def test_a_mean_of_means_has_no_interval_where_a_part_has_none() -> None:
    assert mean_of_estimates([mean_with_interval([1.0, 2.0]), mean_with_interval([1.0])]).half_width is None


def test_the_interval_of_a_mean_of_means_covers_the_truth_in_95_of_100_samples() -> None:
    random = np.random.default_rng(1)
    spreads = (0.5, 1.0, 2.0)
    covered = []
    for _ in range(2_000):
        parts = [mean_with_interval(random.normal(place, spread, size=4)) for place, spread in enumerate(spreads)]
        estimate = mean_of_estimates(parts)
        covered.append(abs(estimate.mean - 1.0) <= (estimate.half_width or 0))
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)


def test_no_values_have_no_mean() -> None:
    with pytest.raises(ValueError, match="at least one"):
        mean_with_interval([])
    with pytest.raises(ValueError, match="at least one"):
        mean_of_estimates([])


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
