"""The number by which a task judges its models: its name, its direction, its format."""

import math
from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict

Split = Literal["validation", "test"]

# The normal distribution's quantile of 97.5 %.
_Z = 1.959963984540054


class Metric(BaseModel):
    """The metric of a task. Every comparison of two results uses it.

    Attributes:
        name: part of column names: `accuracy` gives `validation_accuracy` and `test_accuracy`.
        direction: whether a higher (`max`) or a lower (`min`) value is better.
        label: its name in tables and on axes.
        percent: whether values are fractions in [0, 1] that are shown as percentages.
        digits: number of decimals that are shown, of the percentage if `percent`.
        superlative: describes the model with the best value: `most accurate`.
        proportion: whether a value is the share of samples that are right, each sample being right or wrong. Only then is its
            uncertainty known from the number of samples.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    direction: Literal["max", "min"]
    label: str
    percent: bool = False
    digits: int = 2
    superlative: str = "best"
    proportion: bool = False

    def column(self, split: Split) -> str:
        """The name of the value on one split, in records, tables and MLflow."""
        return f"{split}_{self.name}"

    @property
    def heading(self) -> str:
        """The label as a heading begins: `Mean error`, but `mAP` as it is."""
        first = self.label.partition(" ")[0]
        return self.label if first != first.lower() else self.label[:1].upper() + self.label[1:]

    @property
    def drop_column(self) -> str:
        """The name of how much worse a student is than its teacher on the test split."""
        return f"{self.name}_drop"

    @property
    def sign(self) -> int:
        """1 if higher is better, -1 if lower is better."""
        return 1 if self.direction == "max" else -1

    @property
    def worst(self) -> float:
        """A value that every other one is better than."""
        return -self.sign * float("inf")

    def better(self, value: float, other: float) -> bool:
        """Whether `value` is strictly better than `other`; a value that is not a number is never better."""
        return self.gain(value, other) > 0

    def gain(self, value: float, base: float) -> float:
        """By how much `value` is better than `base`, in the metric's unit: positive when better, in both directions."""
        return self.sign * (value - base)

    def best(self, values: Iterable[float]) -> float:
        """The best of some values; `worst` when there are none."""
        return self.sign * max((self.sign * value for value in values), default=-float("inf"))

    def sampling_interval(self, value: float | None, samples: int | None) -> tuple[float, float] | None:
        """The 95 % interval of a share that was measured on `samples` samples: Wilson's score interval.

        It covers what drawing other samples would change; what training with another seed would change is not in it.

        Returns:
            None if the metric is no `proportion`, or the value or the number of samples is not known.

        Source: E. B. Wilson (1927), Probable inference, the law of succession, and statistical inference.
        """
        if not self.proportion or not samples or value is None or not 0 <= value <= 1:
            return None
        spread = _Z**2 / samples
        centre = (value + spread / 2) / (1 + spread)
        half = math.sqrt(value * (1 - value) * spread + spread**2 / 4) / (1 + spread)
        return max(0.0, centre - half), min(1.0, centre + half)

    def format(self, value: float) -> str:
        """The value as people read it: `93.85 %` of a fraction, `3.21` otherwise."""
        return f"{100 * value:.{self.digits}f} %" if self.percent else f"{value:.{self.digits}f}"

    def format_difference(self, difference: float) -> str:
        """A difference with its sign: `+1.20` percentage points of a fraction, in the metric's unit otherwise."""
        return f"{100 * difference if self.percent else difference:+.{self.digits}f}"


ACCURACY = Metric(
    name="accuracy", direction="max", label="accuracy", percent=True, superlative="most accurate", proportion=True
)
"""The metric of classification, and of facts that name no metric, which the first release wrote."""
