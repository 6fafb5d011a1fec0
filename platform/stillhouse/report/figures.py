"""The interactive figures of the page, as plotly JSON."""

import html
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from stillhouse.report.answers import configuration_front
from stillhouse.report.formatting import duration, milliseconds, percent, short, size, value_text, whole
from stillhouse.report.plot_style import (
    AXES,
    FRONT_COLOUR,
    TEACHER_COLOUR,
    PlotStyle,
    Spread,
    axis_value,
    baseline_first,
    without_outliers,
)
from stillhouse.report.statistics import (
    Configuration,
    Sensitivity,
    grouped,
    mean_with_interval,
    winners,
)
from stillhouse.spec.records import SweepFacts, TeacherFacts, TrialRecord

_ACCURACIES: Mapping[str, str] = {
    "test_accuracy": "Test accuracy (reported)",
    "validation_accuracy": "Validation accuracy (chosen by)",
}
_KINDS = ("sweep", "method", "student")
_COUNTED = ("parameters", "size_bytes", "macs")
_MAX_POINTS = 1_500
_MAX_FAINT_CURVES = 8
_MAX_FIGURES = 60
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


@dataclass(frozen=True)
class Tradeoff:
    """The scatter with what its switches need, and how many configurations it leaves out.

    Attributes:
        below: points that lie under the first range of the axis of test accuracies.
    """

    figure: dict[str, Any]
    shown: int
    total: int
    below: int = 0


def tradeoff_figure(
    found: Sequence[Configuration], teachers: Sequence[TeacherFacts], looks: PlotStyle, addresses: Mapping[str, str]
) -> Tradeoff | None:
    """Accuracy against size: a point per configuration, winners large with 95% intervals; None without results."""
    if not found:
        return None
    best = winners(found)
    fronts = {axis: configuration_front(best, axis) for axis in AXES}
    large = set(best)
    chosen = _thinned(best, [each for front in fronts.values() for each in front])
    others = _thinned([each for each in found if each not in large], [])
    spreads = {axis: Spread(best, axis, looks) for axis in AXES}
    traces: list[dict[str, Any]] = []
    for is_large, group in ((False, others), (True, chosen)):
        parts = grouped(group, lambda each: (each.sweep, each.method, each.student)).values()
        traces += [_point_trace(points, looks, spreads, addresses, large=is_large) for points in parts]
    traces += [_front_trace(axis, front, spreads[axis]) for axis, front in fronts.items()]
    traces += [_teacher_trace(teacher) for teacher in teachers]
    switch: dict[str, Any] = {
        "axes": {
            axis: {
                "title": title,
                "tickformat": "~s" if axis in _COUNTED else "~g",
                "x": [trace["x"][axis] for trace in traces],
                "spread": [trace.get("spread", trace["x"])[axis] for trace in traces],
            }
            for axis, title in AXES.items()
        },
        "accuracies": {
            name: {
                "title": title,
                "range": without_outliers([value for trace in traces for value in trace["y"][name]]),
                "y": [trace["y"][name] for trace in traces],
                "errors": [trace["errors"][name] for trace in traces],
                "lines": [getattr(teacher, name) for teacher in teachers],
            }
            for name, title in _ACCURACIES.items()
        },
        "kinds": {kind: [trace[kind] for trace in traces] for kind in _KINDS},
        "links": [trace.get("links") for trace in traces],
        "fronts": [trace["front"] for trace in traces],
        "line": _TEACHER_LINE,
    }
    figure = _plain([trace["trace"] for trace in traces], _TRADEOFF_LAYOUT)
    drawn = [*chosen, *others]
    span = switch["accuracies"]["test_accuracy"]["range"]
    below = sum(each.test.mean < span[0] for each in drawn) if span else 0
    return Tradeoff({"figure": figure, "narrow": _NARROW_TRADEOFF, "switch": switch}, len(drawn), len(found), below)


_TRADEOFF_LAYOUT = {
    "height": 560,
    "margin": {"l": 64, "r": 16, "t": 34, "b": 56},
    "hovermode": "closest",
    "xaxis": {"type": "log", "title": {"text": AXES["parameters"]}},
    "yaxis": {"tickformat": ".1%", "title": {"text": _ACCURACIES["test_accuracy"]}},
    "showlegend": False,
}
_NARROW_TRADEOFF = {"height": 420, "margin": {"l": 48, "r": 8, "t": 34, "b": 48}}
# On a phone the legend goes below the figure, which fills the width.
_NARROW_CURVES = {
    "height": 500,
    "margin": {"l": 48, "r": 8, "t": 34, "b": 170},
    "legend": {"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top", "groupclick": "togglegroup"},
}
_TEACHER_LINE = {
    "type": "line",
    "xref": "paper",
    "x0": 0,
    "x1": 1,
    "line": {"color": TEACHER_COLOUR, "width": 1.5, "dash": "dot"},
    "layer": "below",
}


