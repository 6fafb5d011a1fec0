"""What describes a column of the trade-off table."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Column:
    """What a reader of the table must know of one column; goes into the Parquet schema."""

    name: str
    dtype: Literal["str", "Int64", "float64", "boolean"]
    unit: str
    description: str
