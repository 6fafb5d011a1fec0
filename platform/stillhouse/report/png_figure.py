"""The still figure, for papers and read-mes: accuracy against each size as one PNG."""

import io
import math
import warnings
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from stillhouse.report.axes import AXES, Spread, without_outliers
from stillhouse.report.configurations import Configuration, grouped, winners
from stillhouse.report.formatting import percent, short
from stillhouse.report.fronts import configuration_front
from stillhouse.report.plot_style import FRONT_COLOUR, TEACHER_COLOUR, PlotStyle
from stillhouse.spec.records import TeacherFacts

# An axis shorter than this shows fewer than three powers of ten, too few to read a size off.
_NARROW = 300.0


def tradeoff_png(name: str, found: Sequence[Configuration], teachers: Sequence[TeacherFacts], looks: PlotStyle) -> bytes:
    """Test accuracy against each size, winners of every method and student with their 95% intervals, as a PNG."""
    best = winners(found)
    axes_with_data = [
        axis for axis in AXES if axis != "train_hours" and any((each.metric(axis) or 0) > 0 for each in best)
    ] or ["parameters"]
    rows, columns = (1, len(axes_with_data)) if len(axes_with_data) < 3 else (2, 2)
    figure = Figure(figsize=(5.2 * columns + 2.4, 4.0 * rows + 0.5), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel().tolist()
    for panel, axis in zip(panels, axes_with_data, strict=False):
        _draw_panel(panel, axis, teachers, best, found, looks)
    for panel in panels[len(axes_with_data) :]:
        panel.set_visible(False)
    if handles := _legend_handles(teachers, found, looks):
        figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)
    figure.suptitle(_still(f"{name}: accuracy against size"), fontsize=13)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A name may use letters that the bundled font lacks; they show as boxes.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
        figure.savefig(buffer, format="png", metadata={"Software": "stillhouse"})
    return buffer.getvalue()


def _draw_panel(
    panel: Axes,
    axis: str,
    teachers: Sequence[TeacherFacts],
    best: Sequence[Configuration],
    found: Sequence[Configuration],
    looks: PlotStyle,
) -> None:
    large = set(best)
    spread = Spread(best, axis, looks)
    for (name, student), group in grouped(found, lambda each: (looks.group(each), each.student)).items():
        colour, marker, fill = looks.colours[name], looks.shapes[student][1], looks.fill_style(name)
        faint = [each for each in group if each not in large and each.metric(axis)]
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
        bold = [each for each in group if each in large and each.metric(axis)]
        panel.errorbar(
            [spread(each) or math.nan for each in bold],
            [each.test.mean for each in bold],
            yerr=[each.test.half_width or 0.0 for each in bold],
            linestyle="none",
            marker=marker,
            markersize=7,
            fillstyle=fill,
            color=colour,
            markeredgecolor="#1c2530" if fill == "full" else colour,
            markeredgewidth=0.6 if fill == "full" else 1.4,
            elinewidth=1,
            capsize=2,
        )
    front = configuration_front(best, axis)
    panel.plot(
        [spread(each) or math.nan for each in front],
        [each.test.mean for each in front],
        linestyle="--",
        color=FRONT_COLOUR,
        linewidth=1.5,
        zorder=0.5,
    )
    for teacher in teachers:
        place = getattr(teacher, axis)
        if place and teacher.test_accuracy is not None:
            panel.plot(
                [place], [teacher.test_accuracy], marker="*", markersize=15, color=TEACHER_COLOUR, markeredgecolor="#1c2530"
            )
            panel.axhline(teacher.test_accuracy, color=TEACHER_COLOUR, linewidth=1, linestyle=":", zorder=0)
    if span := without_outliers([each.test.mean for each in found] + [each.test_accuracy for each in teachers]):
        panel.set_ylim(*span)
    panel.set_xscale("log")
    panel.set_xlabel(AXES[axis])
    panel.set_ylabel("Test accuracy")
    low, high = panel.get_xlim()
    if high < _NARROW * low:
        panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
    panel.grid(visible=True, color="#e3e7ec", linewidth=0.7)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    if not found:
        panel.text(0.5, 0.5, "no finished trials", transform=panel.transAxes, ha="center", va="center", color="#5b6675")


def _legend_handles(teachers: Sequence[TeacherFacts], found: Sequence[Configuration], looks: PlotStyle) -> list[Line2D]:
    handles = [
        Line2D(
            [],
            [],
            linestyle="none",
            marker="o",
            color=looks.colours[name],
            fillstyle=looks.fill_style(name),
            label=_still(name),
        )
        for name in looks.groups(found)
    ]
    handles += [
        Line2D(
            [], [], linestyle="none", marker=looks.shapes[student][1], color="#1c2530", fillstyle="none", label=_still(student)
        )
        for student in dict.fromkeys(each.student for each in found)
    ]
    handles += [
        Line2D(
            [], [], linestyle="none", marker="*", markersize=11, color=TEACHER_COLOUR, label=_still(f"teacher {teacher.name}")
        )
        for teacher in teachers
    ]
    if found:
        handles.append(Line2D([], [], linestyle="--", color=FRONT_COLOUR, label="front (validation)"))
    return handles[:60]


def _still(text: str) -> str:
    """`text` as matplotlib shows it letter by letter: no mathematics between dollars, no hidden leading underscore."""
    return " " * text.startswith("_") + text.replace("$", r"\$")
