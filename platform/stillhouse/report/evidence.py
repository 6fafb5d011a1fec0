"""The student chosen, examined beside the control: calibration, fidelity to the teacher, single classes, mistakes.

All of it comes from the records: their numbers by the names of `SweepFacts.measures`, and their details, of which the page
draws those that it knows:

- `calibration`: for each bin of the largest probability its samples, the sum of these probabilities, the right ones;
- `class_samples` and `class_right`: for each class its test samples and how many are classified rightly;
- `confusions`: [class, predicted class, samples], most frequent first;
- `class_boxes`, `class_precision`: for each class its test boxes and the average precision, null where it has none;
- `pictures`: [`truth`, `teacher` or `student`, PNG file in base64, words for it]: what each made of the same inputs; the words
  may be missing.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from stillhouse.report.configurations import Configuration
from stillhouse.report.estimates import Estimate, difference_of_means, mean_with_interval
from stillhouse.report.late_columns import degradation_of, robustness_names
from stillhouse.report.report_data import ReportData
from stillhouse.spec.measure import Measure

_MAX_MATRIX = 12
"""Classes up to which mistakes are shown as a matrix."""
_MAX_ROWS = 15


@dataclass(frozen=True, kw_only=True)
class MeasureRow:
    """One measure of the student chosen and of the control.

    Attributes:
        difference: the student's mean less the control's, over the seeds that both have where they share some.
        verdict: whether the student is surely better or worse; None without a direction, an interval or a control.
    """

    measure: Measure
    best: Estimate
    control: Estimate | None
    difference: Estimate | None
    verdict: Literal["better", "worse"] | None


@dataclass(frozen=True, kw_only=True)
class Bin:
    """A bin of the reliability diagram: its ends, its samples, and the means of confidence and accuracy in it."""

    low: float
    high: float
    samples: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """One class: its test samples, and the accuracy of the student chosen and of the control on them."""

    name: str
    samples: int
    best: float
    control: float | None

    @property
    def difference(self) -> float | None:
        return None if self.control is None else self.best - self.control


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """Test samples of one class that are taken for another, over all reported seeds, as a share of the class."""

    actual: str
    predicted: str
    share: float


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What one network made of inputs that are the same for all.

    Attributes:
        file: a PNG file in base64.
        words: what a reader who cannot see it should know; empty for what `maker` says.
    """

    maker: str
    file: str
    words: str = ""


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What is known of the student chosen besides its metric and its size.

    Attributes:
        rows: of what the task measures.
        robustness: the metric on test images as they are, and degraded; empty where none was measured.
        classes: worst first.
        matrix: for each class the shares of each predicted class; empty where there are many classes.
        mistakes: the most frequent ones, as shares of their class.
        pictures: of the teacher, the student chosen and the control, each of one seed.
    """

    best: Configuration
    control: Configuration | None
    rows: tuple[MeasureRow, ...]
    robustness: tuple[MeasureRow, ...]
    bins: tuple[Bin, ...]
    classes: tuple[ClassRow, ...]
    matrix: tuple[tuple[str, tuple[float, ...]], ...]
    mistakes: tuple[Mistake, ...]
    pictures: tuple[Picture, ...] = ()


def examination(data: ReportData) -> Examination | None:
    """Of the student that answers the first question; None where nothing is known, as in sweeps of earlier releases."""
    answer = next((each for each in data.answers if each.best is not None), None)
    if answer is None or answer.best is None:
        return None
    best, control = answer.best, answer.control
    rows = [row for measure in data.facts.measures if (row := _row(measure, best, control)) is not None]
    robustness = _robustness(best, control)
    if not rows and not robustness and best.median("peak_memory_bytes") is None:
        return None
    names = [str(name) for name in data.facts.dataset.get("class_names") or ()]
    classes = _classes(best, control, names)
    return Examination(
        best=best,
        control=control,
        rows=tuple(rows),
        robustness=tuple(robustness),
        bins=tuple(_bins(best)),
        classes=tuple(sorted(classes, key=lambda row: (row.best, row.name))),
        matrix=tuple(_matrix(best, names)),
        mistakes=tuple(_mistakes(best, names)[:_MAX_ROWS]),
        pictures=tuple(_pictures(best, control)),
    )


def largest_loss(classes: Sequence[ClassRow]) -> ClassRow | None:
    """The class on which the student loses most against the control; None where it loses on none."""
    losing = [row for row in classes if row.difference is not None and row.difference < 0]
    return min(losing, key=lambda row: (row.difference, row.name), default=None)


def _row(measure: Measure, best: Configuration, control: Configuration | None) -> MeasureRow | None:
    mine = _by_seed(best, measure.name)
    if not mine:
        return None
    theirs = _by_seed(control, measure.name) if control is not None else {}
    difference = _difference(mine, theirs) if theirs else None
    verdict: Literal["better", "worse"] | None = None
    if difference is not None and measure.direction is not None and (sign := difference.sign()):
        verdict = "better" if (sign > 0) == (measure.direction == "max") else "worse"
    return MeasureRow(
        measure=measure,
        best=mean_with_interval(mine.values()),
        control=mean_with_interval(theirs.values()) if theirs else None,
        difference=difference,
        verdict=verdict,
    )


def _robustness(best: Configuration, control: Configuration | None) -> list[MeasureRow]:
    metric = best.metric
    degraded = {name: degradation_of(name) for name in robustness_names(best.reported)}
    labels = {metric.column("test"): "as they are", **degraded} if degraded else {}
    measures = [
        Measure(
            name=name, label=label, description=label, percent=metric.percent, digits=metric.digits, direction=metric.direction
        )
        for name, label in labels.items()
    ]
    return [row for measure in measures if (row := _row(measure, best, control)) is not None]


def _by_seed(of: Configuration, name: str) -> dict[int, float]:
    return {record.trial.seed: record.metrics[name] for record in of.reported if name in record.metrics}


def _difference(mine: dict[int, float], theirs: dict[int, float]) -> Estimate:
    if shared := sorted(mine.keys() & theirs.keys()):
        return mean_with_interval(mine[seed] - theirs[seed] for seed in shared)
    return difference_of_means(list(mine.values()), list(theirs.values()))


def _bins(of: Configuration) -> list[Bin]:
    """The bins with samples, over all reported seeds."""
    tables = [record.details["calibration"] for record in of.reported if "calibration" in record.details]
    if not tables:
        return []
    found = []
    for place, rows in enumerate(zip(*tables, strict=True)):
        samples, confidence, right = (sum(row[column] for row in rows) for column in range(3))
        if samples:
            found.append(
                Bin(
                    low=place / len(tables[0]),
                    high=(place + 1) / len(tables[0]),
                    samples=round(samples),
                    confidence=confidence / samples,
                    accuracy=right / samples,
                )
            )
    return found


def _counts(of: Configuration, name: str) -> list[int]:
    """The counts of each class, over all reported seeds; empty where there are none."""
    lists = [record.details[name] for record in of.reported if name in record.details]
    return [round(sum(each)) for each in zip(*lists, strict=True)]


def _classes(best: Configuration, control: Configuration | None, names: Sequence[str]) -> list[ClassRow]:
    if any("class_precision" in record.details for record in best.reported):
        return _classes_of_boxes(best, control, names)
    samples, right = _counts(best, "class_samples"), _counts(best, "class_right")
    others: list[float | None] = [None] * len(samples)
    if control is not None:
        pairs = list(zip(_counts(control, "class_samples"), _counts(control, "class_right"), strict=True))
        others = [hits / count if count else None for count, hits in pairs] or others
    seeds = sum("class_samples" in record.details for record in best.reported)
    return [
        ClassRow(name=_name(place, names), samples=count // seeds, best=hits / count, control=other)
        for place, (count, hits, other) in enumerate(zip(samples, right, others, strict=True))
        if count
    ]


def _classes_of_boxes(best: Configuration, control: Configuration | None, names: Sequence[str]) -> list[ClassRow]:
    """The average precision of each class that has a test box, the mean over the reported seeds."""
    boxes = next(record.details["class_boxes"] for record in best.reported if "class_boxes" in record.details)
    mine, theirs = _precisions(best), [] if control is None else _precisions(control)
    return [
        ClassRow(name=_name(place, names), samples=round(count), best=value, control=other)
        for place, (count, value, other) in enumerate(itertools.zip_longest(boxes, mine, theirs))
        if count and value is not None
    ]


def _precisions(of: Configuration) -> list[float | None]:
    lists = [record.details["class_precision"] for record in of.reported if "class_precision" in record.details]
    known = ([value for value in each if value is not None] for each in zip(*lists, strict=False))
    return [sum(each) / len(each) if each else None for each in known]


def _mistakes(of: Configuration, names: Sequence[str]) -> list[Mistake]:
    counts: Counter[tuple[int, int]] = Counter()
    for record in of.reported:
        for actual, predicted, samples in record.details.get("confusions", ()):
            counts[actual, predicted] += samples
    samples = _counts(of, "class_samples")
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [
        Mistake(actual=_name(actual, names), predicted=_name(predicted, names), share=count / samples[actual])
        for (actual, predicted), count in ordered
    ]


def _matrix(of: Configuration, names: Sequence[str]) -> list[tuple[str, tuple[float, ...]]]:
    samples, right = _counts(of, "class_samples"), _counts(of, "class_right")
    if not 1 < len(samples) <= _MAX_MATRIX:
        return []
    shares = {(each.actual, each.predicted): each.share for each in _mistakes(of, names)}
    labels = [_name(place, names) for place in range(len(samples))]
    return [
        (
            actual,
            tuple(
                (right[place] / samples[place] if predicted == actual else shares.get((actual, predicted), 0.0))
                if samples[place]
                else 0.0
                for predicted in labels
            ),
        )
        for place, actual in enumerate(labels)
    ]


def _pictures(best: Configuration, control: Configuration | None) -> Iterator[Picture]:
    """The teacher's from the first student that was compared with one, then each student's."""
    drawn = [(each.method, _drawings(each)) for each in (best, control) if each is not None]
    for what, maker in (("truth", "the data"), ("teacher", "the teacher")):
        if (shared := next((found[what] for _, found in drawn if what in found), None)) is not None:
            yield Picture(maker=maker, file=shared[0], words=shared[1])
    for method, found in drawn:
        if "student" in found:
            yield Picture(maker=method, file=found["student"][0], words=found["student"][1])


def _drawings(of: Configuration) -> dict[str, tuple[str, str]]:
    """The pictures of its first reported seed that has some, by what made them."""
    for record in of.reported:
        if pictures := record.details.get("pictures"):
            return {str(what): (str(file), str(words[0]) if words else "") for what, file, *words in pictures}
    return {}


def _name(place: int, names: Sequence[str]) -> str:
    return names[place] if place < len(names) else str(place)


def shown(row: MeasureRow, which: Literal["best", "control", "difference"]) -> dict[str, Any]:
    """One cell of the table of measures: number, spread, look."""
    estimate = {"best": row.best, "control": row.control, "difference": row.difference}[which]
    if estimate is None:
        return {"number": "", "spread": "", "look": "none"}
    form = row.measure.format_difference if which == "difference" else row.measure.format
    spread = "" if estimate.half_width is None else f"± {row.measure.format_difference(estimate.half_width).lstrip('+')}"
    look = {"better": "gain sure", "worse": "loss sure", None: ""}[row.verdict] if which == "difference" else ""
    return {"number": form(estimate.mean), "spread": spread, "look": look}
