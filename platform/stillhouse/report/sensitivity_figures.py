"""Small figures: the validation metric against each hyper-parameter of a method."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from stillhouse.report.configurations import grouped
from stillhouse.report.plot_style import (
    PlotStyle,
)
from stillhouse.report.plotly_figure import MAX_FIGURES, escaped, plain_figure, rounded, shortened
from stillhouse.report.sensitivities import Sensitivity
from stillhouse.spec.records import SweepFacts, TrialRecord


def sensitivity_figures(
    facts: SweepFacts, records: Sequence[TrialRecord], found: Sequence[Sensitivity]
) -> dict[str, list[dict[str, Any]]]:
    """For each method a small figure per hyper-parameter: validation accuracy against its value, sizes taken out."""
    looks = PlotStyle.of(facts, records)
    return {
        method: [_sensitivity_figure(each, looks) for each in group[:12]]
        for method, group in list(grouped(found, lambda each: each.method).items())[:MAX_FIGURES]
    }


def _sensitivity_figure(each: Sensitivity, looks: PlotStyle) -> dict[str, Any]:
    picks = np.unique(np.linspace(0, len(each.values) - 1, min(len(each.values), 400)).astype(int)).tolist()
    values: list[Any] = [each.values[pick] for pick in picks]
    effects = [each.effects[pick] for pick in picks]
    shown = values if each.numeric else [escaped(shortened(str(value))) for value in values]
    traces = [
        {
            "x": shown,
            "y": rounded(effects),
            "mode": "markers",
            "marker": {
                "color": looks.colours[each.method],
                "size": 9,
                "symbol": [looks.symbol(each.method, each.students[pick]) for pick in picks],
            },
            "opacity": 0.8,
            "customdata": [escaped(each.students[pick]) for pick in picks],
            "hovertemplate": "%{customdata}<br>%{x}: %{y:+.2%}<extra></extra>",
            "showlegend": False,
        }
    ]
    log = each.numeric and min(values) > 0 and max(values) / min(values) > 20
    axis = {"type": "log" if log else "linear"} if each.numeric else {"type": "category"}
    layout = {
        "height": 270,
        "margin": {"l": 56, "r": 12, "t": 30, "b": 48},
        "hovermode": "closest",
        "xaxis": {**axis, "title": {"text": escaped(each.hyperparameter)}},
        "yaxis": {"tickformat": "+.1%", "zeroline": True, "nticks": 5},
    }
    return plain_figure(traces, layout)
