"""Options that several commands share."""

import pytest

from stillhouse.cli.options import parse_size
from stillhouse.errors import UsageError


@pytest.mark.parametrize(("text", "size"), [("0", 0), ("500MB", 500_000_000), ("1.5 GB", 1_500_000_000), ("2k", 2000)])
def test_a_size_is_read_in_powers_of_1000(text: str, size: int) -> None:
    assert parse_size(text, "--keep") == size


def test_a_wrong_size_names_the_option() -> None:
    with pytest.raises(UsageError, match=r"^--keep must be a size such as 500MB or 20GB, got 'much'$"):
        parse_size("much", "--keep")
