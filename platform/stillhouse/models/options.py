"""The rules of the options that models share."""

import math
from collections.abc import Callable, Mapping
from typing import Any

MAX_LAYERS = 1_000
"""Layers of an MLP that are built; a plan builds every student to know its size."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _width(value: Any) -> str | None:
    return None if _is_number(value) and value > 0 else "must be a number > 0"


def _dropout(value: Any) -> str | None:
    return None if _is_number(value) and 0 <= value < 1 else "must be a number >= 0 and < 1"


def _positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _hidden(value: Any) -> str | None:
    good = isinstance(value, list | tuple) and len(value) > 0 and all(_positive(size) for size in value)
    if good and len(value) > MAX_LAYERS:
        return f"must list at most {MAX_LAYERS} layer sizes"
    return None if good else "must be a list of layer sizes >= 1, as in [256, 128]"


def _rate(value: Any) -> str | None:
    return None if value is None else _dropout(value)


def _resize(value: Any) -> str | None:
    return None if value is None or _positive(value) else "must be an image side >= 1 or null"


def _ratio(value: Any) -> str | None:
    return None if _positive(value) else "must be a whole number >= 1"


def _kernel(value: Any) -> str | None:
    return None if _positive(value) and value % 2 else "must be an odd number >= 1"


def _depth(value: Any) -> str | None:
    good = _positive(value) and value <= MAX_LAYERS
    return None if good else f"must be a whole number from 1 to {MAX_LAYERS}"


def _flag(value: Any) -> str | None:
    return None if isinstance(value, bool) else "must be true or false"


SHORTCUTS = ("projection", "padding")
CHOICES: Mapping[str, tuple[Any, ...]] = {"distilled": (False, True), "shortcut": SHORTCUTS}
"""The options that have few values."""


def _shortcut(value: Any) -> str | None:
    return None if value in SHORTCUTS else f"must be {' or '.join(SHORTCUTS)}"


def _power(value: Any) -> str | None:
    return None if _positive(value) and value & (value - 1) == 0 else "must be a power of two >= 1"


def _name(value: Any) -> str | None:
    return None if isinstance(value, str) and value else "must be the name of a model"


RULES: Mapping[str, Callable[[Any], str | None]] = {
    "width": _width,
    "dropout": _dropout,
    "hidden": _hidden,
    "resize": _resize,
    "drop_path": _rate,
    "ratio": _ratio,
    "dw_size": _kernel,
    "primary_kernel": _kernel,
    "patch": _ratio,
    "heads": _ratio,
    "vocabulary": _ratio,
    "depth": _depth,
    "distilled": _flag,
    "shortcut": _shortcut,
    "backbone": _name,
    "neck_channels": _ratio,
    "hidden_units": _ratio,
    "proposals": _ratio,
    "stride": _power,
}


def broken_rule(option: str, value: Any) -> str | None:
    """The rule of an option that the value breaks, `must be a number > 0`; None when the value is good."""
    return RULES[option](value) if option in RULES else None
