"""Means with 95% intervals, against textbook values."""

import math

import numpy as np
import pytest

from stillhouse.report.estimates import difference_of_means, mean_with_interval


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
