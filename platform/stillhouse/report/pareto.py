"""The Pareto front of a table: the rows that no other row beats in every objective at once."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stillhouse.errors import UsageError, did_you_mean
from stillhouse.spec.metric import ACCURACY, Metric


def default_objectives(metric: Metric) -> dict[str, Literal["max", "min"]]:
    """The metric on the validation split against the number of parameters."""
    return {metric.column("validation"): metric.direction, "parameters": "min"}


def pareto_front(table: pd.DataFrame, objectives: Mapping[str, Literal["max", "min"]] | None = None) -> pd.DataFrame:
    """The non-dominated rows of `table`, best in the first objective first.

    A row with a missing or NaN objective is left out. Of rows that are equal in all objectives only one is returned: the one
    with the smallest trial key, or the first row where the table has no `trial`. Two objectives cost O(n log n).

    Args:
        objectives: `max` or `min` by column; by default accuracy on the validation split against the number of parameters.

    Raises:
        UsageError: no objective, one that is not a numeric column, or a direction other than `max` and `min`.
    """
    objectives = default_objectives(ACCURACY) if objectives is None else objectives
    check_objectives(table, objectives)
    costs = np.column_stack([_cost(table, name, direction) for name, direction in objectives.items()])
    rows = np.flatnonzero(~np.isnan(costs).any(axis=1))
    costs = costs[rows]
    keys = pd.factorize(table["trial"].iloc[rows].astype(str), sort=True)[0] if "trial" in table else np.arange(len(rows))
    order = np.lexsort((keys, *costs.T[::-1]))
    kept = _staircase(costs[order]) if costs.shape[1] <= 2 else _cull(costs[order])
    return table.iloc[rows[order[kept]]]


def check_objectives(table: pd.DataFrame, objectives: Mapping[str, str]) -> None:
    """Whether the rows can be compared by the objectives.

    Raises:
        UsageError: no objective, one that is not a numeric column, or a direction other than `max` and `min`.
    """
    if not objectives:
        raise UsageError("objectives must name at least one column, got none")
    for name, direction in objectives.items():
        if name not in table:
            raise UsageError(f"objectives: no column {name!r}{did_you_mean(name, map(str, table.columns))}")
        if direction not in ("max", "min"):
            raise UsageError(f"objectives.{name} must be max or min, got {direction!r}")
        if not pd.api.types.is_numeric_dtype(table[name]):
            raise UsageError(f"objectives: column {name!r} must be numeric, its type is {table[name].dtype}")


def _cost(table: pd.DataFrame, name: str, direction: str) -> NDArray[np.float64]:
    values = table[name].to_numpy(dtype=np.float64, na_value=np.nan)
    return -values if direction == "max" else values


def _staircase(costs: NDArray[np.float64]) -> NDArray[np.intp]:
    """Positions on the front of rows sorted by their one or two costs: where the last cost falls below all before it."""
    if len(costs) == 0:
        return np.empty(0, dtype=np.intp)
    if costs.shape[1] == 1:
        return np.zeros(1, dtype=np.intp)
    lowest = np.minimum.accumulate(costs[:, 1])
    falls = np.ones(len(costs), dtype=bool)
    falls[1:] = costs[1:, 1] < lowest[:-1]
    return np.flatnonzero(falls)


def _cull(costs: NDArray[np.float64]) -> NDArray[np.intp]:
    """Positions on the front of rows in lexicographic order: only an earlier row can dominate a later one, or equal it."""
    kept: list[int] = []
    for position, cost in enumerate(costs):
        if not (costs[kept] <= cost).all(axis=1).any():
            kept.append(position)
    return np.array(kept, dtype=np.intp)
