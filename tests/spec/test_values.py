"""Names, settings and priors of a spec, each with the rule that a wrong one breaks."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from stillhouse.spec.priors import Choice, Integers, LogUniform, Uniform
from stillhouse.spec.values import StudentName, SweepName, TeacherName, parse_plain, parse_setting


@pytest.mark.parametrize(
    ("value", "setting"),
    [
        (3, 3),
        ("x", "x"),
        (None, None),
        ([1, [True]], [1, [True]]),
        ((1, 2), [1, 2]),
        ({"uniform": [1, 2]}, Uniform(1.0, 2.0)),
        ({"loguniform": [0.1, 10]}, LogUniform(0.1, 10.0)),
        ({"integers": [1, 3]}, Integers(1, 3)),
        ({"choice": [1, "a", None, [2]]}, Choice((1, "a", None, [2]))),
        (Uniform(0.0, 1.0), Uniform(0.0, 1.0)),
    ],
)
def test_a_setting_is_a_plain_value_or_a_prior(value: Any, setting: Any) -> None:
    assert parse_setting(value) == setting


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ({"normal": [0, 1]}, "must be a value or one prior"),
        ({}, "must be a value or one prior"),
        ({"uniform": 1}, r"must be a list, got 1"),
        ({"uniform": [2, 1]}, r"must be \[low, high\] with low < high, got \[2, 1\]"),
        ({"uniform": [1]}, r"must be two numbers \[low, high\], got \[1\]"),
        ({"integers": [1, 2.5]}, r"must be two whole numbers \[low, high\]"),
        ({"integers": [False, True]}, r"must be two whole numbers \[low, high\]"),
        ({"loguniform": [0, 1]}, r"must be \[low, high\] with 0 < low < high"),
        ({"choice": []}, r"must list at least one value, got \[\]"),
        ([object()], "must be a plain value"),
    ],
)
def test_what_is_neither_breaks_a_rule(value: Any, rule: str) -> None:
    with pytest.raises(PydanticCustomError, match=rule):
        parse_setting(value)


def test_a_mapping_is_no_plain_value() -> None:
    with pytest.raises(PydanticCustomError, match=r"must be a plain value, got \{a: 1\}"):
        parse_plain({"a": 1})


@pytest.mark.parametrize(
    ("kind", "good", "wrong"),
    [
        (SweepName, ["a", "A-1_b.c", "9" * 100], ["", ".a", "-a", "a/b", "a b", "9" * 101, "ü", 1, None]),
        (TeacherName, ["big", "big-2_b"], ["", "a.b", "a+b", "_a", "a:b"]),
        (StudentName, ["mlp", "torchvision:resnet18", "a.b:c-1"], ["", ":a", "a+b", "a b", "x" * 201]),
    ],
)
def test_names_have_no_sign_that_a_folder_or_a_key_could_misread(kind: Any, good: list[Any], wrong: list[Any]) -> None:
    adapter = TypeAdapter(kind)
    for name in good:
        assert adapter.validate_python(name) == name
    for name in wrong:
        with pytest.raises(ValidationError):
            adapter.validate_python(name)
