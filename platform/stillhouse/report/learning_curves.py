"""Learning curves: the validation metric by epoch, one figure per student."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from stillhouse.report.axes import without_outliers
from stillhouse.report.configurations import Configuration, grouped, winners
from stillhouse.report.estimates import mean_with_interval
from stillhouse.report.formatting import difference, tick_format
from stillhouse.report.plot_style import baseline_first
from stillhouse.report.plotly_figure import MAX_FIGURES, escaped, plain_figure, rounded
from stillhouse.report.report_data import ReportData
from stillhouse.spec.metric import Metric
from stillhouse.spec.records import TrialRecord

_MAX_FAINT_CURVES = 8
# On a phone the legend goes below the figure, which fills the width.
_NARROW = {
    "height": 500,
    "margin": {"l": 48, "r": 8, "t": 34, "b": 170},
    "legend": {"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top", "groupclick": "togglegroup"},
}


def curve_figures(data: ReportData) -> dict[str, list[dict[str, Any]]]:
    """The metric on the validation split by epoch, one figure per student: winners bold, other trials faint."""
    best = winners(data.tradeoff.winners, lambda each: (each.method, each.student))
    by_place = {(each.method, each.student): each for each in best}
    records = [record for record in data.records if not record.trial.is_control]
    with_curves = [record for record in records if len(_curve(record, data.metric)[0]) > 0]
    by_student = grouped(with_curves, lambda record: record.trial.student.name)
    return {
        student: [_curve_figure(data, student, group, by_place)] for student, group in list(by_student.items())[:MAX_FIGURES]
    }


def _curve_figure(
    data: ReportData, student: str, records: Sequence[TrialRecord], best: Mapping[tuple[str, str], Configuration]
) -> dict[str, Any]:
    """The curves of one student. The axis of the metric begins after the steep first third of the bold curves."""
    traces = []
    late: list[float] = []
    methods = grouped(records, lambda record: record.trial.method)
    for method in baseline_first(data.facts, set(methods)):
        winner = best.get((method, student))
        reported = [record for record in winner.reported if _curve(record, data.metric)[0]] if winner else []
        known = {id(record) for record in (winner.records if winner else ())}
        rest = [record for record in methods[method] if id(record) not in known]
        traces += [_faint_curve(record, data) for record in rest[:_MAX_FAINT_CURVES]]
        bold = _bold_curve(reported or methods[method][:1], data)
        traces.append(bold)
        late += bold["y"][len(bold["y"]) // 3 :]
    layout = {
        # So high that the legend needs no scrolling.
        "height": max(420, 100 + 20 * len(methods)),
        "margin": {"l": 64, "r": 16, "t": 34, "b": 56},
        "hovermode": "closest",
        "xaxis": {"title": {"text": "Epoch"}, "rangemode": "tozero"},
        "yaxis": {
            "title": {"text": f"Validation {data.metric.label}"},
            "tickformat": tick_format(data.metric),
            "range": without_outliers(late, data.metric) or _range(late),
        },
        "legend": {"groupclick": "togglegroup", "tracegroupgap": 0},
    }
    return {**plain_figure(traces, layout), "narrow": _NARROW}


def _range(values: Sequence[float]) -> list[float] | None:
    """The values after the steep beginning, which would press the differences flat, with some room around them."""
    if not values or max(values) <= min(values):
        return None
    room = 0.08 * (max(values) - min(values))
    return [min(values) - room, max(values) + room]


def _curve(record: TrialRecord, metric: Metric) -> tuple[list[float], list[float]]:
    """Epochs and the metric on the validation split; where stages restart the numbers, epochs are counted through."""
    column = metric.column("validation")
    points: list[tuple[Any, float]] = [
        (entry.get("epoch"), entry[column])
        for entry in record.curve
        if isinstance(entry.get(column), int | float) and math.isfinite(entry[column])
    ]
    epochs = [epoch for epoch, _ in points]
    values = [float(value) for _, value in points]
    numbered = all(isinstance(epoch, int | float) for epoch in epochs)
    if numbered and all(later > earlier for earlier, later in itertools.pairwise(epochs)):
        return [float(epoch) for epoch in epochs], values
    return [float(number) for number in range(1, len(points) + 1)], values


def _faint_curve(record: TrialRecord, data: ReportData) -> dict[str, Any]:
    method, style = record.trial.method, data.tradeoff.style
    epochs, values = _curve(record, data.metric)
    return {
        "x": epochs,
        "y": rounded(values),
        "mode": "lines",
        "line": {"color": style.colours[method], "width": 1, "dash": style.dash(method)},
        "opacity": 0.3,
        "legendgroup": escaped(method),
        "showlegend": False,
        "hoverinfo": "skip",
    }


def _bold_curve(records: Sequence[TrialRecord], data: ReportData) -> dict[str, Any]:
    """The mean over the seeds, up to the last epoch that all of them have."""
    method, style = records[0].trial.method, data.tradeoff.style
    curves = [_curve(record, data.metric) for record in records]
    length = min(len(epochs) for epochs, _ in curves)
    estimates = [mean_with_interval(values[epoch] for _, values in curves) for epoch in range(length)]
    seeds = "" if len(records) == 1 else f" (mean and 95% interval of {len(records)} seeds)"
    spreads = [
        "" if each.half_width is None else f" ± {difference(each.half_width, data.metric, exact=True)}" for each in estimates
    ]
    value = f"%{{y:{tick_format(data.metric, exact=True)}}}"
    return {
        "x": curves[0][0][:length],
        "y": rounded([each.mean for each in estimates]),
        "customdata": spreads,
        "mode": "lines+markers",
        "line": {"color": style.colours[method], "width": 2.6, "dash": style.dash(method)},
        "marker": {"size": 5, "color": style.colours[method], "line": {"width": 0}},
        "name": escaped(method),
        "legendgroup": escaped(method),
        "hovertemplate": f"<b>{escaped(method)}</b>{seeds}<br>epoch %{{x}}: {value}%{{customdata}}<extra></extra>",
    }
