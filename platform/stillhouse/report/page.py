"""The page, and all files of the report.

The page is one file that asks the network for nothing: its policy allows its own two scripts, by hash, and no other. Plotly's
library travels compressed and is unpacked by the browser, which keeps the page small enough to mail.
"""

import base64
import functools
import gzip
import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import yaml
from plotly.offline import get_plotlyjs

from stillhouse.durable import write_atomic
from stillhouse.report import sentences, wording
from stillhouse.report.answers import Answer, answers, teacher_costs
from stillhouse.report.figures import curve_figures, sensitivity_figures, themes, tradeoff_figure
from stillhouse.report.looks import Looks, baseline_first
from stillhouse.report.pareto import pareto_front
from stillhouse.report.statistics import (
    Configuration,
    Gain,
    choice_labels,
    configurations,
    gains,
    grouped,
    mean_with_interval,
    sensitivities,
    student_key,
)
from stillhouse.report.still import tradeoff_png
from stillhouse.report.table import csv_bytes, parquet_bytes, table_columns, trials_table
from stillhouse.spec.budget import Budget
from stillhouse.spec.records import SweepFacts, TrialRecord

_TEMPLATES = Path(__file__).parent / "templates"
_MOST_ROWS = 1_000
_MOST_REASONS = 100
_SHORT_AXES = {
    "parameters": "parameters",
    "size_bytes": "bytes",
    "macs": "MACs",
    "latency_ms": "latency",
    "train_hours": "training time",
}


@dataclass(frozen=True)
class ReportFiles:
    """Where the report lies, and what it answered."""

    page: Path
    table: Path
    figure: Path
    csv: Path
    best: tuple[dict[str, Any], ...] = ()


def write_report(
    facts: SweepFacts, records: Sequence[TrialRecord], folder: Path, budgets: Sequence[Budget] = ()
) -> ReportFiles:
    """Writes `report.html`, `tradeoff.parquet`, `tradeoff.csv` and `tradeoff.png` into `folder`, each whole or not at all.

    Raises:
        OSError: the disk is full or the folder is not writable; what lay there before is as it was.
    """
    table = trials_table(facts, records)
    found = configurations(records)
    answered = answers(facts, found, budgets)
    still = tradeoff_png(facts, records, found)
    about = {"sweep": facts.name, "dataset": facts.dataset, "command": facts.command, "started": facts.started}
    files = ReportFiles(
        page=folder / "report.html",
        table=folder / "tradeoff.parquet",
        figure=folder / "tradeoff.png",
        csv=folder / "tradeoff.csv",
        best=tuple(answer.to_json() for answer in answered),
    )
    parquet = parquet_bytes(table, table_columns(facts, records), wording.redacted_tree(json.loads(_json(about))))
    page = render_page(facts, records, table, found, answered, still)
    for path, payload in (
        (files.table, parquet),
        (files.csv, csv_bytes(table)),
        (files.figure, still),
        (files.page, page.encode()),
    ):
        write_atomic(path, payload)
    return files


