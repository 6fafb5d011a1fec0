"""Values of priors: short, between the ends, and as near to a default as the prior allows."""

from typing import Any

import numpy as np
import pytest

from stillhouse.spec.priors import Choice, Integers, LogUniform, Prior, Uniform
from stillhouse.sweep.search.prior_values import middle, nearest, value_at


@pytest.mark.parametrize("prior", [Uniform(0.123456789, 0.2), LogUniform(1.23456789e-4, 9.87654321), Integers(1, 3)])
def test_drawn_values_stay_between_the_ends_and_are_short(prior: Prior) -> None:
    low, high = (float(end) for end in prior.ends())
    values = [value_at(prior, quantile) for quantile in np.linspace(0, 1, 50, endpoint=False)]
    assert all(low <= value <= high for value in values)
    assert all(value in (low, high) or float(f"{value:.6g}") == value for value in values)


def test_a_choice_keeps_its_values_as_they_are() -> None:
    assert [value_at(Choice((0.123456789, "kd")), quantile) for quantile in (0.0, 0.5)] == [0.123456789, "kd"]


@pytest.mark.parametrize(
    ("prior", "value"),
    [
        (Uniform(1, 3), 2.0),
        (LogUniform(0.01, 100), 1.0),
        (Integers(1, 5), 3),
        (Choice((0.25, 0.5, 1.0)), 0.5),
        (Choice(("a", "b")), "b"),
    ],
)
def test_the_middle_is_the_median_and_of_a_choice_the_middle_value(prior: Prior, value: Any) -> None:
    assert middle(prior) == pytest.approx(value) if isinstance(value, float) else middle(prior) == value


@pytest.mark.parametrize(
    ("prior", "default", "value"),
    [
        (Uniform(1, 10), 4.0, 4.0),
        (Uniform(5, 10), 4.0, 5.0),
        (LogUniform(0.01, 0.2), 1, 0.2),
        (Uniform(1, 10), 1 / 3 + 1, 4 / 3),  # an exact default is not shortened
        (Integers(2, 4), 2, 2),
        (Integers(3, 9), 2, 3),
        (Choice((1, 2, 8)), 4, 2),
        (Choice(("drawn", "mean")), "mean", "mean"),
        (Choice(("drawn", "mean")), "other", "drawn"),
        (Choice(([4], [8])), [8], [8]),
        (Uniform(0, 1), None, 0.5),
    ],
)
def test_the_value_nearest_to_a_default(prior: Prior, default: Any, value: Any) -> None:
    assert nearest(prior, default) == value
