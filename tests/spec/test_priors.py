"""Priors: their values at quantiles, their ends, and what they refuse."""

import math
from typing import Any

import pytest

from stillhouse.spec.priors import Choice, Integers, LogUniform, Prior, Uniform


@pytest.mark.parametrize(
    ("prior", "quantile", "value"),
    [
        (Uniform(1.0, 3.0), 0.0, 1.0),
        (Uniform(1.0, 3.0), 0.75, 2.5),
        (LogUniform(0.01, 1.0), 0.0, 0.01),
        (LogUniform(0.01, 1.0), 0.5, 0.1),
        (Integers(2, 4), 0.0, 2),
        (Integers(2, 4), 0.34, 3),
        (Integers(2, 4), 0.999, 4),
        (Choice(("a", "b")), 0.49, "a"),
        (Choice(("a", "b")), 0.5, "b"),
    ],
)
def test_the_value_at_a_quantile(prior: Prior, quantile: float, value: Any) -> None:
    assert prior.at(quantile) == pytest.approx(value) if isinstance(value, float) else prior.at(quantile) == value


@pytest.mark.parametrize("prior", [Uniform(-1.0, 2.0), LogUniform(0.5, 8.0), Integers(-3, 3)])
def test_every_value_lies_between_the_ends(prior: Uniform | LogUniform | Integers) -> None:
    low, high = (float(end) for end in prior.ends())
    drawn = [prior.at(number / 1000) for number in range(1000)]
    assert drawn == sorted(drawn)
    assert all(low <= value <= high for value in drawn)


def test_integers_are_equally_likely() -> None:
    drawn = [Integers(1, 4).at(number / 400) for number in range(400)]
    assert [drawn.count(value) for value in (1, 2, 3, 4)] == [100] * 4


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [
        *[(Uniform, low, high) for low, high in ((1.0, 1.0), (2.0, 1.0), (0.0, math.inf), (math.nan, 1.0))],
        *[(LogUniform, low, high) for low, high in ((0.0, 1.0), (-1.0, 1.0), (1.0, 1.0), (1.0, math.inf))],
        *[(Integers, low, high) for low, high in ((1, 1), (2, 1))],
    ],
)
def test_ends_in_the_wrong_order_or_without_bound_are_refused(kind: Any, low: float, high: float) -> None:
    with pytest.raises(ValueError, match=r"must be \[low, high\]"):
        kind(low, high)


def test_a_choice_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        Choice(())


@pytest.mark.parametrize(
    ("prior", "written"),
    [
        (Uniform(1.0, 2.0), {"uniform": [1.0, 2.0]}),
        (LogUniform(1.0, 2.0), {"loguniform": [1.0, 2.0]}),
        (Integers(1, 2), {"integers": [1, 2]}),
        (Choice((1, "a", None)), {"choice": [1, "a", None]}),
    ],
)
def test_a_prior_is_written_as_the_spec_has_it(prior: Prior, written: dict[str, Any]) -> None:
    assert prior.to_json() == written
