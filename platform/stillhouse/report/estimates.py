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


# Equal values differ by less than this share of their size: what remains of an exact difference in floating point.
_NOISE = 1e-9


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` independent values.

    Attributes:
        half_width: of its 95% interval. None where there is no interval: of one value, and of values that are all equal, as
            they often are by the grain of a small test split. Equal values show no spread, so they tell nothing of it.
        freedom: degrees of freedom of the interval; by default n - 1.
    """

    mean: float
    half_width: float | None
    n: int
    freedom: float | None = None

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
    """The mean and Student's 95% interval, t(0.975, n - 1) s / sqrt(n); no interval where all values are equal.

    Raises:
        ValueError: no values.
    """
    sample = [float(value) for value in values]
    if not sample:
        raise ValueError("a mean needs at least one value, got none")
    half_width = None
    if len(sample) > 1 and not _equal(sample):
        half_width = _t_quantile(len(sample) - 1) * stdev(sample) / math.sqrt(len(sample))
    return Estimate(fmean(sample), half_width, len(sample))


def mean_of_estimates(parts: Sequence[Estimate]) -> Estimate:
    """The mean of independent means, each with equal weight; its 95% interval comes from theirs, and `n` counts them.

    The squared standard errors add up, with the degrees of freedom of Welch and Satterthwaite. How much the parts differ from
    each other adds nothing: they are fixed, such as the students of a sweep. There is no interval where a part has none.

    Raises:
        ValueError: no estimates.
    """
    if not parts:
        raise ValueError("a mean needs at least one estimate, got none")
    mean = fmean(part.mean for part in parts)
    known = [(part.half_width, part.freedom or part.n - 1) for part in parts if part.half_width is not None]
    if len(known) < len(parts):
        return Estimate(mean, None, len(parts))
    variances = [((half_width / _t_quantile(freedom)) ** 2, freedom) for half_width, freedom in known]
    total = sum(variance for variance, _ in variances)
    freedom = total**2 / sum(variance**2 / own for variance, own in variances)
    return Estimate(mean, _t_quantile(freedom) * math.sqrt(total) / len(parts), len(parts), freedom)


def difference_of_means(left: Sequence[float], right: Sequence[float]) -> Estimate:
    """mean(left) - mean(right) of unpaired samples with Welch's 95% interval; n is that of the smaller one.

    No interval where a sample has one value, or where neither has any spread.
    """
    a, b = np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64)
    mean, n = float(a.mean() - b.mean()), int(min(a.size, b.size))
    if n < 2 or (_equal(left) and _equal(right)):
        return Estimate(mean, None, n)
    of_a, of_b = float(a.var(ddof=1)) / a.size, float(b.var(ddof=1)) / b.size
    freedom = (of_a + of_b) ** 2 / (of_a**2 / (a.size - 1) + of_b**2 / (b.size - 1))
    return Estimate(mean, _t_quantile(freedom) * math.sqrt(of_a + of_b), n, freedom)


def _equal(values: Sequence[float]) -> bool:
    return max(values) - min(values) <= _NOISE * max(1.0, *map(abs, values))


@cache
def _t_quantile(freedom: float) -> float:
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))
