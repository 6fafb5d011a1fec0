"""An upper bound on a student's size, as in specs and on the command line: `parameters=100k`."""

import math
import re
from dataclasses import dataclass

from stillhouse.errors import Problem, UsageError, suggestion

SIZES = ("parameters", "size_bytes", "macs", "latency_ms")
_MULTIPLES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


_NUMBER = re.compile(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([kmgt]?)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Budget:
    """An upper bound on one of `SIZES`."""

    metric: str
    limit: float

    def __post_init__(self) -> None:
        if problem := bound_problem(self.metric, self.limit):
            raise UsageError(f"budget {problem}")


def bound_problem(metric: str, limit: float) -> Problem | None:
    """What is wrong with a bound; the problem's key is `metric`."""
    if metric not in SIZES:
        return Problem(metric, "is not a size", remedy=suggestion(metric, SIZES))
    if not (math.isfinite(limit) and limit > 0):
        return Problem(metric, "must be a number > 0", f"{limit}")
    return None


def parse_number(text: str) -> float | None:
    """`100k` as 100,000; the letters k, M, G and T are powers of 1000. None if the text is no number."""
    found = _NUMBER.fullmatch(text)
    if found is None:
        return None
    try:
        return float(found[1]) * _MULTIPLES[found[2].lower()]
    except ValueError:
        return None


def parse_budget(text: str) -> Budget:
    """`parameters=100k` as a budget.

    Raises:
        UsageError: another form, an unknown size, a bound that is not positive.
    """
    metric, _, number = text.partition("=")
    if (limit := parse_number(number)) is None:
        raise UsageError(f"budget must look like parameters=100k, got {text!r}; sizes: {', '.join(SIZES)}")
    return Budget(metric.strip(), limit)
