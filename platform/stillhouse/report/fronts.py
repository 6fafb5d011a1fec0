"""The Pareto front of configurations."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from stillhouse.report.axes import axis_value
from stillhouse.report.configurations import Configuration
from stillhouse.report.pareto import pareto_front


def configuration_front(best: Sequence[Configuration], axis: str) -> list[Configuration]:
    """The non-dominated configurations by mean validation accuracy and one of `AXES`, where less is better; smallest first."""
    sized = [(each, value) for each in best if (value := axis_value(each, axis)) is not None and value > 0]
    table = pd.DataFrame(
        {
            "validation_accuracy": np.array([each.validation.mean for each, _ in sized], dtype=np.float64),
            "size": np.array([value for _, value in sized], dtype=np.float64),
            "trial": [each.key for each, _ in sized],
        }
    )
    front = pareto_front(table, {"validation_accuracy": "max", "size": "min"})
    return [sized[position][0] for position in reversed(front.index.tolist())]
