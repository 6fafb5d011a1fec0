"""The Pareto front of configurations: the best on the validation split at every size."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from stillhouse.report.axes import axis_value
from stillhouse.report.configurations import Configuration
from stillhouse.report.pareto import pareto_front


def configuration_front(best: Sequence[Configuration], axis: str) -> list[Configuration]:
    """The configurations that no other one beats both by the mean on validation data and by one of `AXES`; smallest first.

    On every axis less is better.
    """
    sized = [(each, value) for each in best if (value := axis_value(each, axis)) is not None and value > 0]
    table = pd.DataFrame(
        {
            "quality": np.array([each.quality for each, _ in sized], dtype=np.float64),
            "size": np.array([value for _, value in sized], dtype=np.float64),
            "trial": [each.key for each, _ in sized],
        }
    )
    front = pareto_front(table, {"quality": "max", "size": "min"})
    return [sized[position][0] for position in reversed(front.index.tolist())]
