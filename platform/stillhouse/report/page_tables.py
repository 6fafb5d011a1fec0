"""The tables of the page: gains as a heat map, all trials, reasons of failures."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from stillhouse.report import formatting as wording
from stillhouse.report.configurations import grouped
from stillhouse.report.estimates import mean_of_estimates
from stillhouse.report.gains import Gain
from stillhouse.report.report_data import ReportData
from stillhouse.spec.metric import Metric
from stillhouse.spec.records import TrialRecord
from stillhouse.spec.secret_masking import mask_text
from stillhouse.spec.teacher_comparison import RATIO_COLUMN

MAX_ROWS = 1_000
MAX_REASONS = 100


def heat(data: ReportData) -> dict[str, Any]:
    """The gains over the baseline as a table whose cells are coloured by their size."""
    baseline = data.facts.baseline
    if not data.gains:
        return {"rows": [], "words": f"No method other than {baseline} finished, so there is no gain to show."}
    return _heat(data, data.gains, f"{baseline} on the same student")


def untrained_heat(data: ReportData) -> dict[str, Any] | None:
    """The gains over the same method with an untrained teacher; None without that control."""
    if not data.untrained_gains:
        return None
    return _heat(data, data.untrained_gains, "itself with an untrained teacher, on the same student with the same settings")


def _heat(data: ReportData, gained: Sequence[Gain], base: str) -> dict[str, Any]:
    metric = data.metric
    with_value = [gain.difference.mean for gain in gained if gain.difference is not None]
    columns = _heat_columns(data, gained)
    # One method that failed badly would leave all others without colour.
    largest = float(np.quantile(np.abs(with_value), 0.9)) if with_value else 0.0
    largest = largest or 1.0
    by_place = {(gain.method, gain.column): gain for gain in gained}
    rows = []
    for method, group in sorted(grouped(gained, lambda gain: gain.method).items()):
        cells = [_heat_cell(by_place.get((method, column["label"])), largest, metric) for column in columns]
        known = [gain.difference for gain in group if gain.difference is not None]
        if len(columns) > 1:
            overall = Gain(
                method=method,
                column="",
                difference=mean_of_estimates(known) if known else None,
                over="students",
                collapsed=sum(gain.collapsed for gain in group),
                base_collapsed=sum(gain.base_collapsed for gain in group),
            )
            cell = _heat_cell(overall, largest, metric)
            cells.append({**cell, "look": f"{cell['look']} all"})
        rows.append({"method": method, "cells": cells})
    if len(columns) > 1:
        columns.append({"label": "all students", "size": "mean", "all": True})
    single = sum(gain.difference is not None and gain.difference.half_width is None for gain in gained)
    kind = f"in percentage points of test {metric.label}" if metric.percent else f"in test {metric.label}"
    words = (
        f"By how much each method is better than {base}, {kind}; positive is better. "
        "Winners on validation data are compared. ± is the 95% interval over seeds, n the number of seeds that both have. "
        "A gain is bold where its interval does not contain zero. "
    )
    if len(columns) > 1:
        words += "Over all students, the intervals of the students are combined; there is none where a student has none. "
    words += "Click a heading to sort. "
    alone = "from a single seed" if _all_of_one_seed(gained) else "from a single seed, or from equal ones,"
    if with_value and single == len(with_value):
        words += f"Here every gain comes {alone} and has no interval, so their order may be luck."
    elif single:
        words += f"{wording.counted(single, 'gain')} {'comes' if single == 1 else 'come'} {alone.rstrip(',')}."
    return {"rows": rows, "columns": columns, "words": words}


def _all_of_one_seed(gained: Sequence[Gain]) -> bool:
    """Whether every gain without an interval compares one seed of one student."""
    alone = [gain.difference for gain in gained if gain.difference is not None and gain.difference.half_width is None]
    return all(difference.n == 1 for difference in alone)


def _heat_columns(data: ReportData, gained: Sequence[Gain]) -> list[dict[str, Any]]:
    """The students, smallest first, with their sizes."""
    wanted = {gain.column for gain in gained}
    sizes: dict[str, list[float]] = {column: [] for column in wanted}
    for record in data.records:
        parameters = record.metrics.get("parameters", math.nan)
        for column in {data.labels[record.trial.student.variant], record.trial.student.name} & wanted:
            if math.isfinite(parameters):
                sizes[column].append(parameters)
    ordered = sorted(wanted, key=lambda column: (min(sizes[column], default=math.inf), column))
    return [{"label": column, "size": _span(sizes[column]), "all": False} for column in ordered]


def _span(sizes: Sequence[float]) -> str:
    if not sizes:
        return ""
    low, high = wording.short(min(sizes)), wording.short(max(sizes))
    return low if low == high else f"{low} to {high}"


def _heat_cell(gain: Gain | None, largest: float, metric: Metric) -> dict[str, Any]:
    if gain is None:
        return {"number": "", "value": None, "words": "not run", "look": "none", "strength": "0"}
    left_out = _left_out(gain)
    if gain.difference is None:
        words = left_out or "no baseline of this size"
        return {"number": "", "value": None, "words": words, "look": "none", "strength": "0"}
    difference = gain.difference
    look = ("gain" if difference.mean >= 0 else "loss") + (" sure" if difference.sign() else "")
    counted = wording.sample(difference.n) if gain.over == "seeds" else wording.counted(difference.n, "student")
    if difference.half_width is None:
        words = wording.without_interval(difference.n) if gain.over == "seeds" else f"{counted}, no interval"
    else:
        spread = wording.difference(difference.half_width, metric)
        # An interval that rounds to zero is shown with more digits.
        if float(spread) == 0:
            spread = wording.difference(difference.half_width, metric, exact=True)
        words = f"± {spread}, {counted}"
    if gain.kind == "unpaired":
        words += ", unpaired"
    if left_out and gain.over == "students":
        words += f", without {gain.collapsed + gain.base_collapsed} that collapsed"
    return {
        "number": wording.difference(difference.mean, metric, signed=True),
        "value": f"{difference.mean:.8g}",
        "words": words,
        "look": look,
        "strength": f"{min(1.0, abs(difference.mean) / largest):.3f}",
    }


def _left_out(gain: Gain) -> str:
    """Which side collapsed, where a gain leaves students out."""
    sides = ["collapsed"] * bool(gain.collapsed) + ["baseline collapsed"] * bool(gain.base_collapsed)
    return ", ".join(sides)


_TABLE_COLUMNS: tuple[tuple[str, str], ...] = (
    ("Trial", ""),
    ("Method", ""),
    ("Student", ""),
    ("Status", ""),
    ("Phase", ""),
    ("Seed", "n"),
    ("Test", "n"),
    ("Validation", "n"),
    ("Parameters", "n"),
    ("Bytes", "n"),
    ("MACs", "n"),
    ("Latency", "n"),
    ("Drop", "n"),
    ("Compression", "n"),
    ("Epochs", "n"),
    ("Trained", "n"),
    ("Settings", ""),
)
COLUMN_WORDS = (
    "Drop is by how much the student is worse than its teacher on test data, compression is the teacher's parameters over the "
    "student's; a student without a teacher is compared with the best one of the sweep. The range after a test value is its "
    "95% interval from the size of the test split."
)


def trial_rows(data: ReportData, *, most: int = MAX_ROWS) -> dict[str, Any]:
    """The trials as rows, those of students on the Pareto front first, then the best on validation data."""
    records, metric, table = data.records, data.metric, data.table.frame
    front = {row for row, record in enumerate(records) if record.trial.key in data.front_trials}

    def place(row: int) -> tuple[bool, float, int]:
        value = records[row].metrics.get(metric.column("validation"))
        known = value is not None and math.isfinite(value)
        return row not in front, -metric.sign * value if value is not None and known else math.inf, row

    order = sorted(range(len(records)), key=place)[:most]
    drops, ratios = table[metric.drop_column].tolist(), table[RATIO_COLUMN].tolist()
    rows = [
        {
            "front": row in front,
            "collapsed": records[row].trial.key in data.collapsed_trials,
            "cells": _trial_cells(records[row], data, drops[row], ratios[row]),
        }
        for row in order
    ]
    words = (
        f"{wording.counted(len(records), 'trial')}: first the students on the Pareto front (marked; each with all its reported "
        f"seeds), then the best by validation {metric.label}. {COLUMN_WORDS} Click a heading to sort. All columns are in "
        "tradeoff.csv and tradeoff.parquet."
    )
    if data.facts.latency_place:
        words += f" Latency was measured on {data.facts.latency_place}."
    if len(records) > MAX_ROWS:
        words += f" The page shows {MAX_ROWS:,} of {len(records):,} rows; those files have all."
    return {"rows": rows, "columns": _TABLE_COLUMNS, "words": words if records else "There are no trials."}


def _trial_cells(record: TrialRecord, data: ReportData, drop: float, ratio: float) -> list[dict[str, Any]]:
    trial, metrics, metric = record.trial, record.metrics, data.metric

    def number(value: float | None, text: str) -> dict[str, Any]:
        shown = value is not None and math.isfinite(value)
        return {"kind": "n", "link": None, "value": f"{value:.8g}" if shown else None, "text": text}

    def word(text: str, kind: str = "") -> dict[str, Any]:
        return {"kind": kind, "link": None, "value": None, "text": text}

    settings = ", ".join(f"{name} {wording.value_text(value)}" for name, value in sorted(trial.hyperparameters.items()))
    test, validation = metrics.get(metric.column("test")), metrics.get(metric.column("validation"))
    return [
        {**word(trial.key[:16], "k"), "link": data.addresses.get(trial.key)},
        word(trial.method),
        word(data.labels[trial.student.variant]),
        word("collapsed" if record.trial.key in data.collapsed_trials else record.status),
        word(trial.phase),
        number(trial.seed, str(trial.seed)),
        number(test, _with_range(test, data)),
        number(validation, wording.score(validation, metric, exact=True)),
        number(metrics.get("parameters"), wording.whole(metrics.get("parameters"))),
        number(metrics.get("size_bytes"), wording.size(metrics.get("size_bytes"))),
        number(metrics.get("macs"), wording.short(metrics.get("macs"))),
        number(metrics.get("latency_ms"), wording.milliseconds(metrics.get("latency_ms"))),
        number(drop, wording.difference(drop, metric, exact=True)),
        number(ratio, wording.ratio(ratio)),
        number(record.epochs_run, f"{record.epochs_run}/{trial.epochs}"),
        number(metrics.get("train_seconds"), wording.duration(metrics.get("train_seconds"))),
        word(settings[:400], "w"),
    ]


def _with_range(test: float | None, data: ReportData) -> str:
    """A value on the test split with the interval from the size of the split."""
    text = wording.score(test, data.metric, exact=True)
    interval = data.metric.sampling_interval(test, data.facts.test_samples)
    return f"{text} ({wording.score_range(interval, data.metric)})" if interval else text


def reasons(records: Sequence[TrialRecord], reason: str | None = None) -> list[dict[str, Any]]:
    """The reasons, most frequent first, each with the methods and students of its trials.

    Args:
        reason: of all of them, instead of what each recorded.
    """
    groups = grouped(records, lambda record: reason or record.reason or "no reason was recorded")
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    rows = [
        {
            "count": f"{len(group):,}",
            "reason": mask_text(reason)[:2_000],
            "where": wording.listed(
                [
                    f"{method} on {student}" + (f" ({times})" if times > 1 else "")
                    for (method, student), times in Counter(
                        (record.trial.method, record.trial.student.name) for record in group
                    ).most_common()
                ],
                6,
            ),
            "trials": wording.listed([record.trial.key[:16] for record in group], 4),
        }
        for reason, group in ordered[:MAX_REASONS]
    ]
    if len(ordered) > MAX_REASONS:
        rest = sum(len(group) for _, group in ordered[MAX_REASONS:])
        words = f"{len(ordered) - MAX_REASONS:,} more reasons, in tradeoff.csv"
        rows.append({"count": f"{rest:,}", "reason": words, "where": "", "trials": ""})
    return rows
