"""Sizes as people write them."""

import pytest

from stillhouse.spec.sizes import parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("17", 17), ("17B", 17), ("2k", 2000), ("500MB", 500 * 10**6), ("20 GB", 20 * 10**9), (" 1.5T ", 1500 * 10**9)],
)
def test_units_are_powers_of_1000(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1", "1e3", "5 PB", "5KiB", "MB"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a size such as 500MB or 20GB"):
        parse_bytes(text)
