"""Values of a prior: at a quantile, or nearest to a method's default."""

from typing import Any

from stillhouse.spec.priors import Choice, Integers, LogUniform, Prior, Uniform

_DIGITS = 6
_MEDIAN = 0.5


def value_at(prior: Prior, quantile: float) -> Any:
    """The prior's value at a quantile; floats have 6 significant digits, so that they are written alike everywhere."""
    value = prior.at(quantile)
    return value if isinstance(prior, Choice) else rounded(prior, value)


def rounded(prior: Uniform | LogUniform | Integers, value: float) -> Any:
    """A value of the prior with as many digits as a spec would have, within the prior's bounds."""
    if not isinstance(value, float):
        return value
    low, high = prior.ends()
    return min(max(float(f"{value:.{_DIGITS}g}"), float(low)), float(high))


def middle(prior: Prior) -> Any:
    """The median; of a choice the middle value, the later one of two."""
    return value_at(prior, _MEDIAN)


def nearest(prior: Prior, default: Any) -> Any:
    """The prior's value that is nearest to `default`; where no order tells, a choice's first value, else the median."""
    if isinstance(prior, Choice):
        if default in prior.values:
            return prior.values[prior.values.index(default)]
        ordered = all(map(_is_number, (default, *prior.values)))
        return min(prior.values, key=lambda value: abs(value - default)) if ordered else prior.values[0]
    if not _is_number(default):
        return middle(prior)
    value = round(default) if isinstance(prior, Integers) else float(default)
    return min(max(value, prior.low), prior.high)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
