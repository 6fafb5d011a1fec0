"""Running the checks of a conformance suite: what is listed, what is raised."""

from collections.abc import Callable

import pytest

from stillhouse.testing.checks import run_checks


def passes(_trial: int) -> None:
    """Everything passes."""


def is_even(trial: int) -> None:
    """The number is even.

    More about it.
    """
    if trial % 2:
        raise AssertionError(f"{trial} is odd")


def is_small(trial: int) -> None:
    """The number is small."""
    if trial >= 3:
        raise AssertionError(f"{trial} is large")


def breaks(_trial: int) -> None:
    """The number is a name."""
    raise KeyError("no such name")


def checks(*functions: Callable[[int], None]) -> dict[str, Callable[[int], None]]:
    return {function.__name__: function for function in functions}


def test_every_failed_check_is_listed_with_what_it_requires() -> None:
    with pytest.raises(AssertionError) as caught:
        run_checks(checks(passes, is_even, is_small), 5, "the number")
    assert str(caught.value) == (
        "the number fails 2 of 3 checks:\n"
        "  - is_even: 5 is odd\n    required: The number is even.\n"
        "  - is_small: 5 is large\n    required: The number is small."
    )


def test_nothing_is_raised_if_every_check_passes() -> None:
    run_checks(checks(passes, is_even, is_small), 2, "the number")


def test_another_error_is_raised_with_the_name_of_the_check() -> None:
    with pytest.raises(KeyError, match="no such name") as caught:
        run_checks(checks(is_even, breaks), 5, "the number")
    assert caught.value.__notes__ == ["raised in the check 'breaks' of the number; required: The number is a name."]
