"""The tables of the page: gains as a heat map, trials, reasons."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from stillhouse.report import formatting as wording
from stillhouse.report.configurations import choice_labels, grouped, student_key
from stillhouse.report.estimates import mean_with_interval
from stillhouse.report.gains import Gain
from stillhouse.report.pareto import pareto_front
from stillhouse.spec.records import SweepFacts, TrialRecord

MAX_ROWS = 1_000
MAX_REASONS = 100


def heat(facts: SweepFacts, records: Sequence[TrialRecord], gained: Sequence[Gain]) -> dict[str, Any]:
    """The gains as a table whose cells are coloured by their size."""
    with_value = [gain.difference.mean for gain in gained if gain.difference is not None]
    if not gained:
        return {"rows": [], "words": f"No method finished beside {facts.baseline}, so there is no gain to show."}
    columns = _heat_columns(records, gained)
    # One method that failed badly would leave all others without colour.
    largest = float(np.quantile(np.abs(with_value), 0.9)) if with_value else 0.0
    largest = largest or 1.0
    by_place = {(gain.method, gain.column): gain for gain in gained}
    rows = []
    for method, group in sorted(grouped(gained, lambda gain: gain.method).items()):
        cells = [_heat_cell(by_place.get((method, column["label"])), largest) for column in columns]
        means = [gain.difference.mean for gain in group if gain.difference is not None]
        if len(columns) > 1:
            overall = Gain(
                method=method, column="", difference=mean_with_interval(means) if means else None, over="students", considered=1
            )
            cell = _heat_cell(overall, largest)
            cells.append({**cell, "look": f"{cell['look']} all"})
        rows.append({"method": method, "cells": cells})
    if len(columns) > 1:
        columns.append({"label": "all students", "size": "mean", "all": True})
    single = sum(gain.difference is not None and gain.difference.half_width is None for gain in gained)
    words = (
        f"Percentage points of test accuracy over {facts.baseline} on the same student, each side the winner by validation "
        "accuracy. ± is the 95% interval, n the seeds that both sides share; bold where the interval leaves out zero. "
        "Click a heading to sort. "
    )
    if with_value and single == len(with_value):
        words += "Here every gain rests on a single seed and has no interval: read no order into it."
    elif single:
        words += f"{wording.counted(single, 'gain')} rest on a single seed."
    return {"rows": rows, "columns": columns, "words": words}


def _heat_columns(records: Sequence[TrialRecord], gained: Sequence[Gain]) -> list[dict[str, Any]]:
    """The students, smallest first, with their sizes."""
    wanted = {gain.column for gain in gained}
    labels = choice_labels(records)
    sizes: dict[str, list[float]] = {column: [] for column in wanted}
    for record in records:
        parameters = record.metrics.get("parameters", math.nan)
        for column in {labels[student_key(record.trial.student)], record.trial.student.name} & wanted:
            if math.isfinite(parameters):
                sizes[column].append(parameters)
    ordered = sorted(wanted, key=lambda column: (min(sizes[column], default=math.inf), column))
    return [{"label": column, "size": _span(sizes[column]), "all": False} for column in ordered]


def _span(sizes: Sequence[float]) -> str:
    if not sizes:
        return ""
    low, high = wording.short(min(sizes)), wording.short(max(sizes))
    return low if low == high else f"{low} to {high}"


def _heat_cell(gain: Gain | None, largest: float) -> dict[str, Any]:
    if gain is None:
        return {"number": "", "value": None, "words": "not run", "look": "none", "strength": "0"}
    if gain.difference is None:
        return {"number": "", "value": None, "words": "no baseline of this size", "look": "none", "strength": "0"}
    difference = gain.difference
    look = ("gain" if difference.mean >= 0 else "loss") + (" sure" if difference.sign() else "")
    if difference.half_width is None:
        words = {"seeds": "one seed", "students": "one student"}[gain.over]
    else:
        counted = f"n = {difference.n}" if gain.over == "seeds" else wording.counted(difference.n, "student")
        words = f"± {wording.points(difference.half_width, 1 if difference.half_width >= 0.0005 else 2)}, {counted}"
    if gain.kind == "unpaired":
        words += ", unpaired"
    return {
        "number": wording.points(difference.mean, signed=True),
        "value": f"{difference.mean:.8g}",
        "words": words,
        "look": look,
        "strength": f"{min(1.0, abs(difference.mean) / largest):.3f}",
    }


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


def trial_rows(
    facts: SweepFacts,
    records: Sequence[TrialRecord],
    table: pd.DataFrame,
    addresses: Mapping[str, str],
    *,
    most: int = MAX_ROWS,
    labels: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    objectives = {name: way for name, way in facts.objectives.items() if name in table} or None
    front = set(pareto_front(table, objectives).index.tolist())
    labels = choice_labels(records) if labels is None else labels
    order = sorted(
        range(len(records)),
        key=lambda row: (row not in front, -_number(records[row].metrics.get("validation_accuracy"), -1.0), row),
    )[:most]
    drops = table["accuracy_drop"].tolist()
    ratios = table["compression_ratio"].tolist()
    rows = [
        {
            "front": row in front,
            "cells": _trial_cells(records[row], labels, drops[row], ratios[row], addresses.get(records[row].trial.key)),
        }
        for row in order
    ]
    words = (
        f"{wording.counted(len(records), 'trial')}, the Pareto front of single trials first (marked), then by "
        "validation accuracy. "
        "Click a heading to sort. All columns are in tradeoff.csv and tradeoff.parquet."
    )
    if len(records) > MAX_ROWS:
        words += f" The page shows {MAX_ROWS:,} of {len(records):,} rows; those files have all."
    return {"rows": rows, "columns": _TABLE_COLUMNS, "words": words if records else "There are no trials."}


def _trial_cells(
    record: TrialRecord, labels: Mapping[str, str], drop: float, ratio: float, address: str | None
) -> list[dict[str, Any]]:
    trial, metrics = record.trial, record.metrics

    def number(value: float | None, text: str) -> dict[str, Any]:
        shown = value is not None and math.isfinite(value)
        return {"kind": "n", "link": None, "value": f"{value:.8g}" if shown else None, "text": text}

    def word(text: str, kind: str = "") -> dict[str, Any]:
        return {"kind": kind, "link": None, "value": None, "text": text}

    settings = ", ".join(f"{name} {wording.value_text(value)}" for name, value in sorted(trial.hyperparameters.items()))
    test, validation = metrics.get("test_accuracy"), metrics.get("validation_accuracy")
    return [
        {**word(trial.key[:16], "k"), "link": address},
        word(trial.method),
        word(labels[student_key(trial.student)]),
        word(record.status),
        word(trial.phase),
        number(trial.seed, str(trial.seed)),
        number(test, wording.percent(test, 2)),
        number(validation, wording.percent(validation, 2)),
        number(metrics.get("parameters"), wording.whole(metrics.get("parameters"))),
        number(metrics.get("size_bytes"), wording.size(metrics.get("size_bytes"))),
        number(metrics.get("macs"), wording.short(metrics.get("macs"))),
        number(metrics.get("latency_ms"), wording.milliseconds(metrics.get("latency_ms"))),
        number(drop, wording.points(drop, 2)),
        number(ratio, wording.ratio(ratio)),
        number(record.epochs_run, f"{record.epochs_run}/{trial.epochs}"),
        number(metrics.get("train_seconds"), wording.duration(metrics.get("train_seconds"))),
        word(settings[:400], "w"),
    ]


def reasons(records: Sequence[TrialRecord]) -> list[dict[str, Any]]:
    """The reasons, most frequent first, each with where it happened."""
    groups = grouped(records, lambda record: record.reason or "no reason was recorded")
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    rows = [
        {
            "count": f"{len(group):,}",
            "reason": wording.redacted(reason)[:2_000],
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


def _number(value: float | None, otherwise: float) -> float:
    return otherwise if value is None or not math.isfinite(value) else value
