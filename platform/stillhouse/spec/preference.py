"""Which of several results is chosen: the best on validation data and, of equal ones, the simplest. Every choice uses it."""

import math
from collections.abc import Mapping

from stillhouse.spec.metric import Metric
from stillhouse.spec.records import TrialRecord

TIE_WORDS = "the control before other methods, then the smaller student, then the cheaper one"
"""How equal values are ordered, for readers."""

_SIZES = ("parameters", "size_bytes", "macs")
# Means of the same values may differ in their last digits.
_DIGITS = 12

Preference = tuple[float, bool, tuple[float, ...], int]
"""A sort key: the preferred result comes first."""


def preference(value: float, metric: Metric, *, control: bool, sizes: Mapping[str, float | None], teachers: int) -> Preference:
    """The sort key of a result; two results with equal first elements tie on the metric.

    Args:
        value: of the metric on the validation split; NaN, where there is no such split, comes last.
        control: whether the method is the baseline of the gains, which learns without a teacher.
        sizes: of the student: `parameters`, `size_bytes`, and `macs`, which is what it costs to run. An unknown one comes last.
        teachers: how many teach the student, which is what it costs to train. Measured times are not used: they differ between
            runs, and the choice must not.
    """
    known = tuple(math.inf if (size := sizes.get(name)) is None or math.isnan(size) else size for name in _SIZES)
    return (math.inf if math.isnan(value) else -metric.sign * comparable(value), not control, known, teachers)


def comparable(value: float) -> float:
    """`value` without the digits in which equal results may differ."""
    return float(f"{value:.{_DIGITS}g}")


def record_preference(record: TrialRecord, metric: Metric, baseline: str) -> Preference:
    """The sort key of a finished trial."""
    return preference(
        record.metrics.get(metric.column("validation"), math.nan),
        metric,
        control=record.trial.method == baseline,
        sizes=record.metrics,
        teachers=len(record.trial.teachers),
    )
