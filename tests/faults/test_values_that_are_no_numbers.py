"""NaN and infinity in a spec: one line for each value, and nothing about the null that replaces it."""

import copy
import math
from typing import Any

import pytest

from stillhouse.errors import SpecError
from stillhouse.sweep.planning.spec_check import check

SPEC: dict[str, Any] = {
    "name": "s",
    "dataset": {"name": "digits"},
    "students": ["mlp"],
    "methods": {"kd": {}},
    "teachers": {"t": {"model": "mlp"}},
}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "key",
    [
        "dataset.validation",
        "dataset.size",
        "dataset.options.limit",
        "views.count",
        "training.learning_rate",
        "training.weight_decay",
        "methods.kd.temperature",
        "search.max_epochs",
        "knowledge.top_k",
        "trial_resources.gpu",
        "report.budgets",
        "teachers.t.train.epochs",
    ],
)
def test_a_value_that_is_no_number_is_one_line(key: str, value: float) -> None:
    spec = copy.deepcopy(SPEC)
    *sections, last = key.split(".")
    place = spec
    for section in sections:
        place = place.setdefault(section, {})
    place[last] = value
    with pytest.raises(SpecError) as caught:
        check(spec)
    assert [str(problem) for problem in caught.value.problems] == [f"{key} must be a finite number, got {value}"]


def test_another_problem_of_the_same_section_is_still_reported() -> None:
    spec = copy.deepcopy(SPEC) | {"dataset": {"name": "digits", "validation": math.nan, "options": {"limit": 0}}}
    with pytest.raises(SpecError) as caught:
        check(spec)
    assert [problem.key for problem in caught.value.problems] == ["dataset.validation", "dataset.options.limit"]
