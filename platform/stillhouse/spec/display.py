"""How messages show values: short, in YAML's words, without secrets."""

from collections.abc import Mapping
from typing import Any

from stillhouse.spec.secret_masking import mask_data

_SHOWN = 80


def show(value: Any) -> str:
    """A value as a message shows it: in YAML's words, short, without secrets."""
    return _show(mask_data(value))


def _show(value: Any) -> str:
    if isinstance(value, Mapping):
        text = "{" + ", ".join(f"{key}: {_show(item)}" for key, item in value.items()) + "}"
    elif isinstance(value, list | tuple):
        text = "[" + ", ".join(map(_show, value)) + "]"
    elif value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    else:
        text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def show_seconds(seconds: float) -> str:
    """A duration in the units that people read: `0.25 s`, `42 s`, `3 min 5 s`, `1,000 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min"
