"""Several sweeps in one page: the best over all of them where their data are the same, and each one's own answers."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import pandas as pd

from stillhouse.report import answer_cards, narrative, provenance_words
from stillhouse.report import formatting as wording
from stillhouse.report.answers import Answer, pooled_answers
from stillhouse.report.columns import Column
from stillhouse.report.configurations import choice_labels
from stillhouse.report.files import ReportFiles, write_files
from stillhouse.report.page import alternative, caption, card, chips, section_context
from stillhouse.report.page_assets import environment, shared_context
from stillhouse.report.page_tables import COLUMN_WORDS, MAX_ROWS, trial_rows
from stillhouse.report.plot_style import PlotStyle
from stillhouse.report.plotly_figure import themes
from stillhouse.report.png_figure import tradeoff_png
from stillhouse.report.report_data import ReportData, TradeoffData
from stillhouse.report.tradeoff_figure import tradeoff_figure
from stillhouse.report.trials_table import TrialsTable
from stillhouse.spec.metric import Metric
from stillhouse.spec.records import SweepFacts, TeacherFacts, TrialRecord
from stillhouse.spec.secret_masking import mask_text
from stillhouse.spec.size_bound import Budget

# Enough to tell a few data sets apart.
_FINGERPRINT = 12


@dataclass(frozen=True, kw_only=True)
class Source:
    """One of the sweeps to compare; `addresses` as `write_report` takes them."""

    facts: SweepFacts
    records: Sequence[TrialRecord]
    addresses: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.facts.name


@dataclass(frozen=True, kw_only=True)
class ComparisonData:
    """Several sweeps, each ready to be reported, and all of them together.

    Attributes:
        sweeps: in the order of their sources.
        apart: why their results cannot be compared, as sentences; empty where they can.
        over_all: answers over all sweeps; empty where they cannot be compared.
    """

    sweeps: tuple[ReportData, ...]
    tradeoff: TradeoffData
    apart: tuple[str, ...]
    over_all: tuple[Answer, ...]

    @property
    def metric(self) -> Metric:
        return self.sweeps[0].metric

    @property
    def names(self) -> list[str]:
        return [sweep.facts.name for sweep in self.sweeps]

    @classmethod
    def of(cls, sources: Sequence[Source], budgets: Sequence[Budget]) -> Self:
        """Computes each sweep's report and, where their results can be compared, the answers over all of them."""
        records = [record for source in sources for record in source.records]
        labels = choice_labels(records)
        sweeps = tuple(
            ReportData.of(source.facts, source.records, budgets, source.addresses, sweep=source.name, labels=labels)
            for source in sources
        )
        facts = {source.name: source.facts for source in sources}
        apart = tuple(differences(sources))
        addresses = {key: address for sweep in sweeps for key, address in sweep.addresses.items()}
        metric = sources[0].facts.metric
        found = [each for sweep in sweeps for each in sweep.tradeoff.configurations if each.metric == metric]
        tradeoff = TradeoffData.of(
            " and ".join(facts), metric, found, _teachers(sources), PlotStyle.of_sweeps(list(facts), records), addresses
        )
        over_all = () if apart else tuple(pooled_answers(facts, tradeoff.winners, budgets))
        return cls(sweeps=sweeps, tradeoff=tradeoff, apart=apart, over_all=over_all)


def write_comparison(sources: Sequence[Source], folder: Path, budgets: Sequence[Budget] = ()) -> ReportFiles:
    """Writes the files that `write_report` writes, over all `sources`; the tables begin with a column `sweep`.

    `ReportFiles.best` has the answers over all sweeps, or each sweep's own where their results cannot be compared.

    Raises:
        OSError: the disk is full or the folder is not writable; the files that were there before are unchanged.
    """
    data = ComparisonData.of(sources, budgets)
    still = tradeoff_png(data.tradeoff)
    best = [answer.to_json() for answer in data.over_all]
    for sweep in data.sweeps if data.apart else ():
        best += [answer.to_json() | {"sweep": sweep.facts.name} for answer in sweep.answers]
    datasets = {sweep.facts.name: sweep.facts.dataset for sweep in data.sweeps}
    places = {sweep.facts.name: sweep.facts.latency_place for sweep in data.sweeps}
    about = {"sweeps": data.names, "datasets": datasets, "latency_places": places}
    return write_files(folder, compared_table(data.sweeps), about, still, _render(data, still), best)


