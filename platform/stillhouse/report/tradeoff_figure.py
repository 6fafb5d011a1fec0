"""The interactive trade-off figure: the metric against size, as plotly JSON with the data of its switches."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stillhouse.report.answer_cards import of_test_split
from stillhouse.report.axes import AXES, Spread, axis_value, without_outliers
from stillhouse.report.configurations import Configuration, grouped
from stillhouse.report.estimates import Estimate
from stillhouse.report.formatting import (
    difference,
    duration,
    milliseconds,
    score,
    short,
    size,
    tick_format,
    value_text,
    whole,
)
from stillhouse.report.plot_style import FRONT_COLOUR, TEACHER_COLOUR, PlotStyle
from stillhouse.report.plotly_figure import escaped, plain_figure, shortened
from stillhouse.report.report_data import TradeoffData
from stillhouse.report.routes import configuration_route, route_colours
from stillhouse.spec.metric import Metric, Split
from stillhouse.spec.records import TeacherFacts

_SPLITS: Mapping[Split, str] = {"test": "reported", "validation": "chosen by"}
_KINDS = ("sweep", "method", "student", "route")
_COUNTED = ("parameters", "size_bytes", "macs")
_MAX_POINTS = 1_500
_NARROW = {"height": 420, "margin": {"l": 48, "r": 8, "t": 34, "b": 48}}
_TEACHER_LINE = {
    "type": "line",
    "xref": "paper",
    "x0": 0,
    "x1": 1,
    "line": {"color": TEACHER_COLOUR, "width": 1.5, "dash": "dot"},
    "layer": "below",
}


@dataclass(frozen=True)
class TradeoffFigure:
    """The scatter with the data of its switches, and how many configurations it leaves out.

    Attributes:
        outside: points that are so much worse than the others on test data that the axis leaves them out at first.
    """

    figure: dict[str, Any]
    shown: int
    total: int
    outside: int = 0


def tradeoff_figure(data: TradeoffData) -> TradeoffFigure | None:
    """A point per configuration, winners large with 95% intervals; None without results."""
    if not data.configurations:
        return None
    large = set(data.winners)
    chosen = _thinned(data.winners, [each for front in data.fronts.values() for each in front])
    others = _thinned([each for each in data.configurations if each not in large], [])
    spreads = {axis: Spread(data.winners, axis, data.style) for axis in AXES}
    traces: list[dict[str, Any]] = []
    for is_large, group in ((False, others), (True, chosen)):
        parts = grouped(group, lambda each: (each.sweep, each.method, each.student, configuration_route(each))).values()
        traces += [_point_trace(points, data, spreads, large=is_large) for points in parts]
    traces += [_front_trace(axis, front, spreads[axis]) for axis, front in data.fronts.items()]
    traces += [_teacher_trace(teacher, data.metric) for teacher in data.teachers]
    switch: dict[str, Any] = {
        "axes": {axis: _axis_switch(axis, traces) for axis in AXES},
        "scores": {split: _score_switch(split, traces, data) for split in _SPLITS},
        "kinds": {kind: [trace[kind] for trace in traces] for kind in _KINDS},
        "colours": _colour_switch(traces, data),
        "links": [trace.get("links") for trace in traces],
        "fronts": [trace["front"] for trace in traces],
        "line": _TEACHER_LINE,
    }
    figure = plain_figure([trace["trace"] for trace in traces], _layout(data.metric))
    drawn = [*chosen, *others]
    span = switch["scores"]["test"]["range"]
    worst = span[0 if data.metric.direction == "max" else 1] if span else data.metric.worst
    outside = sum(data.metric.better(worst, each.test.mean) for each in drawn)
    return TradeoffFigure(
        {"figure": figure, "narrow": _NARROW, "switch": switch}, len(drawn), len(data.configurations), outside
    )


def _axis_switch(axis: str, traces: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the figure shows when this size axis is chosen."""
    return {
        "title": AXES[axis],
        "tickformat": "~s" if axis in _COUNTED else "~g",
        "x": [trace["x"][axis] for trace in traces],
        "spread": [trace.get("spread", trace["x"])[axis] for trace in traces],
    }


def _colour_switch(traces: Sequence[dict[str, Any]], data: TradeoffData) -> dict[str, Any]:
    """The colour of each trace's points by what a user chooses; of a trace without a route, such as a teacher's, None."""
    of_routes = route_colours(data.configurations)
    return {
        "style": [trace["trace"]["marker"]["color"] if trace["route"] else None for trace in traces],
        "route": [of_routes.get(trace["route"]) for trace in traces],
    }


def _score_switch(split: Split, traces: Sequence[dict[str, Any]], data: TradeoffData) -> dict[str, Any]:
    """What the figure shows when the metric on this split is chosen."""
    return {
        "title": _axis_title(split, data.metric),
        "range": without_outliers([value for trace in traces for value in trace["y"][split]], data.metric),
        "y": [trace["y"][split] for trace in traces],
        "errors": [trace["errors"][split] for trace in traces],
        "lines": [teacher.value(data.metric.column(split)) for teacher in data.teachers],
    }


def _axis_title(split: Split, metric: Metric) -> str:
    better = "" if metric.direction == "max" else ", lower is better"
    return f"{split.capitalize()} {metric.label} ({_SPLITS[split]}{better})"


def _layout(metric: Metric) -> dict[str, Any]:
    return {
        "height": 560,
        "margin": {"l": 64, "r": 16, "t": 34, "b": 56},
        "hovermode": "closest",
        "xaxis": {"type": "log", "title": {"text": AXES["parameters"]}},
        "yaxis": {"tickformat": tick_format(metric), "title": {"text": _axis_title("test", metric)}},
        "showlegend": False,
    }


