"""A bound on a student's size, as specs and the command line write it: `parameters=100k`."""

import math
import re
from dataclasses import dataclass

from stillhouse.errors import UsageError, did_you_mean

SIZES = ("parameters", "size_bytes", "macs", "latency_ms")
_MULTIPLES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_BUDGET = re.compile(r"\s*([a-z_]+)\s*=\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([kmgt]?)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Budget:
    """A bound on one of `SIZES`."""

    metric: str
    limit: float

    def __post_init__(self) -> None:
        if self.metric not in SIZES:
            raise UsageError(f"budget: no size {self.metric!r}{did_you_mean(self.metric, SIZES)}")
        if not (math.isfinite(self.limit) and self.limit > 0):
            raise UsageError(f"budget {self.metric} must be a number > 0, got {self.limit}")


def parse_budget(text: str) -> Budget:
    """`parameters=100k` as a budget; the letters k, M, G and T are powers of 1000.

    Raises:
        UsageError: another form, an unknown size, a bound that is not positive.
    """
    found = _BUDGET.fullmatch(text)
    if found is None:
        raise UsageError(f"budget must look like parameters=100k, got {text!r}; sizes: {', '.join(SIZES)}")
    metric, number, letter = found.groups()
    try:
        limit = float(number) * _MULTIPLES[letter.lower()]
    except ValueError as error:
        raise UsageError(f"budget {metric} must be a number, got {number!r}") from error
    return Budget(metric, limit)
