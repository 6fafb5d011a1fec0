"""The model card: what the student is, what it can do, what it cost, and how it is run."""

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_TEMPLATES = Path(__file__).parent / "templates"


def render_card(document: dict[str, Any]) -> str:
    """Markdown with the numbers of `export.json`."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - Markdown; `cell` escapes what would break a table
    )
    environment.filters |= {"cell": _cell, "count": _count, "number": _number, "accuracy": _accuracy}
    return environment.get_template("card.md.j2").render(document)


def _cell(value: Any) -> str:
    """Plain data inside one cell of a table, as text."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("`", "\\`").replace("<", "&lt;").split())


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _number(value: float) -> str:
    return f"{value:.3g}"


def _accuracy(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"
