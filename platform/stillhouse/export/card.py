"""The model card: what the student is, how good and how large it is, how it was made, and how to run it."""

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from stillhouse.spec.metric import ACCURACY, Metric

_TEMPLATES = Path(__file__).parent / "templates"


def render_card(document: dict[str, Any]) -> str:
    """Markdown with the numbers of `export.json`.

    Args:
        document: the content of `export.json`; one of the first release has no `metric` and no `output`: accuracy and logits.
    """
    metric = Metric.model_validate(document.get("metric", ACCURACY.model_dump()))
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - Markdown; `cell` escapes what would break a table
    )
    environment.filters |= {"cell": _cell, "count": _count, "number": _number, "score": _score}
    of_split = metric.sampling_interval(document["metrics"].get(metric.column("test")), document["dataset"].get("test_samples"))
    return environment.get_template("card.md.j2").render(
        {
            "output": "logits",
            "compression": "",
            "derived_from": None,
            "int8": None,
            "licence": None,
            "preprocessing_resizes": False,
            "input": "images",
            "drawn": False,
            **document,
            "any_length": document.get("any_length", False),
            "dataset": {"sample": "image", **document["dataset"]},
            "metric": metric,
            "test_split_interval": of_split,
        }
    )


def _cell(value: Any) -> str:
    """Plain data inside one cell of a table, as text."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("`", "\\`").replace("<", "&lt;").split())


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _number(value: float) -> str:
    return f"{value:.3g}"


def _score(value: float | None, metric: Metric) -> str:
    """A value of the metric, with four decimals where it is a fraction."""
    if value is None:
        return "not measured"
    return f"{value:.4f}" if metric.percent else metric.format(value)
