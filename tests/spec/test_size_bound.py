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


def test_a_spec_names_its_budgets_as_the_command_line_does() -> None:
    spec = validate(SPEC | {"report": {"budgets": ["parameters=100k", " latency_ms = 2 "]}})
    assert [parse_budget(text) for text in spec.report.budgets] == [Budget("parameters", 1e5), Budget("latency_ms", 2.0)]
    assert validate(spec_to_dict(spec)) == spec


def test_a_spec_without_budgets_has_none() -> None:
    assert validate(SPEC).report.budgets == ()


@pytest.mark.parametrize("budget", ["parameters", "weight=3", 3, {"parameters": "100k"}, None])
def test_a_budget_of_a_spec_that_makes_no_sense_is_refused_with_its_key(budget: object) -> None:
    with pytest.raises(SpecError, match=r"report\.budgets\[0\]"):
        validate(SPEC | {"report": {"budgets": [budget]}})
