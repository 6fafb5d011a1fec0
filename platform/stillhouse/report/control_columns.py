"""Columns of the trade-off table: by how much each trial is better than its controls on the test split."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from stillhouse.durable import canonical_json
from stillhouse.report.columns import Column
from stillhouse.spec.metric import Metric
from stillhouse.spec.records import SweepFacts, Trial, TrialRecord, untrained_name
from stillhouse.spec.schema import RANDOM_TEACHER


def gains_over_controls(
    facts: SweepFacts, records: Sequence[TrialRecord], taken: set[str]
) -> Iterator[tuple[Column, list[float | None]]]:
    """`gain_over_...` for each control, in sweeps that have trials with untrained teachers. Both sides share student and seed.

    Args:
        taken: names that other columns have; a column of such a name is left out.
    """
    if not any(record.trial.is_control for record in records):
        return
    metric, kind = facts.metric, "fraction" if facts.metric.percent else ""
    by_control: dict[str, tuple[Mapping[str, float], Callable[[Trial], str | None], str]] = {
        facts.baseline: (
            _values(records, metric, lambda trial: _place(trial) if trial.method == facts.baseline else None),
            lambda trial: None if trial.method == facts.baseline else _place(trial),
            f"{facts.baseline} on the same student with the same seed",
        ),
        RANDOM_TEACHER: (
            _values(records, metric, lambda trial: _settings(trial, trial.teacher) if trial.is_control else None),
            lambda trial: _settings(trial, untrained_name(trial.teacher)) if trial.teacher else None,
            "the same trial with an untrained teacher",
        ),
    }
    for control, (values, place_of, base) in by_control.items():
        name = f"gain_over_{control}"
        if name not in taken:
            column = Column(name, "float64", kind, f"by how much test {metric.label} is better than with {base}")
            yield column, [_gain(record, values, place_of, metric) for record in records]


def _gain(
    record: TrialRecord, values: Mapping[str, float], place_of: Callable[[Trial], str | None], metric: Metric
) -> float | None:
    own = record.metrics.get(metric.column("test"), math.nan)
    base = None if record.trial.is_control else values.get(place_of(record.trial) or "")
    return None if base is None or not math.isfinite(own) else metric.gain(own, base)


def _values(records: Sequence[TrialRecord], metric: Metric, place_of: Callable[[Trial], str | None]) -> dict[str, float]:
    """The value on the test split by place; of several trials at a place, of the best on the validation split."""
    best: dict[str, tuple[float, float]] = {}
    for record in records:
        place, test = place_of(record.trial), record.metrics.get(metric.column("test"), math.nan)
        if record.status != "finished" or place is None or not math.isfinite(test):
            continue
        seen = metric.sign * record.metrics.get(metric.column("validation"), -metric.sign * math.inf)
        if place not in best or seen > best[place][0]:
            best[place] = seen, test
    return {place: test for place, (_, test) in best.items()}


def _place(trial: Trial) -> str:
    return canonical_json([trial.student.variant, trial.seed])


def _settings(trial: Trial, teacher: str | None) -> str:
    settings: list[Any] = [trial.method, trial.student.variant, teacher, trial.hyperparameters, trial.epochs, trial.seed]
    return canonical_json(settings)
