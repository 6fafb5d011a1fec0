"""Small figures: how the result changes with each hyper-parameter of a method."""

from typing import Any

import numpy as np

from stillhouse.report.configurations import grouped
from stillhouse.report.formatting import tick_format
from stillhouse.report.plotly_figure import MAX_FIGURES, escaped, plain_figure, rounded, shortened
from stillhouse.report.report_data import ReportData
from stillhouse.report.sensitivities import Sensitivity

_MAX_OF_METHOD = 12


def sensitivity_figures(data: ReportData) -> dict[str, list[dict[str, Any]]]:
    """For each method one small figure per hyper-parameter: each trial's effect against the value that it had."""
    by_method = grouped(data.sensitivities, lambda each: each.method)
    return {
        method: [_sensitivity_figure(each, data) for each in group[:_MAX_OF_METHOD]]
        for method, group in list(by_method.items())[:MAX_FIGURES]
    }


def _sensitivity_figure(each: Sensitivity, data: ReportData) -> dict[str, Any]:
    style = data.tradeoff.style
    picks = np.unique(np.linspace(0, len(each.values) - 1, min(len(each.values), 400)).astype(int)).tolist()
    values: list[Any] = [each.values[pick] for pick in picks]
    effects = [each.effects[pick] for pick in picks]
    shown = values if each.numeric else [escaped(shortened(str(value))) for value in values]
    effect = f"%{{y:{tick_format(data.metric, signed=True, exact=True)}}}"
    traces = [
        {
            "x": shown,
            "y": rounded(effects),
            "mode": "markers",
            "marker": {
                "color": style.colours[each.method],
                "size": 9,
                "symbol": [style.symbol(each.method, each.students[pick]) for pick in picks],
            },
            "opacity": 0.8,
            "customdata": [escaped(each.students[pick]) for pick in picks],
            "hovertemplate": f"%{{customdata}}<br>%{{x}}: {effect}<extra></extra>",
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
        "yaxis": {"tickformat": tick_format(data.metric, signed=True), "zeroline": True, "nticks": 5},
    }
    return plain_figure(traces, layout)