def differences(sources: Sequence[Source]) -> list[str]:
    """Why the results of the sweeps cannot be compared, as sentences; none where they can."""
    sentences = []
    data = {source.name: source.facts.dataset for source in sources}
    if len({(each.get("fingerprint") or each.get("name")) for each in data.values()}) > 1:
        ran = wording.listed([f"{name} on {label}" for name, label in zip(data, _data_labels(sources), strict=True)])
        sentences.append(f"These sweeps ran on different data ({ran}), so their results cannot be compared.")
    tests = {source.name: (source.facts.dataset.get("evaluation") or {}).get("test", "") for source in sources}
    if not sentences and len({test for test in tests.values() if test}) > 1:
        judged = wording.listed([f"{name} on {test[:8] or 'an unrecorded one'}" for name, test in tests.items()])
        sentences.append(f"These sweeps were judged on different test splits ({judged}), so their results cannot be compared.")
    if len({source.facts.metric for source in sources}) > 1:
        judged = wording.listed([f"{source.name} by {source.facts.metric.label}" for source in sources])
        first = f"the figure shows those of {sources[0].name} and of sweeps with the same metric"
        sentences.append(f"These sweeps judge their students by different metrics ({judged}); {first}.")
    return sentences


def latency_places(sources: Iterable[SweepFacts]) -> str:
    """Where the latencies of each sweep were measured, if that is not the same place for all; else nothing."""
    places = {facts.name: facts.latency_place or _unrecorded_place(facts) for facts in sources}
    if len(set(places.values())) == 1:
        return ""
    listed = wording.listed([f"those of {name} on {place}" for name, place in places.items()])
    return f"Latencies were measured on different hardware and cannot be compared: {listed}."


def _unrecorded_place(facts: SweepFacts) -> str:
    """The hardware of a sweep of the first release, which does not record the device of its trials."""
    known = [facts.environment.get(name) for name in ("processor", "gpu")]
    return f"a device of a machine with {wording.listed([str(each) for each in known if each]) or 'unknown hardware'}"


def _data_labels(sources: Sequence[Source]) -> list[str]:
    """The data set of each sweep. Different ones of the same name have the number of images and the fingerprint in addition."""
    labels = [source.facts.dataset_label for source in sources]
    known: dict[str, set[str]] = {}
    for source, label in zip(sources, labels, strict=True):
        known.setdefault(label, set()).add(str(source.facts.dataset.get("fingerprint")))
    return [
        label if len(known[label]) == 1 else f"{label}, {_content(source.facts.dataset)}"
        for source, label in zip(sources, labels, strict=True)
    ]


def _content(dataset: Mapping[str, Any]) -> str:
    images = dataset.get("train_samples")
    counted = f"{wording.counted(images, 'training image')}, " if isinstance(images, int) else ""
    return f"{counted}fingerprint {str(dataset.get('fingerprint'))[:_FINGERPRINT]}"


def compared_table(sweeps: Sequence[ReportData]) -> TrialsTable:
    """The trials of all sweeps, with `sweep` as the first column; a column whose types differ takes the wider one."""
    columns = {"sweep": Column("sweep", "str", "", "name of the sweep")}
    tables = []
    for sweep in sweeps:
        for column in sweep.table.columns:
            known = columns.setdefault(column.name, column)
            if known.dtype != column.dtype:
                numbers = {known.dtype, column.dtype} == {"Int64", "float64"}
                columns[column.name] = replace(known, dtype="float64" if numbers else "str")
        table = sweep.table.frame.copy()
        table.insert(0, "sweep", pd.Series([sweep.facts.name] * len(table), dtype="str"))
        tables.append(table)
    data = {name: pd.concat([_typed(table, column) for table in tables], ignore_index=True) for name, column in columns.items()}
    return TrialsTable(pd.DataFrame(data), tuple(columns.values()))


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
    """Each teacher once; the names of teachers with the same name but other weights get their sweep added."""
    by_key = {teacher.key: (source.name, teacher) for source in reversed(sources) for teacher in source.facts.teachers}
    names = [teacher.name for _, teacher in by_key.values()]
    return [
        teacher if names.count(teacher.name) == 1 else teacher.model_copy(update={"name": f"{teacher.name} of {sweep}"})
        for sweep, teacher in reversed(by_key.values())
    ]


