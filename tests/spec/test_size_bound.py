import pytest

from stillhouse.errors import SpecError, UsageError
from stillhouse.spec.load import spec_to_dict, validate
from stillhouse.spec.size_bound import Budget, parse_budget

SPEC = {"name": "s", "dataset": {"name": "digits"}, "students": ["mlp"], "methods": {"scratch": {}}}


@pytest.mark.parametrize(
    ("text", "metric", "limit"),
    [("parameters=100k", "parameters", 1e5), ("size_bytes=1.5M", "size_bytes", 1.5e6), (" latency_ms = 2 ", "latency_ms", 2.0)],
)
def test_budgets_are_read_with_their_letters(text: str, metric: str, limit: float) -> None:
    assert parse_budget(text) == Budget(metric, limit)


@pytest.mark.parametrize("text", ["parameters", "weight=3", "parameters=-1", "parameters=0", "parameters=1..2", "macs=1x"])
def test_a_budget_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="budget"):
        parse_budget(text)


@pytest.mark.parametrize(
    ("name", "limit", "message"),
    [
        ("paramters", 5, "is not a size; did you mean 'parameters'? available: latency_ms, macs, parameters, size_bytes"),
        ("macs", "many", "must be a number such as 100k, got 'many'"),
        ("macs", "1.2.3", "must be a number such as 100k, got '1.2.3'"),
        ("macs", -1, "must be a number such as 100k, got -1"),
        ("macs", 0, "must be a number > 0, got 0.0"),
    ],
)
def test_a_limit_of_a_search_that_makes_no_sense_is_a_problem_of_its_key(name: str, limit: object, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        validate(SPEC | {"search": {"limits": {name: limit}}})
    (problem,) = caught.value.problems
    assert (problem.key, problem.message) == (f"search.limits.{name}", message)


def test_a_spec_writes_its_budgets_like_the_command_line() -> None:
    spec = validate(SPEC | {"report": {"budgets": ["parameters=100k", " latency_ms = 2 "]}})
    assert [parse_budget(text) for text in spec.report.budgets] == [Budget("parameters", 1e5), Budget("latency_ms", 2.0)]
    assert validate(spec_to_dict(spec)) == spec


def test_a_spec_without_budgets_has_none() -> None:
    assert validate(SPEC).report.budgets == ()


@pytest.mark.parametrize("budget", ["parameters", "weight=3", 3, {"parameters": "100k"}, None])
def test_a_budget_of_a_spec_that_makes_no_sense_is_refused_with_its_key(budget: object) -> None:
    with pytest.raises(SpecError, match=r"report\.budgets\[0\]"):
        validate(SPEC | {"report": {"budgets": [budget]}})
