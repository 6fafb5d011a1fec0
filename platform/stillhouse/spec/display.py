"""How values stand in messages: short, in YAML's words, without passwords."""

import re
from collections.abc import Mapping
from typing import Any

_SHOWN = 80


def show(value: Any) -> str:
    """A value as it stands in a message: in YAML's words, short, without passwords."""
    if isinstance(value, Mapping):
        text = "{" + ", ".join(f"{key}: {show(item)}" for key, item in value.items()) + "}"
    elif isinstance(value, list | tuple):
        text = "[" + ", ".join(map(show, value)) + "]"
    elif value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    elif isinstance(value, str):
        text = repr(mask_secrets(value))
    else:
        text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def mask_secrets(text: str) -> str:
    """`text` without the passwords and tokens that addresses in it carry."""
    text = re.sub(r"(\w://)[^/@\s]*@", r"\1***@", text)
    return re.sub(r"(?i)([?&;](?:password|passwd|pwd|token|secret|api_?key|sig|signature)=)[^&;\s]*", r"\1***", text)
