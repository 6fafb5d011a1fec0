"""Size brackets: only students of one bracket are compared by early stopping."""

import math


def size_bracket(parameters: float) -> int:
    """The bracket of a student: parameter counts within a factor of four."""
    return round(math.log(max(parameters, 1), 4))


def bracket_name(bracket: int) -> str:
    """Its bounds, readable: `32k to 131k`."""
    return f"{_short(2 ** (2 * bracket - 1))} to {_short(2 ** (2 * bracket + 1))}" if bracket else "up to 2"


def _short(number: int) -> str:
    for letter, unit in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= unit:
            return f"{number / unit:.3g}{letter}"
    return str(number)