def _render(data: ComparisonData, still: bytes) -> str:
    tradeoff = tradeoff_figure(data.tradeoff)
    tried = [(sweep.facts.name, len(sweep.records)) for sweep in data.sweeps]
    trials = wording.counted(sum(count for _, count in tried), "trial")
    lead = narrative.compared_lead(data.names, data.metric, data.over_all, data.apart, tried)
    places = latency_places(sweep.facts for sweep in data.sweeps)
    lead += [places] if places else []
    baseline = data.sweeps[0].facts.baseline
    return (
        environment()
        .get_template("comparison.html.j2")
        .render(
            title=" / ".join(data.names),
            subtitle=f"{wording.counted(len(data.sweeps), 'sweep')} compared, {trials}",
            about_data="" if data.apart else mask_text(narrative.about_data(data.sweeps[0].facts)),
            lead=[mask_text(sentence) for sentence in lead],
            cards=[card(answer, _baseline_of(data, answer), data.tradeoff.addresses) for answer in data.over_all],
            rows=_rows(data),
            names=data.names,
            trust=narrative.trust(data.metric, baseline, data.tradeoff.configurations, []),
            tradeoff=tradeoff,
            tradeoff_alt=alternative(data.tradeoff, data.over_all),
            tradeoff_caption=caption(tradeoff, data.metric, "of a sweep's method on a student") if tradeoff else "",
            still=base64.b64encode(still).decode() if tradeoff else "",
            chips=chips(data.tradeoff),
            trials=_trials(data),
            tracked=_tracked(data),
            sections=[section_context(sweep) for sweep in data.sweeps],
            **shared_context({"themes": themes(), "tradeoff": tradeoff.figure if tradeoff else None}, data.metric),
        )
    )


def _tracked(data: ComparisonData) -> str:
    words = (provenance_words.tracked(sweep.facts, sweep.addresses) for sweep in data.sweeps)
    return " ".join(dict.fromkeys(words)).strip()


def _baseline_of(data: ComparisonData, answer: Answer) -> str:
    """The baseline of the sweep that an answer comes from."""
    name = answer.best.sweep if answer.best else data.names[0]
    return next(sweep.facts.baseline for sweep in data.sweeps if sweep.facts.name == name)


def _rows(data: ComparisonData) -> list[dict[str, Any]]:
    """One row per question, one cell per sweep: each sweep's own answer."""
    questions = dict.fromkeys(answer_cards.card_title(answer) for sweep in data.sweeps for answer in sweep.answers)
    return [
        {
            "question": question,
            "cells": [
                next((answer for answer in sweep.answers if answer_cards.card_title(answer) == question), None)
                for sweep in data.sweeps
            ],
        }
        for question in questions
    ]


def _trials(data: ComparisonData) -> dict[str, Any]:
    """The trials of all sweeps as one table, with the sweep as the first column."""
    rows = []
    columns: Sequence[tuple[str, str]] = ()
    for sweep in data.sweeps:
        shown = trial_rows(sweep, most=MAX_ROWS // len(data.sweeps))
        columns = (("Sweep", ""), *shown["columns"])
        name = {"kind": "", "link": None, "value": None, "text": sweep.facts.name}
        rows += [{**row, "cells": [name, *row["cells"]]} for row in shown["rows"]]
    count = sum(len(sweep.records) for sweep in data.sweeps)
    words = (
        f"{wording.counted(count, 'trial')}: of each sweep first its Pareto front (marked), then the best on validation data. "
        f"{COLUMN_WORDS} Click a heading to sort."
    )
    if len(rows) < count:
        words += f" The page shows {len(rows):,} of {count:,} rows; tradeoff.csv and tradeoff.parquet have all."
    return {"rows": rows, "columns": columns, "words": words if count else "There are no trials."}
