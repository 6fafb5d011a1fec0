import math
from typing import Literal

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.errors import UsageError
from stillhouse.report.pareto import pareto_front

Objectives = dict[str, Literal["max", "min"]]
ACCURACY_AND_SIZE: Objectives = {"validation_accuracy": "max", "parameters": "min"}


def frame(points: list[tuple[float, float]]) -> pd.DataFrame:
    names = [f"t{number:03d}" for number in range(len(points))]
    columns = np.array(points, dtype=np.float64).reshape(-1, 2)
    return pd.DataFrame({"trial": names, "validation_accuracy": columns[:, 0], "parameters": columns[:, 1]})


def dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """The definition, for costs: nowhere worse, somewhere better."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


def test_the_front_of_a_hand_made_table() -> None:
    table = frame([(0.90, 100), (0.80, 50), (0.85, 100), (0.95, 400), (0.79, 60)])
    assert pareto_front(table)["trial"].tolist() == ["t003", "t000", "t001"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=40))
def test_two_objectives_agree_with_the_definition(points: list[tuple[int, int]]) -> None:
    front = pareto_front(frame([(float(a), float(b)) for a, b in points]), ACCURACY_AND_SIZE)
    costs = [(-a, b) for a, b in points]
    expected = {cost for cost in costs if not any(dominates(other, cost) for other in costs)}
    kept = [(-a, b) for a, b in zip(front["validation_accuracy"], front["parameters"], strict=True)]
    assert len(kept) == len(set(kept))
    assert set(kept) == expected


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 3)] * 3), max_size=30))
def test_three_objectives_agree_with_the_definition(points: list[tuple[int, int, int]]) -> None:
    table = pd.DataFrame(np.array(points, dtype=np.float64).reshape(-1, 3), columns=["a", "b", "c"])
    front = pareto_front(table, {"a": "min", "b": "min", "c": "min"})
    expected = {point for point in points if not any(dominates(other, point) for other in points)}
    assert {tuple(row) for row in front.to_numpy().tolist()} == expected
    assert len(front) == len(expected)


def test_rows_with_a_missing_objective_are_left_out() -> None:
    table = frame([(math.nan, 1), (0.5, 100), (0.9, math.nan)])
    assert pareto_front(table)["trial"].tolist() == ["t001"]


def test_nullable_integers_may_be_missing() -> None:
    table = frame([(0.9, 1), (0.8, 1)]).assign(parameters=pd.array([None, 7], dtype="Int64"))
    assert pareto_front(table)["trial"].tolist() == ["t001"]


def test_of_equal_rows_the_smallest_key_is_kept_in_whatever_order_they_come() -> None:
    table = frame([(0.9, 10), (0.9, 10), (0.9, 10)])
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        assert pareto_front(table.iloc[order])["trial"].tolist() == ["t000"]


def test_one_objective_gives_the_single_best_row() -> None:
    assert pareto_front(frame([(0.1, 1), (0.3, 2), (0.2, 3)]), {"validation_accuracy": "max"})["trial"].tolist() == ["t001"]


def test_an_empty_table_has_an_empty_front() -> None:
    assert len(pareto_front(frame([]))) == 0


def test_a_column_that_is_not_there_is_named_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match="no column 'parameter'; did you mean 'parameters'"):
        pareto_front(frame([(0.1, 1)]), {"parameter": "min"})


@pytest.mark.parametrize(
    ("objectives", "rule"),
    [({}, "at least one"), ({"parameters": "least"}, "must be max or min"), ({"trial": "min"}, "must be numeric")],
)
def test_objectives_that_make_no_sense_are_refused(objectives: Objectives, rule: str) -> None:
    with pytest.raises(UsageError, match=rule):
        pareto_front(frame([(0.1, 1)]), objectives)
