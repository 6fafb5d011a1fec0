"""The rules of the options that models share."""

import math
from typing import Any

import pytest

from stillhouse.models.options import broken_rule


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[("width", 0.5), ("width", 2), ("dropout", 0), ("dropout", 0.9), ("hidden", [256, 128]), ("hidden", (1,))],
        *[
            ("resize", None),
            ("resize", 224),
            ("ratio", 1),
            ("dw_size", 5),
            ("primary_kernel", 1),
            ("an option of a user", object()),
        ],
    ],
)
def test_a_good_value_breaks_no_rule(option: str, value: Any) -> None:
    assert broken_rule(option, value) is None


@pytest.mark.parametrize(
    ("option", "value", "rule"),
    [
        *[("width", value, "must be a number > 0") for value in (0, -1, True, "1", None, math.inf, math.nan)],
        *[("dropout", value, "must be a number >= 0 and < 1") for value in (1, -0.1, False, "0.5")],
        *[("hidden", value, "must be a list of layer sizes") for value in ([], [0], [1.5], [True], 256, "256")],
        *[("ratio", value, "must be a whole number >= 1") for value in (0, 1.5, True, "2")],
        *[
            (kernel, value, "must be an odd number >= 1")
            for kernel in ("dw_size", "primary_kernel")
            for value in (0, 2, 3.0, True)
        ],
        *[("resize", value, "must be an image side >= 1 or null") for value in (0, 1.5, True, "224")],
    ],
)
def test_a_wrong_value_breaks_the_rule_of_its_option(option: str, value: Any, rule: str) -> None:
    assert (broken_rule(option, value) or "").startswith(rule)
