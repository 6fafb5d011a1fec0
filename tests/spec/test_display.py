"""How messages show values and durations."""

from typing import Any

import pytest

from stillhouse.spec.display import show, show_seconds


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (0.5, "0.5"),
        ("x y", "'x y'"),
        ({"uniform": [1, 2.0]}, "{uniform: [1, 2.0]}"),
        ([None, {"a": "b"}], "[null, {a: 'b'}]"),
        ((), "[]"),
    ],
)
def test_values_are_shown_in_the_words_of_yaml(value: Any, text: str) -> None:
    assert show(value) == text


def test_a_long_value_is_cut() -> None:
    assert show("x" * 500) == "'" + "x" * 79 + "…"


def test_secrets_are_masked_before_a_long_value_is_cut() -> None:
    assert show("https://" + "hush" * 30 + "@host") == "'https://***@host'"
    assert show({"password": "hush"}) == "{password: '***'}"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.0123, "0.0123 s"),
        (59.4, "59.4 s"),
        (60, "1 min 0 s"),
        (185, "3 min 5 s"),
        (3599.6, "1 h 0 min"),
        (7800, "2 h 10 min"),
        (3_600_600, "1,000 h 10 min"),
    ],
)
def test_durations_are_shown_in_the_units_that_people_read(seconds: float, text: str) -> None:
    assert show_seconds(seconds) == text
