"""The figure as a PNG, for papers and READMEs: the metric against each size."""

import io
import math
import warnings
from collections.abc import Sequence, Set
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from stillhouse.report.axes import AXES, Spread, without_outliers
from stillhouse.report.configurations import Configuration, grouped
from stillhouse.report.formatting import percent, short
from stillhouse.report.plot_style import FRONT_COLOUR, TEACHER_COLOUR, PlotStyle
from stillhouse.report.report_data import TradeoffData

# An axis shorter than this shows fewer than three powers of ten, too few to read a size off.
_NARROW = 300.0
_MAX_HANDLES = 60
_INK = "#1c2530"


def tradeoff_png(data: TradeoffData) -> bytes:
    """The metric on the test split against each size, winners of every method and student with 95% intervals, as a PNG."""
    axes = [axis for axis in AXES if axis != "train_hours" and any((each.median(axis) or 0) > 0 for each in data.winners)] or [
        "parameters"
    ]
    rows, columns = (1, len(axes)) if len(axes) < 3 else (2, 2)
    figure = Figure(figsize=(5.2 * columns + 2.4, 4.0 * rows + 0.5), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel().tolist()
    for panel, axis in zip(panels, axes, strict=False):
        _draw_panel(panel, axis, data)
    for panel in panels[len(axes) :]:
        panel.set_visible(False)
    if handles := _legend_handles(data):
        figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)
    figure.suptitle(_literal(f"{data.name}: {data.metric.label} against size"), fontsize=13)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A name may use letters that the bundled font lacks; they show as boxes.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
        figure.savefig(buffer, format="png", metadata={"Software": "stillhouse"})
    return buffer.getvalue()


def _draw_panel(panel: Axes, axis: str, data: TradeoffData) -> None:
    """One panel: the metric against one size."""
    spread = Spread(data.winners, axis, data.style)
    large = set(data.winners)
    groups = grouped(data.configurations, lambda each: (data.style.group(each), each.student))
    for (name, student), group in groups.items():
        _draw_points(panel, [each for each in group if each.median(axis)], large, spread, data.style, name, student)
    front = data.fronts[axis]
    panel.plot(
        [spread(each) or math.nan for each in front],
        [each.test.mean for each in front],
        linestyle="--",
        color=FRONT_COLOUR,
        linewidth=1.5,
        zorder=0.5,
    )
    _draw_teachers(panel, axis, data)
    _label_axes(panel, axis, data)
    if not data.configurations:
        panel.text(0.5, 0.5, "no finished trials", transform=panel.transAxes, ha="center", va="center", color="#5b6675")


def _draw_points(
    panel: Axes,
    group: Sequence[Configuration],
    large: Set[Configuration],
    spread: Spread,
    style: PlotStyle,
    name: str,
    student: str,
) -> None:
    """The configurations of one method (or sweep) and student: winners large with their intervals, the others faint."""
    colour, marker, fill = style.colours[name], style.shapes[student][1], style.fill_style(name)
    faint = [each for each in group if each not in large]
    panel.plot(
        [spread(each) or math.nan for each in faint],
        [each.test.mean for each in faint],
        linestyle="none",
        marker=marker,
        markersize=3.5,
        fillstyle=fill,
        color=colour,
        alpha=0.35,
    )
    bold = [each for each in group if each in large]
    panel.errorbar(
        [spread(each) or math.nan for each in bold],
        [each.test.mean for each in bold],
        yerr=[each.test.half_width or 0.0 for each in bold],
        linestyle="none",
        marker=marker,
        markersize=7,
        fillstyle=fill,
        color=colour,
        markeredgecolor=_INK if fill == "full" else colour,
        markeredgewidth=0.6 if fill == "full" else 1.4,
        elinewidth=1,
        capsize=2,
    )


def _draw_teachers(panel: Axes, axis: str, data: TradeoffData) -> None:
    for teacher in data.teachers:
        place, reached = getattr(teacher, axis), teacher.value(data.metric.column("test"))
        if place and reached is not None:
            panel.plot([place], [reached], marker="*", markersize=15, color=TEACHER_COLOUR, markeredgecolor=_INK)
            panel.axhline(reached, color=TEACHER_COLOUR, linewidth=1, linestyle=":", zorder=0)


def _label_axes(panel: Axes, axis: str, data: TradeoffData) -> None:
    """Ranges, scales, labels and grid."""
    metric = data.metric
    teachers = [teacher.value(metric.column("test")) for teacher in data.teachers]
    if span := without_outliers([each.test.mean for each in data.configurations] + teachers, metric):
        panel.set_ylim(*span)
    panel.set_xscale("log")
    panel.set_xlabel(AXES[axis])
    panel.set_ylabel(_literal(f"Test {metric.label}" + ("" if metric.direction == "max" else " (lower is better)")))
    low, high = panel.get_xlim()
    if high < _NARROW * low:
        panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    panel.xaxis.set_minor_formatter(NullFormatter())
    if metric.percent:
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
    panel.grid(visible=True, color="#e3e7ec", linewidth=0.7)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _legend_handles(data: TradeoffData) -> list[Line2D]:
    style = data.style
    handles = [
        _marker("o", name, color=style.colours[name], fillstyle=style.fill_style(name))
        for name in style.groups(data.configurations)
    ]
    handles += [
        _marker(style.shapes[student][1], student, color=_INK, fillstyle="none")
        for student in dict.fromkeys(each.student for each in data.configurations)
    ]
    handles += [_marker("*", f"teacher {teacher.name}", markersize=11, color=TEACHER_COLOUR) for teacher in data.teachers]
    if any(data.fronts.values()):
        handles.append(Line2D([], [], linestyle="--", color=FRONT_COLOUR, label="front (validation)"))
    return handles[:_MAX_HANDLES]


def _marker(marker: str, label: str, **look: Any) -> Line2D:
    return Line2D([], [], linestyle="none", marker=marker, label=_literal(label), **look)


def _literal(text: str) -> str:
    """`text` so that matplotlib shows every letter: no mathematics between dollars, no label hidden by an underscore."""
    return " " * text.startswith("_") + text.replace("$", r"\$")