def _thinned(found: Sequence[Configuration], keep: Sequence[Configuration]) -> list[Configuration]:
    """At most `_MAX_POINTS` of them: those to keep, and the rest evenly from the best to the worst."""
    if len(found) <= _MAX_POINTS:
        return list(found)
    kept = list(dict.fromkeys(keep))[:_MAX_POINTS]
    known = set(kept)
    rest = sorted((each for each in found if each not in known), key=lambda each: (-each.validation.mean, each.key))
    picks = np.linspace(0, len(rest) - 1, _MAX_POINTS - len(kept)).astype(int)
    return kept + [rest[pick] for pick in picks]


def _point_trace(
    points: Sequence[Configuration],
    looks: PlotStyle,
    spreads: Mapping[str, Spread],
    addresses: Mapping[str, str],
    *,
    large: bool,
) -> dict[str, Any]:
    """The points of one sweep, method and student label."""
    first = points[0]
    errors = {
        "test_accuracy": [each.test.half_width for each in points] if large else None,
        "validation_accuracy": [each.validation.half_width for each in points] if large else None,
    }
    ys = {
        "test_accuracy": [each.test.mean for each in points],
        "validation_accuracy": [each.validation.mean for each in points],
    }
    xs = {axis: [axis_value(each, axis) for each in points] for axis in AXES}
    spread = {axis: [spreads[axis](each) for each in points] for axis in AXES}
    colour = looks.colours[looks.group(first)]
    links = [addresses.get(each.key) for each in points]
    symbol = looks.symbol(looks.group(first), first.student)
    trace = {
        "x": xs["parameters"],
        "y": ys["test_accuracy"],
        "mode": "markers",
        "name": _text(f"{first.method}, {first.student}"),
        "marker": {
            "color": colour,
            "symbol": symbol,
            "size": 12 if large else 6,
            **({"line": {"width": 2.2}} if large and "open" in symbol else {}),
        },
        "opacity": 0.95 if large else 0.4,
        "customdata": [_hover(each) for each in points],
        "hovertemplate": "%{customdata}<extra></extra>",
    }
    if large:
        trace["error_y"] = {"array": errors["test_accuracy"], "color": colour, "thickness": 1.2, "width": 3}
    return {
        "trace": trace,
        "x": xs,
        "spread": spread,
        "y": ys,
        "errors": errors,
        "sweep": first.sweep,
        "method": first.method,
        "student": first.student,
        "links": links if any(links) else None,
        "front": None,
    }


def _front_trace(axis: str, front: Sequence[Configuration], spread: Spread) -> dict[str, Any]:
    ys = {
        "test_accuracy": [each.test.mean for each in front],
        "validation_accuracy": [each.validation.mean for each in front],
    }
    xs = [axis_value(each, axis) for each in front]
    spread_xs = [spread(each) for each in front]
    trace = {
        "x": xs,
        "y": ys["test_accuracy"],
        "mode": "lines+markers",
        "name": "Pareto front (validation)",
        "visible": axis == "parameters",
        "line": {"color": FRONT_COLOUR, "width": 1.8, "dash": "dash"},
        "marker": {"symbol": "circle-open", "size": 20, "color": FRONT_COLOUR, "line": {"width": 1.6, "color": FRONT_COLOUR}},
        "hoverinfo": "skip",
    }
    return {
        "trace": trace,
        "x": dict.fromkeys(AXES, xs),
        "spread": dict.fromkeys(AXES, spread_xs),
        "y": ys,
        "errors": dict.fromkeys(_ACCURACIES),
        **dict.fromkeys(_KINDS),
        "front": axis,
    }


def _teacher_trace(teacher: TeacherFacts) -> dict[str, Any]:
    xs: dict[str, list[float | None]] = {
        "parameters": [teacher.parameters],
        "size_bytes": [teacher.size_bytes],
        "macs": [teacher.macs],
        "latency_ms": [teacher.latency_ms],
        "train_hours": [teacher.train_seconds / 3600 or None],
    }
    ys = {"test_accuracy": [teacher.test_accuracy], "validation_accuracy": [teacher.validation_accuracy]}
    lines = [
        f"<b>teacher {_text(teacher.name)}</b> ({_text(teacher.model)})",
        f"test {percent(teacher.test_accuracy, 2)}, validation {percent(teacher.validation_accuracy, 2)}",
        f"{whole(teacher.parameters)} parameters, {size(teacher.size_bytes)}, {short(teacher.macs)} MACs, "
        f"{milliseconds(teacher.latency_ms)}",
    ]
    trace = {
        "x": xs["parameters"],
        "y": ys["test_accuracy"],
        "mode": "markers+text",
        "name": _text(f"teacher {teacher.name}"),
        "text": [_text(teacher.name)],
        "textposition": "top left",
        "marker": {"symbol": "star", "size": 19, "color": TEACHER_COLOUR},
        "cliponaxis": False,
        "customdata": ["<br>".join(lines)],
        "hovertemplate": "%{customdata}<extra></extra>",
    }
    return {
        "trace": trace,
        "x": xs,
        "y": ys,
        "errors": dict.fromkeys(_ACCURACIES),
        **dict.fromkeys(_KINDS),
        "front": None,
    }


