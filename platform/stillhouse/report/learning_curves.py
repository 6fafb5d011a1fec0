"""Learning curves: the validation metric by epoch, one figure per student."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

from stillhouse.report.axes import without_outliers
from stillhouse.report.configurations import Configuration, grouped, winners
from stillhouse.report.estimates import mean_with_interval
from stillhouse.report.plot_style import PlotStyle, baseline_first
from stillhouse.report.plotly_figure import MAX_FIGURES, escaped, plain_figure, rounded
from stillhouse.spec.records import SweepFacts, TrialRecord

_MAX_FAINT_CURVES = 8


# On a phone the legend goes below the figure, which fills the width.
_NARROW_CURVES = {
    "height": 500,
    "margin": {"l": 48, "r": 8, "t": 34, "b": 170},
    "legend": {"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top", "groupclick": "togglegroup"},
}


def curve_figures(
    facts: SweepFacts, records: Sequence[TrialRecord], found: Sequence[Configuration]
) -> dict[str, list[dict[str, Any]]]:
    """Validation accuracy by epoch, one figure per student: each method's winner in bold, its other trials faint."""
    looks = PlotStyle.of(facts, records)
    best = {(each.method, each.student): each for each in winners(found, lambda each: (each.method, each.student))}
    figures: dict[str, list[dict[str, Any]]] = {}
    with_curves = [record for record in records if len(_curve(record)[0]) > 0]
    for student, group in list(grouped(with_curves, lambda record: record.trial.student.name).items())[:MAX_FIGURES]:
        traces = []
        late: list[float] = []
        methods = grouped(group, lambda record: record.trial.method)
        for method in baseline_first(facts, set(methods)):
            winner = best.get((method, student))
            reported = [record for record in winner.reported if _curve(record)[0]] if winner else []
            known = {id(record) for record in (winner.records if winner else ())}
            rest = [record for record in methods[method] if id(record) not in known]
            traces += [_faint_curve(record, method, looks) for record in rest[:_MAX_FAINT_CURVES]]
            bold = _bold_curve(reported or methods[method][:1], method, looks)
            traces.append(bold)
            late += bold["y"][len(bold["y"]) // 3 :]
        layout = {
            # So high that the legend needs no scrolling.
            "height": max(420, 100 + 20 * len(methods)),
            "margin": {"l": 64, "r": 16, "t": 34, "b": 56},
            "hovermode": "closest",
            "xaxis": {"title": {"text": "Epoch"}, "rangemode": "tozero"},
            "yaxis": {
                "title": {"text": "Validation accuracy"},
                "tickformat": ".1%",
                "range": without_outliers(late) or _range(late),
            },
            "legend": {"groupclick": "togglegroup", "tracegroupgap": 0},
        }
        figures[student] = [{**plain_figure(traces, layout), "narrow": _NARROW_CURVES}]
    return figures


def _range(values: Sequence[float]) -> list[float] | None:
    """Where the curves end up, with room; the steep beginning would press their differences flat."""
    if not values or max(values) <= min(values):
        return None
    room = 0.08 * (max(values) - min(values))
    return [min(values) - room, max(values) + room]


def _curve(record: TrialRecord) -> tuple[list[float], list[float]]:
    """Epochs and validation accuracies; epochs are counted through where stages number them anew."""
    points: list[tuple[Any, float]] = [
        (entry.get("epoch"), entry["validation_accuracy"])
        for entry in record.curve
        if isinstance(entry.get("validation_accuracy"), int | float) and math.isfinite(entry["validation_accuracy"])
    ]
    epochs = [epoch for epoch, _ in points]
    accuracies = [float(accuracy) for _, accuracy in points]
    numbered = all(isinstance(epoch, int | float) for epoch in epochs)
    if numbered and all(later > earlier for earlier, later in itertools.pairwise(epochs)):
        return [float(epoch) for epoch in epochs], accuracies
    return [float(number) for number in range(1, len(points) + 1)], accuracies


def _faint_curve(record: TrialRecord, method: str, looks: PlotStyle) -> dict[str, Any]:
    epochs, accuracies = _curve(record)
    return {
        "x": epochs,
        "y": rounded(accuracies),
        "mode": "lines",
        "line": {"color": looks.colours[method], "width": 1, "dash": looks.dash(method)},
        "opacity": 0.3,
        "legendgroup": escaped(method),
        "showlegend": False,
        "hoverinfo": "skip",
    }


def _bold_curve(records: Sequence[TrialRecord], method: str, looks: PlotStyle) -> dict[str, Any]:
    """The mean over the seeds, as far as all of them ran."""
    curves = [_curve(record) for record in records]
    length = min(len(epochs) for epochs, _ in curves)
    estimates = [mean_with_interval(accuracies[epoch] for _, accuracies in curves) for epoch in range(length)]
    seeds = "" if len(records) == 1 else f" (mean and 95% interval of {len(records)} seeds)"
    spreads = ["" if each.half_width is None else f" ± {100 * each.half_width:.2f}" for each in estimates]
    return {
        "x": curves[0][0][:length],
        "y": rounded([each.mean for each in estimates]),
        "customdata": spreads,
        "mode": "lines+markers",
        "line": {"color": looks.colours[method], "width": 2.6, "dash": looks.dash(method)},
        "marker": {"size": 5, "color": looks.colours[method], "line": {"width": 0}},
        "name": escaped(method),
        "legendgroup": escaped(method),
        "hovertemplate": f"<b>{escaped(method)}</b>{seeds}<br>epoch %{{x}}: %{{y:.2%}}%{{customdata}}<extra></extra>",
    }
