"""The interactive figures of the page, as plotly JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stillhouse.report.axes import AXES, Spread, axis_value, without_outliers
from stillhouse.report.configurations import Configuration, grouped, winners
from stillhouse.report.formatting import duration, milliseconds, percent, short, size, value_text, whole
from stillhouse.report.fronts import configuration_front
from stillhouse.report.plot_style import FRONT_COLOUR, TEACHER_COLOUR, PlotStyle
from stillhouse.report.plotly_figure import escaped, plain_figure, shortened
from stillhouse.spec.records import TeacherFacts

_ACCURACIES: Mapping[str, str] = {
    "test_accuracy": "Test accuracy (reported)",
    "validation_accuracy": "Validation accuracy (chosen by)",
}


_KINDS = ("sweep", "method", "student")


_COUNTED = ("parameters", "size_bytes", "macs")


_MAX_POINTS = 1_500


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
    figure = plain_figure([trace["trace"] for trace in traces], _TRADEOFF_LAYOUT)
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
        "name": escaped(f"{first.method}, {first.student}"),
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
        f"<b>teacher {escaped(teacher.name)}</b> ({escaped(teacher.model)})",
        f"test {percent(teacher.test_accuracy, 2)}, validation {percent(teacher.validation_accuracy, 2)}",
        f"{whole(teacher.parameters)} parameters, {size(teacher.size_bytes)}, {short(teacher.macs)} MACs, "
        f"{milliseconds(teacher.latency_ms)}",
    ]
    trace = {
        "x": xs["parameters"],
        "y": ys["test_accuracy"],
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
        f"<b>{escaped(each.method)}</b> on {escaped(each.choice)}" + (f", sweep {escaped(each.sweep)}" if each.sweep else ""),
        f"{accuracy('test')}, {accuracy('validation')}, {seeds}",
        f"{whole(each.metric('parameters'))} parameters, {size(each.metric('size_bytes'))}, {short(each.metric('macs'))} MACs, "
        f"{milliseconds(each.metric('latency_ms'))}",
        *(f"{escaped(name)}: {escaped(shortened(value_text(value)))}" for name, value in sorted(each.hyperparameters.items())),
        f"trial {escaped(each.key)}, {duration(each.metric('train_seconds'))}",
    ]
    return "<br>".join(lines)
