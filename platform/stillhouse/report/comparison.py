"""Several sweeps in one page: the best over all of them where their data are the same, and each one's own answers."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from stillhouse.report import answer_cards, provenance_words
from stillhouse.report import formatting as wording
from stillhouse.report import narrative as sentences
from stillhouse.report.answers import Answer, answers, pooled_answers
from stillhouse.report.axes import devices_held
from stillhouse.report.configurations import Configuration, choice_labels, configurations
from stillhouse.report.files import ReportFiles, write_files
from stillhouse.report.page import alternative, caption, card, chips, section_context
from stillhouse.report.page_assets import environment, shared_context
from stillhouse.report.page_tables import MAX_ROWS, trial_rows
from stillhouse.report.plot_style import PlotStyle
from stillhouse.report.plotly_figure import themes
from stillhouse.report.png_figure import tradeoff_png
from stillhouse.report.tradeoff_figure import tradeoff_figure
from stillhouse.report.trials_table import Column, table_columns, trials_table
from stillhouse.spec.records import SweepFacts, TeacherFacts, TrialRecord
from stillhouse.spec.size_bound import Budget


@dataclass(frozen=True, kw_only=True)
class Source:
    """One of the sweeps that are compared; `addresses` as `write_report` takes them."""

    facts: SweepFacts
    records: Sequence[TrialRecord]
    addresses: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.facts.name


def write_comparison(sources: Sequence[Source], folder: Path, budgets: Sequence[Budget] = ()) -> ReportFiles:
    """Writes the files that `write_report` writes, over all `sources`; the tables begin with a column `sweep`.

    `ReportFiles.best` has the answers over all sweeps, or each sweep's own where their data differ.

    Raises:
        OSError: the disk is full or the folder is not writable; what lay there before is as it was.
    """
    records = [record for source in sources for record in source.records]
    labels = choice_labels(records)
    found = {
        source.name: configurations(source.records, sweep=source.name, labels=labels, devices=devices_held(source.facts))
        for source in sources
    }
    pooled = [each for group in found.values() for each in group]
    apart = differences(sources)
    facts = {source.name: source.facts for source in sources}
    own = {source.name: answers(source.facts, found[source.name], budgets) for source in sources}
    over_all = [] if apart else pooled_answers(facts, pooled, budgets)
    teachers = _teachers(sources)
    looks = PlotStyle.of_sweeps(list(facts), records)
    still = tradeoff_png(" and ".join(facts), pooled, teachers, looks)
    best = [answer.to_json() for answer in over_all]
    for name, answered in own.items() if apart else ():
        best += [answer.to_json() | {"sweep": name} for answer in answered]
    table, columns = compared_table(sources)
    about = {"sweeps": list(facts), "datasets": {name: each.dataset for name, each in facts.items()}}
    page = _render(sources, labels, found, own, over_all, apart, looks, teachers, still)
    return write_files(folder, table, columns, about, still, page, best)


def differences(sources: Sequence[Source]) -> list[str]:
    """Why accuracies of the sweeps can not be held against each other, as sentences; none where they can."""
    data = {source.name: source.facts.dataset for source in sources}
    if len({(each.get("fingerprint") or each.get("name")) for each in data.values()}) < 2:
        return []
    ran = wording.listed([f"{name} on {each.get('name', 'unnamed data')}" for name, each in data.items()])
    return [f"These sweeps ran on different data ({ran}), so their accuracies can not be compared."]


def compared_table(sources: Sequence[Source]) -> tuple[pd.DataFrame, list[Column]]:
    """The trials of all sweeps, with `sweep` in front; a column whose types differ takes the wider one."""
    columns = {"sweep": Column("sweep", "str", "", "name of the sweep")}
    tables = []
    for source in sources:
        for column in table_columns(source.facts, source.records):
            known = columns.setdefault(column.name, column)
            if known.dtype != column.dtype:
                numbers = {known.dtype, column.dtype} == {"Int64", "float64"}
                columns[column.name] = replace(known, dtype="float64" if numbers else "str")
        table = trials_table(source.facts, source.records)
        table.insert(0, "sweep", pd.Series([source.name] * len(table), dtype="str"))
        tables.append(table)
    data = {name: pd.concat([_typed(table, column) for table in tables], ignore_index=True) for name, column in columns.items()}
    return pd.DataFrame(data), list(columns.values())


def _typed(table: pd.DataFrame, column: Column) -> "pd.Series[Any]":
    if column.name not in table:
        return pd.Series([None] * len(table), dtype="float64" if column.dtype == "float64" else column.dtype)
    values = table[column.name]
    if str(values.dtype) == column.dtype:
        return values
    if column.dtype == "float64":
        return pd.Series(values.to_numpy(dtype="float64", na_value=float("nan")))
    return pd.Series([None if pd.isna(value) else str(value) for value in values], dtype="str")


def _teachers(sources: Sequence[Source]) -> list[TeacherFacts]:
    """Each teacher once; those that share a name but not the weights are told apart by their sweep."""
    by_key = {teacher.key: (source.name, teacher) for source in reversed(sources) for teacher in source.facts.teachers}
    names = [teacher.name for _, teacher in by_key.values()]
    return [
        teacher if names.count(teacher.name) == 1 else teacher.model_copy(update={"name": f"{teacher.name} of {sweep}"})
        for sweep, teacher in reversed(by_key.values())
    ]


def _render(
    sources: Sequence[Source],
    labels: Mapping[str, str],
    found: Mapping[str, Sequence[Configuration]],
    own: Mapping[str, Sequence[Answer]],
    over_all: Sequence[Answer],
    apart: Sequence[str],
    looks: PlotStyle,
    teachers: Sequence[TeacherFacts],
    still: bytes,
) -> str:
    names = [source.name for source in sources]
    addresses = {key: address for source in sources for key, address in source.addresses.items()}
    pooled = [each for group in found.values() for each in group]
    tradeoff = tradeoff_figure(pooled, teachers, looks, addresses)
    tried = [(source.name, len(source.records)) for source in sources]
    trials = wording.counted(sum(count for _, count in tried), "trial")
    lead = sentences.compared_lead(names, over_all, apart, tried)
    words = alternative(teachers, over_all, len(pooled))
    return (
        environment()
        .get_template("comparison.html.j2")
        .render(
            title=" / ".join(names),
            subtitle=f"{wording.counted(len(sources), 'sweep')} compared, {trials}",
            lead=[wording.redacted(sentence) for sentence in lead],
            cards=[card(_facts_of(sources, answer), answer, addresses) for answer in over_all],
            rows=_rows(names, own),
            names=names,
            trust=sentences.trust(sources[0].facts, pooled, []),
            tradeoff=tradeoff,
            tradeoff_alt=words,
            tradeoff_caption=(caption(tradeoff, "of a sweep's method on a student", "sweeps") if tradeoff else ""),
            still=base64.b64encode(still).decode() if tradeoff else "",
            chips=chips(looks, pooled),
            trials=_trials(sources, labels),
            tracked=" ".join(
                dict.fromkeys(provenance_words.tracked(source.facts, source.addresses) for source in sources)
            ).strip(),
            sections=[
                section_context(source.facts, source.records, found[source.name], source.addresses) for source in sources
            ],
            **shared_context({"themes": themes(), "tradeoff": tradeoff.figure if tradeoff else None}),
        )
    )


def _tracked(sources: Sequence[Source]) -> str:
    return " ".join(dict.fromkeys(provenance_words.tracked(source.facts, source.addresses) for source in sources)).strip()


def _facts_of(sources: Sequence[Source], answer: Answer) -> SweepFacts:
    name = answer.best.sweep if answer.best else sources[0].name
    return next(source.facts for source in sources if source.name == name)


def _rows(names: Sequence[str], own: Mapping[str, Sequence[Answer]]) -> list[dict[str, Any]]:
    """One row per question, one cell per sweep: what each sweep answers by itself."""
    questions = dict.fromkeys(answer_cards.card_title(answer) for name in names for answer in own[name])
    return [
        {
            "question": question,
            "cells": [
                next((answer for answer in own[name] if answer_cards.card_title(answer) == question), None) for name in names
            ],
        }
        for question in questions
    ]


def _trials(sources: Sequence[Source], labels: Mapping[str, str]) -> dict[str, Any]:
    """The trials of all sweeps as one table, with the sweep in front."""
    most = MAX_ROWS // len(sources)
    rows = []
    columns: Sequence[tuple[str, str]] = ()
    for source in sources:
        table = trials_table(source.facts, source.records)
        shown = trial_rows(source.facts, source.records, table, source.addresses, most=most, labels=labels)
        columns = (("Sweep", ""), *shown["columns"])
        name = {"kind": "", "link": None, "value": None, "text": source.name}
        rows += [{**row, "cells": [name, *row["cells"]]} for row in shown["rows"]]
    count = sum(len(source.records) for source in sources)
    words = (
        f"{wording.counted(count, 'trial')}; of each sweep its Pareto front first (marked), then by validation accuracy. "
        "Click a heading to sort."
    )
    if len(rows) < count:
        words += f" The page shows {len(rows):,} of {count:,} rows; tradeoff.csv and tradeoff.parquet have all."
    return {"rows": rows, "columns": columns, "words": words if count else "There are no trials."}
