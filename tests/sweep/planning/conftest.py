"""A spec with one teacher, two students and two methods, and digits to plan it on."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from stillhouse.data.datasets import ImageData, load_dataset
from stillhouse.spec.load import validate
from stillhouse.spec.schema import SweepSpec

_SPEC: dict[str, Any] = {
    "name": "s",
    "dataset": {"name": "digits"},
    "views": {"policy": ["crop"], "count": 4},
    "teachers": {"big": {"model": "lenet", "train": {"epochs": 5}}},
    "students": [{"model": "mlp", "name": "small", "hidden": [3]}, {"model": "lenet", "width": {"choice": [0.5, 1.0]}}],
    "methods": {"kd": {"temperature": {"uniform": [1, 10]}}, "mutual_learning": {}},
    "search": {"trials_per_method": 8, "max_epochs": 6, "confirm_seeds": 2},
}


@pytest.fixture(scope="session")
def data() -> ImageData:
    return load_dataset("digits")


@pytest.fixture
def raw_spec() -> dict[str, Any]:
    """The spec as plain data."""
    return copy.deepcopy(_SPEC)


@pytest.fixture
def spec_with(raw_spec: dict[str, Any]) -> Callable[..., SweepSpec]:
    """The spec with one dotted key changed."""

    def make(path: str = "", value: Any = None) -> SweepSpec:
        raw = copy.deepcopy(raw_spec)
        *parents, last = path.split(".")
        section = raw
        for parent in parents:
            section = section.setdefault(parent, {})
        if path:
            section[last] = value
        return validate(raw)

    return make


@pytest.fixture
def searched(raw_spec: dict[str, Any], spec_with: Callable[..., SweepSpec]) -> Callable[..., SweepSpec]:
    """The spec with an adaptive search, and keys of `search` changed."""
    return lambda **search: spec_with("search", {**raw_spec["search"], "algorithm": "tpe", "startup_trials": 3, **search})
