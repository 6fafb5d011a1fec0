"""How the report writes numbers."""

import math
from datetime import datetime
from typing import Any

from stillhouse.spec.display import show_seconds
from stillhouse.spec.metric import Metric

MISSING = "n/a"
TIMES = "\N{MULTIPLICATION SIGN}"


def percent(fraction: float | None, digits: int = 1) -> str:
    """0.9123 as "91.2%"."""
    return MISSING if fraction is None or not math.isfinite(fraction) else f"{100 * fraction:.{digits}f}%"


def points(fraction: float | None, digits: int = 1, *, signed: bool = False) -> str:
    """A difference of accuracies in percentage points, without the word: 0.0123 as "1.2"."""
    if fraction is None or not math.isfinite(fraction):
        return MISSING
    # Adding zero turns -0.0 into 0.0, which would print as "-0.0".
    rounded = round(100 * fraction, digits) + 0.0
    return f"{rounded:+.{digits}f}" if signed else f"{rounded:.{digits}f}"


def score(value: float | None, metric: Metric, *, exact: bool = False) -> str:
    """A value of the metric: 0.9123 as "91.2%" of a fraction, "91.23%" where it is `exact`; 3.214 as "3.21" of any other."""
    if metric.percent:
        return percent(value, metric.digits if exact else metric.digits - 1)
    return MISSING if value is None or not math.isfinite(value) else _decimals(value, metric.digits)


def difference(value: float | None, metric: Metric, *, exact: bool = False, signed: bool = False) -> str:
    """A difference of two values: in percentage points of fractions, else in the metric's unit. `unit` has the word."""
    if metric.percent:
        return points(value, metric.digits if exact else metric.digits - 1, signed=signed)
    if value is None or not math.isfinite(value):
        return MISSING
    return _decimals(value, metric.digits, sign="+" if signed else "")


def _decimals(value: float, digits: int, sign: str = "") -> str:
    """`value` with `digits` decimals, or with up to two more where it would round to zero."""
    # Adding zero turns -0.0 into 0.0, which would print as "-0.0".
    rounded, finer = round(value, digits) + 0.0, round(value, digits + 2) + 0.0
    if rounded == 0 and finer != 0:
        return f"{finer:{sign}.{digits + 2}f}".rstrip("0")
    return f"{rounded:{sign}.{digits}f}"


def unit(metric: Metric) -> str:
    """What follows a difference in a sentence: " points" for fractions, nothing for any other metric."""
    return " points" if metric.percent else ""


def tick_format(metric: Metric, *, signed: bool = False, exact: bool = False) -> str:
    """The same numbers as plotly writes them on an axis, or `exact` in a tooltip."""
    sign = "+" if signed else ""
    if metric.percent:
        return f"{sign}.{metric.digits if exact else metric.digits - 1}%"
    return f"{sign}.{metric.digits}f" if exact else f"{sign}~g"


def whole(value: float | None) -> str:
    """12345 as "12,345"."""
    return MISSING if value is None or not math.isfinite(value) else f"{round(value):,}"


def short(value: float | None) -> str:
    """12345 as "12.3k", for where room is short."""
    if value is None or not math.isfinite(value):
        return MISSING
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9995:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def size(value: float | None) -> str:
    """Bytes in decimal units: 12345 as "12.3 kB"."""
    if value is None or not math.isfinite(value):
        return MISSING
    if abs(value) < 1000:
        return f"{round(value)} B"
    text = short(value)
    return f"{text[:-1]} {text[-1]}B"


def milliseconds(value: float | None) -> str:
    return MISSING if value is None or not math.isfinite(value) else f"{value:.3g} ms"


def duration(seconds: float | None) -> str:
    """`show_seconds`, or what stands for a missing number."""
    return MISSING if seconds is None or not math.isfinite(seconds) else show_seconds(seconds)


def moment(text: str) -> str:
    """An ISO time as people read it, "2026-01-05 10:00 UTC"; any other text as it is."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{when:%Y-%m-%d %H:%M} {when:%Z}".strip()


def ratio(value: float | None) -> str:
    """12.34 as "12" and the multiplication sign."""
    if value is None or not math.isfinite(value):
        return MISSING
    return (f"{value:,.0f}" if value >= 10 else f"{value:.2g}") + TIMES


def against_parameters(compression: float) -> str:
    """How many parameters a student has, by those of the teacher over its own: 8 is "8 times fewer", 0.5 is "2 times more"."""
    if abs(compression - 1) < 0.05:
        return "about as many parameters"
    return f"{ratio(compression)} fewer parameters" if compression > 1 else f"{ratio(1 / compression)} more parameters"


def value_text(value: Any) -> str:
    """A hyper-parameter's value; floats in four significant digits."""
    if value is None:
        return "none"
    if isinstance(value, float) and not isinstance(value, bool):
        return f"{value:.4g}"
    return str(value)


def counted(number: int, noun: str) -> str:
    """1 as "1 trial", 2 as "2 trials"."""
    plural = noun[:-1] + "ies" if noun.endswith("y") and noun[-2] not in "aeiou" else noun + "es" * noun.endswith("s")
    plural += "s" * (plural == noun)
    return f"{number:,} {noun if number == 1 else plural}"


def score_range(interval: tuple[float, float] | None, metric: Metric) -> str:
    """Both ends of an interval of the metric: "95.7% to 98.9%"; nothing without an interval."""
    return "" if interval is None else f"{score(interval[0], metric)} to {score(interval[1], metric)}"


def sample(n: int) -> str:
    """The size of a sample of seeds as an interval names it."""
    return f"n = {n}"


def without_interval(n: int) -> str:
    """Why the mean of `n` seeds has no interval: there is one of them, or all give the same value."""
    return "one seed" if n == 1 else f"{n} equal seeds"


def listed(words: list[str], limit: int = 5) -> str:
    """["a", "b", "c"] as "a, b and c"; the tail beyond `limit` is only counted."""
    if len(words) > limit:
        words = [*words[: limit - 1], f"{len(words) - limit + 1} more"]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