def _hover(each: Configuration) -> str:
    def accuracy(name: str) -> str:
        estimate = each.test if name == "test" else each.validation
        spread = "" if estimate.half_width is None else f" ± {100 * estimate.half_width:.2f}"
        return f"{name} {percent(estimate.mean, 2)}{spread}"

    seeds = f"n = {each.test.n} " + ("fresh seeds" if each.confirmed else "seed" if each.test.n == 1 else "seeds")
    lines = [
        f"<b>{_text(each.method)}</b> on {_text(each.choice)}" + (f", sweep {_text(each.sweep)}" if each.sweep else ""),
        f"{accuracy('test')}, {accuracy('validation')}, {seeds}",
        f"{whole(each.metric('parameters'))} parameters, {size(each.metric('size_bytes'))}, {short(each.metric('macs'))} MACs, "
        f"{milliseconds(each.metric('latency_ms'))}",
        *(f"{_text(name)}: {_text(_cut(value_text(value)))}" for name, value in sorted(each.hyperparameters.items())),
        f"trial {_text(each.key)}, {duration(each.metric('train_seconds'))}",
    ]
    return "<br>".join(lines)


def curve_figures(
    facts: SweepFacts, records: Sequence[TrialRecord], found: Sequence[Configuration]
) -> dict[str, list[dict[str, Any]]]:
    """Validation accuracy by epoch, one figure per student: each method's winner in bold, its other trials faint."""
    looks = PlotStyle.of(facts, records)
    best = {(each.method, each.student): each for each in winners(found, lambda each: (each.method, each.student))}
    figures: dict[str, list[dict[str, Any]]] = {}
    with_curves = [record for record in records if len(_curve(record)[0]) > 0]
    for student, group in list(grouped(with_curves, lambda record: record.trial.student.name).items())[:_MAX_FIGURES]:
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
        figures[student] = [{**_plain(traces, layout), "narrow": _NARROW_CURVES}]
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
        "y": _rounded(accuracies),
        "mode": "lines",
        "line": {"color": looks.colours[method], "width": 1, "dash": looks.dash(method)},
        "opacity": 0.3,
        "legendgroup": _text(method),
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
        "y": _rounded([each.mean for each in estimates]),
        "customdata": spreads,
        "mode": "lines+markers",
        "line": {"color": looks.colours[method], "width": 2.6, "dash": looks.dash(method)},
        "marker": {"size": 5, "color": looks.colours[method], "line": {"width": 0}},
        "name": _text(method),
        "legendgroup": _text(method),
        "hovertemplate": f"<b>{_text(method)}</b>{seeds}<br>epoch %{{x}}: %{{y:.2%}}%{{customdata}}<extra></extra>",
    }


def sensitivity_figures(
    facts: SweepFacts, records: Sequence[TrialRecord], found: Sequence[Sensitivity]
) -> dict[str, list[dict[str, Any]]]:
    """For each method a small figure per hyper-parameter: validation accuracy against its value, sizes taken out."""
    looks = PlotStyle.of(facts, records)
    return {
        method: [_sensitivity_figure(each, looks) for each in group[:12]]
        for method, group in list(grouped(found, lambda each: each.method).items())[:_MAX_FIGURES]
    }


def _sensitivity_figure(each: Sensitivity, looks: PlotStyle) -> dict[str, Any]:
    picks = np.unique(np.linspace(0, len(each.values) - 1, min(len(each.values), 400)).astype(int)).tolist()
    values: list[Any] = [each.values[pick] for pick in picks]
    effects = [each.effects[pick] for pick in picks]
    shown = values if each.numeric else [_text(_cut(str(value))) for value in values]
    traces = [
        {
            "x": shown,
            "y": _rounded(effects),
            "mode": "markers",
            "marker": {
                "color": looks.colours[each.method],
                "size": 9,
                "symbol": [looks.symbol(each.method, each.students[pick]) for pick in picks],
            },
            "opacity": 0.8,
            "customdata": [_text(each.students[pick]) for pick in picks],
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
        "xaxis": {**axis, "title": {"text": _text(each.hyperparameter)}},
        "yaxis": {"tickformat": "+.1%", "zeroline": True, "nticks": 5},
    }
    return _plain(traces, layout)


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 5) for value in values]


def _plain(traces: Sequence[dict[str, Any]], layout: dict[str, Any]) -> dict[str, Any]:
    """The figure as plain JSON data, checked by plotly, NaN as null; the page brings its own template."""
    figure = go.Figure([go.Scatter(trace) for trace in traces], layout={**layout, "template": "none"})
    plain: dict[str, Any] = json.loads(figure.to_json())
    plain["layout"].pop("template", None)
    return plain


def _text(text: str) -> str:
    """`text` as plotly shows it letter by letter: plotly reads a little HTML in labels."""
    return html.escape(text, quote=False)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."