def render_page(
    facts: SweepFacts,
    records: Sequence[TrialRecord],
    table: pd.DataFrame,
    found: Sequence[Configuration],
    answered: Sequence[Answer],
    still: bytes,
) -> str:
    """The page as HTML."""
    gained = gains(found, facts.baseline)
    costs = teacher_costs(facts, records)
    looks = Looks.of(facts, records)
    tradeoff = tradeoff_figure(facts, records, found)
    curves = curve_figures(facts, records, found) if tradeoff else {}
    sensitivity = sensitivities(records)
    script = (_TEMPLATES / "page.js").read_text(encoding="utf-8")
    figures = {
        "themes": themes(),
        "tradeoff": tradeoff.figure if tradeoff else None,
        "curves": curves,
        "sensitivity": sensitivity_figures(facts, records, sensitivity) if tradeoff else {},
    }
    alternative = _alternative(facts, answered, len(found))
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            facts=facts,
            subtitle=_subtitle(facts, records),
            lead=[wording.redacted(sentence) for sentence in sentences.lead(facts, records, answered, gained)],
            cards=[_card(facts, answer) for answer in answered],
            strip=sentences.strip(facts, records, costs),
            trust=sentences.trust(facts, found, gained),
            tradeoff=tradeoff,
            tradeoff_alt=alternative,
            tradeoff_caption=_caption(tradeoff.shown, tradeoff.total) if tradeoff else "",
            still=base64.b64encode(still).decode() if tradeoff else "",
            axes=list(_SHORT_AXES.items()),
            methods=[(name, looks.colours[name]) for name in baseline_first(facts, {each.method for each in found})],
            students=[(name, looks.shapes[name][2]) for name in dict.fromkeys(each.student for each in found)],
            heat=_heat(facts, records, gained),
            curves=list(curves),
            sensitivity=sensitivity[:500],
            words_searched=any(not each.numeric for each in sensitivity),
            sensitivity_methods=list(dict.fromkeys(each.method for each in sensitivity)),
            trials=_trials(facts, records, table),
            failed=_reasons([record for record in records if record.status == "failed"]),
            failed_words="A failed trial stands alone; the other trials went on.",
            stopped=_reasons([record for record in records if record.status == "stopped"]),
            stopped_words="The scheduler stopped these on validation data; without a test accuracy they are in no comparison.",
            notes=[wording.redacted(note) for note in facts.notes[:_MOST_REASONS]]
            + ([f"and {len(facts.notes) - _MOST_REASONS:,} more notes"] if len(facts.notes) > _MOST_REASONS else []),
            costs=[
                {
                    "teacher": cost.teacher,
                    "sentences": sentences.teacher_sentences(cost),
                    "facts": sentences.teacher_facts(cost),
                }
                for cost in costs
            ],
            provenance=sentences.provenance(facts),
            spec=_spec(facts),
            figures=_script_json(figures),
            plotly=_packed_plotly()[0],
            js=script,
            css=(_TEMPLATES / "page.css").read_text(encoding="utf-8"),
            policy=_policy(script),
        )
    )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "percent": wording.percent,
        "points": wording.points,
        "short": wording.short,
        "size": wording.size,
        "milliseconds": wording.milliseconds,
        "setting": wording.value_text,
    }
    return environment


def _policy(script: str) -> str:
    """No network, and only the page's own two scripts: whatever else should get into it does not run."""
    hashes = " ".join(f"'{_script_hash(text)}'" for text in (script, _packed_plotly()[1]) if text)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; font-src data:; "
        "form-action 'none'; base-uri 'none'"
    )


def _script_hash(text: str) -> str:
    return text if text.startswith("sha256-") else f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


@functools.cache
def _packed_plotly() -> tuple[str, str]:
    """Plotly's library, gzipped in base64, and the hash that the page's policy lets it run by."""
    source = get_plotlyjs()
    packed = base64.b64encode(gzip.compress(source.encode(), mtime=0)).decode()
    return packed, _script_hash(source)


def _json(value: Any) -> str:
    return json.dumps(value, default=str)


