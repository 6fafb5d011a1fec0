"""Brackets of sizes: powers of four, rounded in the logarithm."""

import pytest

from stillhouse.models.size_brackets import bracket_name, size_bracket


@pytest.mark.parametrize(
    ("parameters", "bracket"), [(0, 0), (1, 0), (1.9, 0), (2.1, 1), (7.9, 1), (8.1, 2), (2**15 * 1.01, 8), (2**17 * 0.99, 8)]
)
def test_a_bracket_ends_half_way_between_powers_of_four(parameters: float, bracket: int) -> None:
    """The bracket n holds 2^(2n-1) to 2^(2n+1): between 4^(n-1/2) and 4^(n+1/2)."""
    assert size_bracket(parameters) == bracket


def test_a_bracket_is_named_by_its_ends() -> None:
    assert bracket_name(0) == "up to 2"
    assert bracket_name(1) == "2 to 8"
    assert bracket_name(8) == "32.8k to 131k"
    assert bracket_name(11) == "2.1M to 8.39M"
    assert bracket_name(16) == "2.15G to 8.59G"
