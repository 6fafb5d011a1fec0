"""What the numbers of a sweep are worth: means with 95% intervals over seeds."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, stdev
from typing import Literal

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` independent values; `half_width` of its 95% interval, None where n is 1."""

    mean: float
    half_width: float | None
    n: int

    @property
    def low(self) -> float:
        return self.mean - (self.half_width or 0.0)

    @property
    def high(self) -> float:
        return self.mean + (self.half_width or 0.0)

    def sign(self) -> Literal[-1, 0, 1] | None:
        """Which side of zero the whole interval lies on; 0 when it contains zero, None without an interval."""
        if self.half_width is None:
            return None
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


def mean_with_interval(values: Iterable[float]) -> Estimate:
    """The mean and Student's 95% interval, t(0.975, n - 1) s / sqrt(n).

    Raises:
        ValueError: no values.
    """
    sample = [float(value) for value in values]
    if not sample:
        raise ValueError("a mean needs at least one value, got none")
    half_width = None
    if len(sample) > 1:
        half_width = _t_quantile(len(sample) - 1) * stdev(sample) / math.sqrt(len(sample))
    return Estimate(fmean(sample), half_width, len(sample))


def difference_of_means(left: Sequence[float], right: Sequence[float]) -> Estimate:
    """mean(left) - mean(right) of unpaired samples with Welch's 95% interval; n is that of the smaller one."""
    a, b = np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64)
    mean, n = float(a.mean() - b.mean()), int(min(a.size, b.size))
    if n < 2:
        return Estimate(mean, None, n)
    of_a, of_b = float(a.var(ddof=1)) / a.size, float(b.var(ddof=1)) / b.size
    if of_a + of_b == 0:
        return Estimate(mean, 0.0, n)
    freedom = (of_a + of_b) ** 2 / (of_a**2 / (a.size - 1) + of_b**2 / (b.size - 1))
    return Estimate(mean, _t_quantile(freedom) * math.sqrt(of_a + of_b), n)


@cache
def _t_quantile(freedom: float) -> float:
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))
