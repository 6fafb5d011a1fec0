"""The page, and all files of the report.

The page is one file that asks the network for nothing: its policy allows its own two scripts, by hash, and no other. Plotly's
library travels compressed and is unpacked by the browser, which keeps the page small enough to mail.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from stillhouse.report import answer_cards, provenance_words, teacher_words
from stillhouse.report import formatting as wording
from stillhouse.report import narrative as sentences
from stillhouse.report.answers import Answer, answers
from stillhouse.report.axes import devices_held
from stillhouse.report.configurations import Configuration, configurations, student_key
from stillhouse.report.files import ReportFiles, json_text, write_files
from stillhouse.report.gains import gains
from stillhouse.report.learning_curves import curve_figures
from stillhouse.report.page_assets import environment, shared_context
from stillhouse.report.page_tables import MAX_REASONS, heat, reasons, trial_rows
from stillhouse.report.plot_style import PlotStyle
from stillhouse.report.plotly_figure import themes
from stillhouse.report.png_figure import tradeoff_png
from stillhouse.report.sensitivities import sensitivities
from stillhouse.report.sensitivity_figures import sensitivity_figures
from stillhouse.report.teacher_costs import teacher_costs
from stillhouse.report.tradeoff_figure import Tradeoff, tradeoff_figure
from stillhouse.report.trials_table import table_columns, trials_table
from stillhouse.spec.records import SweepFacts, TeacherFacts, TrialRecord
from stillhouse.spec.size_bound import Budget


def write_report(
    facts: SweepFacts,
    records: Sequence[TrialRecord],
    folder: Path,
    budgets: Sequence[Budget] = (),
    addresses: Mapping[str, str] | None = None,
) -> ReportFiles:
    """Writes `report.html`, `tradeoff.parquet`, `tradeoff.csv` and `tradeoff.png` into `folder`, each whole or not at all.

    Args:
        budgets: what is answered; see `answers`.
        addresses: the web page of each trial's run by trial key, and of the sweep's by the empty key; rows and points link
            there.

    Raises:
        OSError: the disk is full or the folder is not writable; what lay there before is as it was.
    """
    table = trials_table(facts, records)
    found = configurations(records, devices=devices_held(facts))
    answered = answers(facts, found, budgets)
    still = tradeoff_png(facts.name, found, facts.teachers, PlotStyle.of(facts, records))
    about = {"sweep": facts.name, "dataset": facts.dataset, "command": facts.command, "started": facts.started}
    page = render_page(facts, records, table, found, answered, still, addresses or {})
    best = [answer.to_json() for answer in answered]
    return write_files(folder, table, table_columns(facts, records), about, still, page, best)


def render_page(
    facts: SweepFacts,
    records: Sequence[TrialRecord],
    table: pd.DataFrame,
    found: Sequence[Configuration],
    answered: Sequence[Answer],
    still: bytes,
    addresses: Mapping[str, str],
) -> str:
    """The page as HTML."""
    gained = gains(found, facts.baseline)
    costs = teacher_costs(facts, records)
    looks = PlotStyle.of(facts, records)
    tradeoff = tradeoff_figure(found, facts.teachers, looks, addresses)
    curves = curve_figures(facts, records, found) if tradeoff else {}
    sensitivity = sensitivities(records)
    figures = {
        "themes": themes(),
        "tradeoff": tradeoff.figure if tradeoff else None,
        "curves": curves,
        "sensitivity": sensitivity_figures(facts, records, sensitivity) if tradeoff else {},
    }
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            title=facts.name,
            subtitle=_subtitle(facts, records),
            lead=[wording.redacted(sentence) for sentence in sentences.lead(facts, records, answered, gained)],
            cards=[card(facts, answer, addresses) for answer in answered],
            strip=sentences.strip(facts, records, costs),
            trust=sentences.trust(facts, found, gained),
            tradeoff=tradeoff,
            tradeoff_alt=alternative(facts.teachers, answered, len(found)),
            tradeoff_caption=caption(tradeoff) if tradeoff else "",
            still=base64.b64encode(still).decode() if tradeoff else "",
            chips=chips(looks, found),
            curves=list(curves),
            sensitivity=sensitivity[:500],
            words_searched=any(not each.numeric for each in sensitivity),
            sensitivity_methods=list(dict.fromkeys(each.method for each in sensitivity)),
            trials=trial_rows(facts, records, table, addresses),
            **section_context(facts, records, found, addresses),
            **shared_context(figures),
        )
    )


def chips(looks: PlotStyle, found: Sequence[Configuration]) -> list[tuple[str, list[dict[str, Any]]]]:
    """The legend as check boxes: for each kind the names, each with its colour and fill or its shape."""
    coloured = [{"name": name, "colour": looks.colours[name], "fill": looks.fills[name]} for name in looks.groups(found)]
    shaped = [{"name": name, "shape": looks.shapes[name][2]} for name in dict.fromkeys(each.student for each in found)]
    if not looks.by_sweep:
        return [("method", coloured), ("student", shaped)]
    methods = [{"name": name} for name in sorted({each.method for each in found})]
    return [("sweep", coloured), ("student", shaped), ("method", methods)]


def section_context(
    facts: SweepFacts, records: Sequence[TrialRecord], found: Sequence[Configuration], addresses: Mapping[str, str]
) -> dict[str, Any]:
    """What a page says of one sweep beside its answers and trials: gains, failures, teachers, provenance."""
    notes = [wording.redacted(note) for note in facts.notes[:MAX_REASONS]]
    if len(facts.notes) > MAX_REASONS:
        notes.append(f"and {len(facts.notes) - MAX_REASONS:,} more notes")
    return {
        "facts": facts,
        "heat": heat(facts, records, gains(found, facts.baseline)),
        "failed": reasons([record for record in records if record.status == "failed"]),
        "failed_words": "A failed trial stands alone; the other trials went on.",
        "stopped": reasons([record for record in records if record.status == "stopped"]),
        "stopped_words": "The scheduler stopped these on validation data; without a test accuracy they are in no comparison.",
        "notes": notes,
        "costs": [
            {
                "teacher": cost.teacher,
                "sentences": teacher_words.teacher_sentences(cost),
                "facts": teacher_words.teacher_facts(cost),
                "ways": teacher_words.teacher_ways(cost),
            }
            for cost in teacher_costs(facts, records)
        ],
        "provenance": provenance_words.provenance(facts),
        "tracked": provenance_words.tracked(facts, addresses),
        "tracked_at": addresses.get(""),
        "spec": _spec(facts),
    }


def _spec(facts: SweepFacts) -> str:
    """The spec as YAML without its secrets."""
    return yaml.safe_dump(wording.redacted_tree(json.loads(json_text(facts.spec))), sort_keys=False, allow_unicode=True)


def _subtitle(facts: SweepFacts, records: Sequence[TrialRecord]) -> str:
    methods = len({record.trial.method for record in records})
    students = len({student_key(record.trial.student) for record in records})
    dataset = facts.dataset.get("name", "unnamed data")
    parts = [f"Distillation on {dataset}", wording.counted(students, "student"), wording.counted(methods, "method")]
    parts.append(wording.counted(len(records), "trial"))
    return ", ".join(parts) + (f", started {wording.moment(facts.started)}" if facts.started else "")


def card(facts: SweepFacts, answer: Answer, addresses: Mapping[str, str]) -> dict[str, Any]:
    return {
        "asked": answer_cards.card_title(answer),
        "best": answer.best,
        "link": addresses.get(answer.best.key) if answer.best else None,
        "nothing": answer_cards.nothing_fits(answer) if answer.best is None else "",
        "facts": answer_cards.card_facts(facts, answer),
        "state": answer_cards.verdict_state(answer),
        "tag": answer_cards.verdict_tag(answer),
        "verdict": answer_cards.verdict(answer) if answer.best else "",
        "settings": answer_cards.card_settings(answer.best) if answer.best else [],
    }


def alternative(teachers: Sequence[TeacherFacts], answered: Sequence[Answer], number: int) -> str:
    words = [
        f"{each.best.choice} with {each.best.method}: {wording.short(each.best.metric('parameters'))} parameters, "
        f"{wording.percent(each.best.test.mean)}"
        for each in answered
        if each.best
    ]
    known = [f"teacher {each.name} {wording.percent(each.test_accuracy)}" for each in teachers]
    shown = f"Scatter of test accuracy against size, {wording.counted(number, 'configuration')}. "
    return shown + "; ".join([*words, *known])


def caption(drawn: Tradeoff, of: str = "of a method on a student", apart: str = "methods") -> str:
    words = (
        f"A large point is the winner {of}, with the mean and 95% interval over its reported seeds; a small one "
        f"is another setting that finished. On the log scale the {apart} of one student are moved slightly apart; the exact "
        "sizes are in the hover and the table. Rings and the dashed line mark the Pareto front: chosen on validation data, so "
        "on test data a point may lie above it. The star and the dotted line are the teacher."
    )
    if drawn.below:
        words += (
            f" {wording.counted(drawn.below, 'point')} far below the others can not be seen at first: double-click shows all."
        )
    if drawn.shown < drawn.total:
        words += f" {drawn.shown:,} of {drawn.total:,} configurations are drawn, the front and the rest evenly."
    return words
