"""A number about a trained student beside its task's metric: its name, its direction, its format."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Measure(BaseModel):
    """What a task measures of a finished student on the test split, beside its metric. Nothing is chosen by it.

    Attributes:
        name: of the column, in records, tables and MLflow.
        label: its name on the page, as a row of a table begins.
        direction: whether a higher (`max`) or a lower (`min`) value is better; None where neither is.
        description: one sentence for people who read the table's schema.
        percent: whether values are fractions in [0, 1] that are shown as percentages.
        digits: number of decimals that are shown, of the percentage if `percent`.
        of_teacher: whether it compares the student with a teacher.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    label: str
    direction: Literal["max", "min"] | None = None
    description: str
    percent: bool = False
    digits: int = 3
    of_teacher: bool = False

    def format(self, value: float) -> str:
        """The value as people read it: `93.8 %` of a fraction, `0.213` otherwise."""
        return f"{100 * value:.{self.digits}f} %" if self.percent else f"{value:.{self.digits}f}"

    def format_difference(self, difference: float) -> str:
        """A difference with its sign: `+1.2` percentage points of a fraction, in the measure's unit otherwise."""
        return f"{100 * difference if self.percent else difference:+.{self.digits}f}"