def _script_json(value: Any) -> str:
    """JSON that can stand inside a script element: no `<` that could end it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _spec(facts: SweepFacts) -> str:
    """The spec as YAML without its secrets."""
    return yaml.safe_dump(wording.redacted_tree(json.loads(_json(facts.spec))), sort_keys=False, allow_unicode=True)


def _subtitle(facts: SweepFacts, records: Sequence[TrialRecord]) -> str:
    methods = len({record.trial.method for record in records})
    students = len({student_key(record.trial.student) for record in records})
    dataset = facts.dataset.get("name", "unnamed data")
    parts = [f"Distillation on {dataset}", wording.counted(students, "student"), wording.counted(methods, "method")]
    parts.append(wording.counted(len(records), "trial"))
    return ", ".join(parts) + (f", started {wording.moment(facts.started)}" if facts.started else "")


def _card(facts: SweepFacts, answer: Answer) -> dict[str, Any]:
    smallest = "every finished student is larger" if answer.best is None else ""
    return {
        "asked": sentences.card_title(answer),
        "best": answer.best,
        "nothing": f"No finished student fits: {smallest}." if smallest else "",
        "facts": sentences.card_facts(facts, answer),
        "state": sentences.verdict_state(answer),
        "tag": sentences.verdict_tag(answer),
        "verdict": sentences.verdict(answer) if answer.best else "",
        "settings": sentences.card_settings(answer.best) if answer.best else [],
    }


def _alternative(facts: SweepFacts, answered: Sequence[Answer], number: int) -> str:
    words = [
        f"{each.best.choice} with {each.best.method}: {wording.short(each.best.metric('parameters'))} parameters, "
        f"{wording.percent(each.best.test.mean)}"
        for each in answered
        if each.best
    ]
    teachers = [f"teacher {each.name} {wording.percent(each.test_accuracy)}" for each in facts.teachers]
    shown = f"Scatter of test accuracy against size, {wording.counted(number, 'configuration')}. "
    return shown + "; ".join([*words, *teachers])


def _caption(shown: int, total: int) -> str:
    words = (
        "A large point is the winner of a method on a student, with the mean and 95% interval over its reported seeds; a small "
        "one is another setting that finished. On the log scale the methods of one student are moved slightly apart; the exact "
        "sizes are in the hover and the table. Rings and the dashed line mark the Pareto front: chosen on validation data, so "
        "on test data a point may lie above it. The star and the dotted line are the teacher."
    )
    return (
        words if shown == total else f"{words} {shown:,} of {total:,} configurations are drawn, the front and the rest evenly."
    )


def _heat(facts: SweepFacts, records: Sequence[TrialRecord], gained: Sequence[Gain]) -> dict[str, Any]:
    """The gains as a table whose cells are coloured by their size."""
    with_value = [gain.difference.mean for gain in gained if gain.difference is not None]
    if not gained:
        return {"rows": [], "words": f"No method finished beside {facts.baseline}, so there is no gain to show."}
    columns = _heat_columns(records, gained)
    largest = max((abs(value) for value in with_value), default=0.0) or 1.0
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
        return {"number": "", "words": "not run", "look": "none", "strength": "0"}
    if gain.difference is None:
        return {"number": "", "words": "no baseline of this size", "look": "none", "strength": "0"}
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


def _trials(facts: SweepFacts, records: Sequence[TrialRecord], table: pd.DataFrame) -> dict[str, Any]:
    objectives = {name: way for name, way in facts.objectives.items() if name in table} or None
    front = set(pareto_front(table, objectives).index.tolist())
    labels = choice_labels(records)
    order = sorted(
        range(len(records)),
        key=lambda row: (row not in front, -_number(records[row].metrics.get("validation_accuracy"), -1.0), row),
    )[:_MOST_ROWS]
    drops = table["accuracy_drop"].tolist()
    ratios = table["compression_ratio"].tolist()
    rows = [{"front": row in front, "cells": _trial_cells(records[row], labels, drops[row], ratios[row])} for row in order]
    words = (
        f"{wording.counted(len(records), 'trial')}, the Pareto front of single trials first (marked), then by "
        "validation accuracy. "
        "Click a heading to sort. All columns are in tradeoff.csv and tradeoff.parquet."
    )
    if len(records) > _MOST_ROWS:
        words += f" The page shows {_MOST_ROWS:,} of {len(records):,} rows; those files have all."
    return {"rows": rows, "columns": _TABLE_COLUMNS, "words": words if records else "There are no trials."}


def _trial_cells(record: TrialRecord, labels: dict[str, str], drop: float, ratio: float) -> list[dict[str, Any]]:
    trial, metrics = record.trial, record.metrics

    def number(value: float | None, text: str) -> dict[str, Any]:
        shown = value is not None and math.isfinite(value)
        return {"kind": "n", "value": f"{value:.8g}" if shown else None, "text": text}

    def word(text: str, kind: str = "") -> dict[str, Any]:
        return {"kind": kind, "value": None, "text": text}

    settings = ", ".join(f"{name} {wording.value_text(value)}" for name, value in sorted(trial.hyperparameters.items()))
    test, validation = metrics.get("test_accuracy"), metrics.get("validation_accuracy")
    return [
        word(trial.key[:16], "k"),
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


def _reasons(records: Sequence[TrialRecord]) -> list[dict[str, Any]]:
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
        for reason, group in ordered[:_MOST_REASONS]
    ]
    if len(ordered) > _MOST_REASONS:
        rest = sum(len(group) for _, group in ordered[_MOST_REASONS:])
        words = f"{len(ordered) - _MOST_REASONS:,} more reasons, in tradeoff.csv"
        rows.append({"count": f"{rest:,}", "reason": words, "where": "", "trials": ""})
    return rows


def _number(value: float | None, otherwise: float) -> float:
    return otherwise if value is None or not math.isfinite(value) else value
