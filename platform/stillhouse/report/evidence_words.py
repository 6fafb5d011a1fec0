"""The examination of the student chosen, as its part of the page shows it."""

from typing import Any, Literal

from stillhouse.report import formatting as wording
from stillhouse.report.deployed_cost import deployed
from stillhouse.report.evidence import Bin, Examination, MeasureRow, examination, largest_loss, shown
from stillhouse.report.report_data import ReportData

_MAX_CLASSES = 15
_CELLS: tuple[Literal["best", "control", "difference"], ...] = ("best", "control", "difference")


def examined(data: ReportData) -> dict[str, Any] | None:
    """What the template shows; None where nothing is known."""
    found = examination(data)
    if found is None:
        return None
    best, control = found.best, found.control
    cells = _CELLS if control is not None else _CELLS[:1]
    return {
        "student": best.method,
        "control": None if control is None else control.method,
        "words": _words(found),
        "rows": _cells(found.rows, cells),
        "cost": deployed(best, data.facts.latency_place),
        "robustness": _cells(found.robustness, cells),
        "robustness_words": _robustness_words(found),
        "bins": [_drawn(each) for each in found.bins],
        "reliability_alt": _alternative(found.bins),
        "reliability_words": _reliability(found.bins),
        "classes": found.classes[:_MAX_CLASSES],
        "class_words": _class_words(found),
        "class_columns": ("Samples", "Accuracy") if _is_of_classes(found) else ("Boxes", "AP"),
        "matrix": found.matrix,
        "mistakes": found.mistakes,
        "mistake_words": _mistake_words(found),
        "pictures": [
            (each.maker, each.file, each.words or f"What {each.maker} makes of the inputs shown") for each in found.pictures
        ],
    }


def _cells(
    rows: tuple[MeasureRow, ...], cells: tuple[Literal["best", "control", "difference"], ...]
) -> list[tuple[str, list[dict[str, Any]]]]:
    return [(row.measure.label, [shown(row, which) for which in cells]) for row in rows]


def _robustness_words(found: Examination) -> str:
    if not found.robustness:
        return ""
    metric, clean, *degraded = found.best.metric, *found.robustness
    worst = min(degraded, key=lambda row: metric.sign * row.best.mean)
    lost = metric.gain(clean.best.mean, worst.best.mean)
    words = f"Test {metric.label} on the same images with fixed noise, blur, and what JPEG loses at quality 25. "
    words += f"It loses most by {worst.measure.label}: {wording.difference(lost, metric)}{wording.unit(metric)}"
    if worst.control is not None and clean.control is not None:
        others = metric.gain(clean.control.mean, worst.control.mean)
        words += f", the control {wording.difference(others, metric)}{wording.unit(metric)}"
    return words + "."


def _words(found: Examination) -> str:
    words = (
        f"{found.best.choice} with {found.best.method}, which validation data choose, on the test split; the mean over its "
        "reported seeds, ± the 95% interval. "
    )
    if found.control is not None:
        words += (
            f"Beside it {found.control.method} on the same student; a difference is coloured where its interval does not "
            "contain zero. "
        )
    if any(row.measure.of_teacher for row in found.rows):
        words += (
            "A student that agrees with its teacher more than the control does has taken over something of it, mistakes "
            "included. "
        )
    return words + "Nothing was chosen by these numbers."


def _drawn(each: Bin) -> dict[str, Any]:
    title = (
        f"{wording.counted(each.samples, 'answer')} between {100 * each.low:.0f} and {100 * each.high:.0f} % sure: "
        f"{100 * each.accuracy:.1f} % are right"
    )
    return {"low": each.low, "high": each.high, "accuracy": each.accuracy, "title": title}


def _alternative(bins: tuple[Bin, ...]) -> str:
    words = [f"{100 * each.confidence:.0f} % sure, {100 * each.accuracy:.0f} % right" for each in bins]
    return "Reliability diagram. " + "; ".join(words)


def _reliability(bins: tuple[Bin, ...]) -> str:
    if not bins:
        return ""
    samples = sum(each.samples for each in bins)
    sure = sum(each.confidence * each.samples for each in bins) / samples
    right = sum(each.accuracy * each.samples for each in bins) / samples
    side = "too sure of itself" if sure > right else "less sure than it could be"
    words = f"On average it is {100 * sure:.1f} % sure and {100 * right:.1f} % right, so it is {side}. "
    return words + "Bars on the dashed line would be right as often as the student expects."


def _is_of_classes(found: Examination) -> bool:
    """Whether rows of classes are shares of samples, not precisions of boxes."""
    return any("class_samples" in record.details for record in found.best.reported)


def _class_words(found: Examination) -> str:
    if not found.classes:
        return ""
    worst = found.classes[0]
    words = f"The worst class is {worst.name} with {100 * worst.best:.1f} %."
    lost = largest_loss(found.classes)
    if lost is not None and lost.difference is not None:
        words += f" Against the control it loses most on {lost.name}, {100 * -lost.difference:.1f} points."
    elif found.control is not None and any(row.control is not None for row in found.classes):
        words += " It loses on no class against the control."
    if len(found.classes) > _MAX_CLASSES:
        words += f" The {_MAX_CLASSES} worst of {len(found.classes)} classes:"
    return words


def _mistake_words(found: Examination) -> str:
    if not found.mistakes:
        return "It makes no mistake on the test split."
    first = found.mistakes[0]
    words = f"Most often {first.actual} is taken for {first.predicted}: {100 * first.share:.1f} % of the class."
    return words + (" Rows are classes, columns what they are taken for, in percent." if found.matrix else "")
