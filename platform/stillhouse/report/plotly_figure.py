"""Plotly figures as plain data, and the two themes of the page."""

import html
import json
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

MAX_FIGURES = 60
_LONGEST_VALUE = 80


def themes() -> dict[str, Any]:
    """The plotly templates of the light and the dark page."""
    return {
        "light": _theme(ink="#1c2530", quiet="#8a94a1", soft="#d9dee5", ground="#ffffff", outline="rgba(20,26,34,0.65)"),
        "dark": _theme(ink="#e6e9ee", quiet="#7b8693", soft="#333c48", ground="#171d25", outline="rgba(235,240,246,0.55)"),
    }


def _theme(*, ink: str, quiet: str, soft: str, ground: str, outline: str) -> dict[str, Any]:
    axis = {"gridcolor": soft, "linecolor": soft, "zerolinecolor": soft, "automargin": True, "title": {"standoff": 12}}
    return {
        "layout": {
            "font": {"color": ink, "family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", "size": 13},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "xaxis": axis,
            "yaxis": axis,
            "hoverlabel": {"bgcolor": ground, "bordercolor": soft, "font": {"color": ink}, "align": "left"},
            "legend": {"bgcolor": "rgba(0,0,0,0)"},
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": quiet, "activecolor": ink},
        },
        "data": {"scatter": [{"marker": {"line": {"color": outline, "width": 1}}}]},
    }


def rounded(values: Sequence[float]) -> list[float]:
    """Six significant digits: more only make the page larger."""
    return [float(f"{value:.6g}") for value in values]


def plain_figure(traces: Sequence[dict[str, Any]], layout: dict[str, Any]) -> dict[str, Any]:
    """The figure as plain JSON data, checked by plotly, NaN as null. The page adds its own template."""
    figure = go.Figure([go.Scatter(trace) for trace in traces], layout={**layout, "template": "none"})
    plain: dict[str, Any] = json.loads(figure.to_json())
    plain["layout"].pop("template", None)
    return plain


def escaped(text: str) -> str:
    """`text` so that plotly shows every letter of it: plotly interprets some HTML in labels."""
    return html.escape(text, quote=False)


def shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."
