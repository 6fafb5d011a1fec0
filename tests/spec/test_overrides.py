"""Overrides: values in YAML at keys as the user writes them."""

from typing import Any

import pytest

from stillhouse.errors import SpecError
from stillhouse.spec.overrides import apply_overrides, copy_data, parse_key

SMALL: dict[str, Any] = {"name": "s", "dataset": {"name": "digits"}, "students": ["mlp"], "methods": ["scratch"]}


def test_overrides_are_yaml_and_reach_into_lists_and_shorthands() -> None:
    raw = apply_overrides(SMALL, ["search.max_epochs=4", "students[0].width={choice: [0.5, 1]}", "methods.scratch.x=1e-3"])
    assert raw["search"] == {"max_epochs": 4}
    assert raw["students"] == [{"model": "mlp", "width": {"choice": [0.5, 1]}}]
    assert raw["methods"] == {"scratch": {"x": 0.001}}
    assert SMALL["students"] == ["mlp"]


def test_overrides_of_keys_that_cannot_exist_are_all_reported() -> None:
    with pytest.raises(SpecError) as error:
        apply_overrides(SMALL, ["students[3].a=1", "name.x=1", "search", "a=[", "x..y=1", "b={c: 1, c: 2}"])
    assert [problem.key for problem in error.value.problems] == ["students[3].a", "name.x", "--set", "", "--set", "b.c"]


@pytest.mark.parametrize(
    ("key", "parts"),
    [
        ("search.max_epochs", ("search", "max_epochs")),
        ("students[12].width", ("students", 12, "width")),
        ("a", ("a",)),
        ("a..b", None),
        ("", None),
        ("a[x]", None),
        ("[0]", None),
        ("a b", None),
    ],
)
def test_a_key_is_divided_into_its_parts(key: str, parts: tuple[str | int, ...] | None) -> None:
    assert parse_key(key) == parts


def test_a_copy_shares_no_container_with_its_original() -> None:
    original = {"a": [{"b": (1, 2)}]}
    copy = copy_data(original)
    assert copy == {"a": [{"b": [1, 2]}]}
    copy["a"][0]["b"] = 3
    assert original == {"a": [{"b": (1, 2)}]}
