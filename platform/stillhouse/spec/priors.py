"""Priors: the distributions from which a search draws hyper-parameters. Plain data for spec, methods and plan."""

import math
from dataclasses import dataclass
from typing import Any

Scalar = bool | int | float | str


@dataclass(frozen=True)
class Uniform:
    """A float, uniform on [low, high]."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"uniform must be [low, high] with low < high, got [{self.low}, {self.high}]")

    def at(self, quantile: float) -> float:
        """The value at `quantile` in [0, 1)."""
        return self.low + (self.high - self.low) * quantile

    def ends(self) -> tuple[Scalar, ...]:
        """The lowest and the highest value, or all values: what a range check must examine."""
        return self.low, self.high

    def to_json(self) -> dict[str, Any]:
        return {"uniform": [self.low, self.high]}


@dataclass(frozen=True)
class LogUniform:
    """A float whose logarithm is uniform on [log low, log high]."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (0 < self.low < self.high < math.inf):
            raise ValueError(f"loguniform must be [low, high] with 0 < low < high, got [{self.low}, {self.high}]")

    def at(self, quantile: float) -> float:
        return self.low * math.pow(self.high / self.low, quantile)

    def ends(self) -> tuple[Scalar, ...]:
        return self.low, self.high

    def to_json(self) -> dict[str, Any]:
        return {"loguniform": [self.low, self.high]}


@dataclass(frozen=True)
class Integers:
    """An integer, uniform on low..high, both included."""

    low: int
    high: int

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"integers must be [low, high] with low < high, got [{self.low}, {self.high}]")

    def at(self, quantile: float) -> int:
        return self.low + int((self.high - self.low + 1) * quantile)

    def ends(self) -> tuple[Scalar, ...]:
        return self.low, self.high

    def to_json(self) -> dict[str, Any]:
        return {"integers": [self.low, self.high]}


@dataclass(frozen=True)
class Choice:
    """One of the listed values, all equally likely."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("choice must list at least one value, got none")

    def at(self, quantile: float) -> Any:
        return self.values[int(len(self.values) * quantile)]

    def ends(self) -> tuple[Any, ...]:
        return self.values

    def to_json(self) -> dict[str, Any]:
        return {"choice": list(self.values)}


Prior = Uniform | LogUniform | Integers | Choice
