"""Hyper-parameters between plain data and the types of a method."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from stillhouse.distill.hyperparameters import make_method
from stillhouse.distill.method import Card, Method, hyperparameter
from stillhouse.errors import UsageError
from stillhouse.spec.hyperparameter import plain, setting_problem, typed
from stillhouse.spec.priors import Choice, Uniform


@dataclass(frozen=True, kw_only=True)
class Example(Method):
    """One hyper-parameter of each type."""

    card: ClassVar[Card] = Card(title="Example", equations="none")
    rate: float = hyperparameter(0.5, above=0)
    count: int = hyperparameter(1, minimum=1)
    sizes: tuple[int, ...] = hyperparameter((1, 2))
    form: str = hyperparameter("paper", choices=("paper", "code"))


@pytest.mark.parametrize(
    ("name", "value", "expected"), [("rate", 1, 1.0), ("count", 3, 3), ("sizes", [3, 4], (3, 4)), ("form", "code", "code")]
)
def test_a_value_gets_the_type_of_its_field(name: str, value: Any, expected: Any) -> None:
    found = typed(Example, name, value)
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize(("name", "value"), [("rate", "1"), ("rate", True), ("count", 1.5), ("sizes", 3), ("sizes", ["a"])])
def test_a_value_of_another_type_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match="must be "):
        typed(Example, name, value)


def test_a_method_is_made_from_plain_data() -> None:
    method: Any = make_method("kd", {"temperature": 2})
    assert isinstance(method.temperature, float)
    with pytest.raises(UsageError, match="no method 'kdd'; did you mean 'kd'"):
        make_method("kdd", {})


def test_tuples_become_lists_at_every_depth() -> None:
    assert plain((1, (2, 3), "a")) == [1, [2, 3], "a"]


@pytest.mark.parametrize(
    ("name", "setting", "problem"),
    [
        ("rate", 0.1, None),
        ("rate", Uniform(0.1, 1.0), None),
        ("rate", 0, "rate must be > 0, got 0"),
        ("rate", Uniform(0.0, 1.0), "rate must be > 0, got 0.0 in {uniform: [0.0, 1.0]}"),
        ("form", "Paper", "form must be one of paper, code, got 'Paper'"),
        ("sizes", Choice(([1], 2)), "sizes must be a list, got 2 in {choice: [[1], 2]}"),
    ],
)
def test_a_setting_is_checked_at_every_value_that_its_prior_can_give(name: str, setting: Any, problem: str | None) -> None:
    found = setting_problem(Example, name, setting)
    assert (None if found is None else str(found)) == problem
