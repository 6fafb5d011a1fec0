"""The spec of a sweep whose hours are estimated."""

from typing import Any

import pytest


@pytest.fixture
def measured_spec() -> dict[str, Any]:
    """Two students, one teacher and one method beside the baseline; a trial needs a quarter of a GPU."""
    return {
        "name": "measured",
        "dataset": {"name": "digits", "validation": 100, "options": {"limit": 500}},
        "views": {"policy": [{"crop": {"padding": 1}}], "count": 2},
        "teachers": {"big": {"model": "lenet", "train": {"epochs": 5}, "resources": {"gpu": 1}}},
        "students": [{"model": "mlp", "hidden": [16]}, {"model": "mlp", "hidden": [64], "name": "wide"}],
        "methods": {"scratch": {}, "kd": {"temperature": 4.0}},
        "search": {"trials_per_method": 4, "max_epochs": 3},
        "trial_resources": {"cpu": 1, "gpu": 0.25},
    }