def _thinned(found: Sequence[Configuration], keep: Sequence[Configuration]) -> list[Configuration]:
    """At most `_MAX_POINTS` configurations: those to keep, and of the rest an even choice from the best to the worst."""
    if len(found) <= _MAX_POINTS:
        return list(found)
    kept = list(dict.fromkeys(keep))[:_MAX_POINTS]
    known = set(kept)
    rest = sorted((each for each in found if each not in known), key=lambda each: (-each.quality, each.key))
    picks = np.linspace(0, len(rest) - 1, _MAX_POINTS - len(kept)).astype(int)
    return kept + [rest[pick] for pick in picks]


def _point_trace(
    points: Sequence[Configuration], data: TradeoffData, spreads: Mapping[str, Spread], *, large: bool
) -> dict[str, Any]:
    """The points of one sweep, method and student label."""
    first = points[0]
    errors = {split: [each.score(split).half_width for each in points] if large else None for split in _SPLITS}
    ys = {split: [_known(each.score(split).mean) for each in points] for split in _SPLITS}
    xs = {axis: [axis_value(each, axis) for each in points] for axis in AXES}
    spread = {axis: [spreads[axis](each) for each in points] for axis in AXES}
    style: PlotStyle = data.style
    colour = style.colours[style.group(first)]
    links = [data.addresses.get(each.key) for each in points]
    symbol = style.symbol(style.group(first), first.student)
    trace = {
        "x": xs["parameters"],
        "y": ys["test"],
        "mode": "markers",
        "name": escaped(f"{first.method}, {first.student}"),
        "marker": {
            "color": colour,
            "symbol": symbol,
            "size": 12 if large else 6,
            **({"line": {"width": 2.2}} if large and "open" in symbol else {}),
        },
        "opacity": 0.95 if large else 0.4,
        "customdata": [_tooltip(each) for each in points],
        "hovertemplate": "%{customdata}<extra></extra>",
    }
    if large:
        trace["error_y"] = {"array": errors["test"], "color": colour, "thickness": 1.2, "width": 3}
    return {
        "trace": trace,
        "x": xs,
        "spread": spread,
        "y": ys,
        "errors": errors,
        "sweep": first.sweep,
        "method": first.method,
        "student": first.student,
        "route": configuration_route(first),
        "links": links if any(links) else None,
        "front": None,
    }


def _front_trace(axis: str, front: Sequence[Configuration], spread: Spread) -> dict[str, Any]:
    ys = {split: [each.score(split).mean for each in front] for split in _SPLITS}
    xs = [axis_value(each, axis) for each in front]
    spread_xs = [spread(each) for each in front]
    trace = {
        "x": xs,
        "y": ys["test"],
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
        "errors": dict.fromkeys(_SPLITS),
        **dict.fromkeys(_KINDS),
        "front": axis,
    }


def _teacher_trace(teacher: TeacherFacts, metric: Metric) -> dict[str, Any]:
    xs: dict[str, list[float | None]] = {
        "parameters": [teacher.parameters],
        "size_bytes": [teacher.size_bytes],
        "macs": [teacher.macs],
        "latency_ms": [teacher.latency_ms],
        "train_hours": [teacher.train_seconds / 3600 or None],
    }
    ys = {split: [teacher.value(metric.column(split))] for split in _SPLITS}
    scores = [f"{split} {score(ys[split][0], metric, exact=True)}" for split in _SPLITS]
    lines = [
        f"<b>teacher {escaped(teacher.name)}</b> ({escaped(teacher.model)})",
        f"{escaped(metric.label)}: {', '.join(scores)}",
        f"{whole(teacher.parameters)} parameters, {size(teacher.size_bytes)}, {short(teacher.macs)} MACs, "
        f"{milliseconds(teacher.latency_ms)}",
    ]
    trace = {
        "x": xs["parameters"],
        "y": ys["test"],
        "mode": "markers+text",
        "name": escaped(f"teacher {teacher.name}"),
        "text": [escaped(teacher.name)],
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
        "errors": dict.fromkeys(_SPLITS),
        **dict.fromkeys(_KINDS),
        "front": None,
    }


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _tooltip(each: Configuration) -> str:
    def with_interval(name: str, estimate: Estimate) -> str:
        spread = "" if estimate.half_width is None else f" ± {difference(estimate.half_width, each.metric, exact=True)}"
        return f"{name} {score(estimate.mean, each.metric, exact=True)}{spread}"

    seeds = f"n = {each.test.n} " + ("fresh seeds" if each.confirmed else "seed" if each.test.n == 1 else "seeds")
    scores = with_interval("test", each.test) + (f", {with_interval('validation', each.validation)}" if each.judged else "")
    lines = [
        f"<b>{escaped(each.method)}</b> on {escaped(each.choice)}" + (f", sweep {escaped(each.sweep)}" if each.sweep else ""),
        f"{escaped(each.metric.label)}: {scores}, {seeds}",
        *([f"<b>collapsed</b> with {each.num_collapsed} of {each.test.n} seeds"] if each.num_collapsed else []),
        *([f"test {split}"] if (split := of_test_split(each)) else []),
        f"{whole(each.median('parameters'))} parameters, {size(each.median('size_bytes'))}, {short(each.median('macs'))} MACs, "
        f"{milliseconds(each.median('latency_ms'))}",
        *(f"{escaped(name)}: {escaped(shortened(value_text(value)))}" for name, value in sorted(each.hyperparameters.items())),
        f"trial {escaped(each.key)}, {duration(each.median('train_seconds'))}",
    ]
    return "<br>".join(lines)
