"""The Pareto front of a sweep: the winners that no other winner beats. One meaning on the page, in the terminal, in MLflow."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stillhouse.report.axes import axis_value, devices_held
from stillhouse.report.configurations import Configuration, configurations, preferred, winners
from stillhouse.report.pareto import check_objectives, default_objectives, pareto_front
from stillhouse.report.trials_table import trials_table
from stillhouse.spec.collapse import trivial_value
from stillhouse.spec.metric import Metric
from stillhouse.spec.preference import comparable
from stillhouse.spec.records import SweepFacts, TrialRecord

Objectives = Mapping[str, Literal["max", "min"]]


def configuration_front(best: Sequence[Configuration], axis: str) -> list[Configuration]:
    """The configurations that no other one beats both by the mean on validation data and by one of `AXES`; smallest first.

    On every axis less is better. Of configurations that are equal in both the preferred one is on the front. A collapsed one is
    on no front: a model of no size is as good. Without validation data there is no front.
    """
    candidates = sorted((each for each in best if each.judged and not each.collapsed), key=preferred)
    sized = [(each, value) for each in candidates if (value := axis_value(each, axis)) is not None and value > 0]
    table = pd.DataFrame(
        {
            "quality": np.array([each.quality for each, _ in sized], dtype=np.float64),
            "size": np.array([value for _, value in sized], dtype=np.float64),
        }
    )
    front = pareto_front(table, {"quality": "max", "size": "min"})
    return [sized[position][0] for position in reversed(front.index.tolist())]


def objective_front(
    best: Sequence[Configuration], table: pd.DataFrame, metric: Metric, objectives: Objectives
) -> list[Configuration]:
    """The configurations that no other one beats in every objective; the best in the first objective first.

    Collapsed ones are left out, and all where no validation data choose.

    Args:
        best: the winners of every method and concrete student.
        table: the trials, one row each. A configuration has the mean of the metric over its reported seeds, and the median of
            any other column.
        objectives: `max` or `min` by column of the table.

    Raises:
        UsageError: no objective, or one that the table cannot be compared by.
    """
    check_objectives(table, objectives)
    ordered = sorted((each for each in best if each.judged and not each.collapsed), key=preferred)
    row_of = {key: row for row, key in enumerate(table["trial"].tolist())}
    rows = [[row_of[record.trial.key] for record in each.reported] for each in ordered]
    means = {metric.column("validation"), metric.column("test")}
    values = {}
    for name in objectives:
        column = table[name].to_numpy(dtype=np.float64, na_value=np.nan)
        values[name] = [comparable(float((np.mean if name in means else _median)(column[of]))) for of in rows]
    front = pareto_front(pd.DataFrame(values, dtype=np.float64), objectives)
    return [ordered[position] for position in front.index.tolist()]


def _median(values: NDArray[np.float64]) -> float:
    """The median of the known values; NaN where none is known."""
    known = values[~np.isnan(values)]
    return float(np.median(known)) if known.size else float("nan")


def sweep_front(facts: SweepFacts, records: Sequence[TrialRecord], objectives: Objectives | None = None) -> list[Configuration]:
    """The Pareto front of a sweep by its objectives, or by others.

    Raises:
        UsageError: as for `objective_front`.
    """
    wanted = dict(facts.objectives or default_objectives(facts.metric)) if objectives is None else objectives
    return objective_front(sweep_winners(facts, records), trials_table(facts, records), facts.metric, wanted)


def sweep_winners(facts: SweepFacts, records: Sequence[TrialRecord]) -> list[Configuration]:
    """The winners of every method and concrete student of a sweep."""
    return winners(sweep_configurations(facts, records))


def sweep_configurations(
    facts: SweepFacts,
    records: Sequence[TrialRecord],
    *,
    sweep: str = "",
    labels: Mapping[str, str] | None = None,
    controls: bool = False,
) -> list[Configuration]:
    """The configurations of a sweep; `sweep`, `labels` and `controls` as for `configurations`."""
    return configurations(
        records,
        facts.metric,
        sweep=sweep,
        labels=labels,
        devices=devices_held(facts),
        baseline=facts.baseline,
        test_samples=facts.test_samples,
        trivial=trivial_value(facts, "validation"),
        controls=controls,
    )
