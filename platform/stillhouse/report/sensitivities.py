"""How the result changes with each hyper-parameter."""

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from stillhouse.report.configurations import grouped
from stillhouse.spec.metric import Metric
from stillhouse.spec.records import TrialRecord

# 9! permutations take 5 ms; the t distribution is close for more trials.
_MAX_EXACT = 9


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """How the metric on the validation split changes with one hyper-parameter of one method.

    A trial's effect is by how much it is better than the mean of its method and concrete student, or of the student's label
    where a concrete student has only one trial. So differences between sizes do not hide the hyper-parameter.

    Attributes:
        effects: of each trial, positive where it is better than the mean.
        seen: the values that were tried, in words.
        correlation: Spearman's, for numbers; None for words and where it is not defined. Positive where larger values are
            better.
        p_value: of that correlation, two-sided; exact for up to nine trials.
        explained: share of the variance between groups of equal values, for words.
        best: the value of the trial with the largest effect.
    """

    method: str
    hyperparameter: str
    values: tuple[Any, ...]
    effects: tuple[float, ...]
    students: tuple[str, ...]
    seen: str
    numeric: bool
    correlation: float | None
    p_value: float | None
    explained: float | None
    best: Any


def sensitivities(records: Sequence[TrialRecord], metric: Metric) -> list[Sensitivity]:
    """One entry for each hyper-parameter with two values or more on one student; the strongest first within a method."""
    finished = [record for record in records if record.trial.phase == "search" and _validated(record, metric)]
    result: list[Sensitivity] = []
    for method, group in sorted(grouped(finished, lambda record: record.trial.method).items()):
        effects = _effects(group, metric)
        of_method = []
        for name in sorted({name for record in group for name in record.trial.hyperparameters}):
            chosen = [
                (record.trial.hyperparameters[name], effect, record.trial.student.name)
                for record, effect in zip(group, effects, strict=True)
                if record.trial.hyperparameters.get(name) is not None
            ]
            # Where every student was trained once there is nothing to compare it with.
            compared = any(effect for _, effect, _ in chosen)
            if compared and len({json.dumps(value, default=str, sort_keys=True) for value, _, _ in chosen}) > 1:
                of_method.append(_sensitivity(method, name, chosen))
        of_method.sort(key=lambda each: -max(abs(each.correlation or 0.0), math.sqrt(each.explained or 0.0)))
        result += of_method
    return result


def _sensitivity(method: str, name: str, chosen: list[tuple[Any, float, str]]) -> Sensitivity:
    values = [value for value, _, _ in chosen]
    effects = np.array([effect for _, effect, _ in chosen])
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    correlation = p_value = explained = None
    if numeric:
        if len(values) > 2 and np.ptp(effects) > 0 and min(values) < max(values):
            correlation, p_value = _rank_correlation(np.array(values, dtype=np.float64), effects)
        seen = f"{min(values):.4g} to {max(values):.4g}"
    else:
        values = [value if isinstance(value, str) else json.dumps(value, default=str, sort_keys=True) for value in values]
        total = float(((effects - effects.mean()) ** 2).sum())
        groups = grouped(zip(values, effects, strict=True), lambda pair: pair[0])
        between = sum(len(g) * (float(np.mean([e for _, e in g])) - float(effects.mean())) ** 2 for g in groups.values())
        explained = between / total if total > 0 and len(groups) < len(values) else None
        seen = ", ".join(sorted(groups)[:6]) + (" and more" if len(groups) > 6 else "")
    return Sensitivity(
        method=method,
        hyperparameter=name,
        values=tuple(values),
        effects=tuple(float(effect) for effect in effects),
        students=tuple(student for _, _, student in chosen),
        seen=seen,
        numeric=numeric,
        correlation=correlation,
        p_value=p_value,
        explained=explained,
        best=values[int(np.argmax(effects))],
    )


def _rank_correlation(values: NDArray[np.float64], effects: NDArray[np.float64]) -> tuple[float, float]:
    """Spearman's correlation, and its two-sided p-value.

    For few trials the p-value is the share of all orders of the trials whose correlation is at least as far from zero. For many
    it comes from the t distribution, which would give 0 for a perfect order: no order is rarer than 2 of n!.
    """
    count = len(values)
    found = stats.spearmanr(values, effects)
    correlation = float(found.statistic)
    if count > _MAX_EXACT:
        return correlation, max(float(found.pvalue), 2 / math.factorial(count))
    ranks, others = (stats.rankdata(each) - (count + 1) / 2 for each in (values, effects))
    sums = ranks[_orders(count)] @ others
    # Equal sums may differ in their last digits.
    return correlation, float(np.mean(np.abs(sums) >= abs(float(ranks @ others)) - 1e-9))


@cache
def _orders(count: int) -> NDArray[np.int8]:
    """All orders of `count` things, as indices [count!, count]."""
    flat = itertools.chain.from_iterable(itertools.permutations(range(count)))
    return np.fromiter(flat, dtype=np.int8).reshape(-1, count)


def _effects(records: Sequence[TrialRecord], metric: Metric) -> list[float]:
    """By how much each trial is better than the mean of the trials of the same student."""
    column = metric.column("validation")

    def mean(group: Sequence[TrialRecord]) -> float:
        return fmean(record.metrics[column] for record in group)

    by_choice = grouped(records, lambda record: record.trial.student.variant)
    by_name = grouped(records, lambda record: record.trial.student.name)
    means = {key: mean(group) for key, group in by_choice.items() if len(group) > 1}
    name_means = {name: mean(group) for name, group in by_name.items()}
    return [
        metric.gain(record.metrics[column], means.get(record.trial.student.variant, name_means[record.trial.student.name]))
        for record in records
    ]


def _validated(record: TrialRecord, metric: Metric) -> bool:
    return record.status == "finished" and math.isfinite(record.metrics.get(metric.column("validation"), math.nan))
