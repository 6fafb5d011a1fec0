"""Pydantic's errors in the words of the spec."""

from typing import Any

import pytest
from pydantic import ValidationError

from stillhouse.spec.error_messages import key_of, sentence, to_problems
from stillhouse.spec.schema import SweepSpec


@pytest.mark.parametrize(
    ("place", "key"),
    [
        (("search", "max_epochs"), "search.max_epochs"),
        (("students", 2, "width"), "students[2].width"),
        (("students", 2, "options", "width"), "students[2].width"),
        (("teachers", "big", "options", "width"), "teachers.big.width"),
        (("dataset", "options", "limit"), "dataset.options.limit"),
        (("teachers", "a b", "[key]"), "teachers.a b"),
        ((), ""),
    ],
)
def test_a_position_is_written_as_the_user_wrote_it(place: tuple[str | int, ...], key: str) -> None:
    assert key_of(place) == key


def error(**fields: Any) -> Any:
    return {"loc": (), "input": None, "msg": "Value error, odd", **fields}


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (error(type="greater_than", input=0, ctx={"gt": 0.0}), "must be > 0, got 0"),
        (error(type="less_than_equal", input=9, ctx={"le": 4096}), "must be <= 4096, got 9"),
        (error(type="int_type", input="x"), "must be a whole number, got 'x'"),
        (error(type="bool_parsing", input=None), "must be true or false, got null"),
        (error(type="too_short", input=[], ctx={"min_length": 1}), "must list at least 1, got []"),
        (
            error(type="literal_error", input="sdg", ctx={"expected": "'sgd', 'adam' or 'adamw'"}),
            "must be one of sgd, adam, adamw, got 'sdg'; did you mean 'sgd'?",
        ),
        (error(type="something_new", input=1), "is not valid: value error, odd, got 1"),
    ],
)
def test_an_error_is_its_rule_and_its_value(found: Any, words: str) -> None:
    assert sentence(found) == words


def test_missing_and_unknown_keys_name_the_remedy() -> None:
    with pytest.raises(ValidationError) as caught:
        SweepSpec.model_validate({"name": "s", "dataset": {}, "students": [{"model": "mlp"}], "serch": {}})
    found = {problem.key: str(problem) for problem in to_problems(caught.value.errors())}
    assert found["dataset.name"] == "dataset.name is required; name the data set, such as name: digits"
    assert found["serch"].startswith("serch is not a key of a spec; did you mean 'search'")
