"""The page of one sweep, and all files of its report.

The page is one file that requests nothing from the network: its policy allows its own two scripts, by hash, and no other.
Plotly's library is stored compressed and unpacked by the browser, which keeps the page small enough to mail.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from stillhouse.report import answer_cards, evidence_words, narrative, provenance_words, routes, teacher_words
from stillhouse.report import formatting as wording
from stillhouse.report.answers import Answer
from stillhouse.report.files import ReportFiles, json_text, write_files
from stillhouse.report.learning_curves import curve_figures
from stillhouse.report.page_assets import environment, shared_context
from stillhouse.report.page_tables import MAX_REASONS, heat, reasons, trial_rows, untrained_heat
from stillhouse.report.plotly_figure import themes
from stillhouse.report.png_figure import tradeoff_png
from stillhouse.report.report_data import ReportData, TradeoffData
from stillhouse.report.routes import RouteComparison, compare_routes, route_colours
from stillhouse.report.sensitivity_figures import sensitivity_figures
from stillhouse.report.tradeoff_figure import TradeoffFigure, tradeoff_figure
from stillhouse.spec.collapse import collapse_words, trivial_value
from stillhouse.spec.metric import Metric
from stillhouse.spec.records import SweepFacts, TrialRecord
from stillhouse.spec.secret_masking import mask_data, mask_text
from stillhouse.spec.size_bound import Budget

MAX_SENSITIVITIES = 500


def write_report(
    facts: SweepFacts,
    records: Sequence[TrialRecord],
    folder: Path,
    budgets: Sequence[Budget] = (),
    addresses: Mapping[str, str] | None = None,
) -> ReportFiles:
    """Writes `report.html`, `tradeoff.parquet`, `tradeoff.csv` and `tradeoff.png` into `folder`, each whole or not at all.

    Args:
        budgets: the sizes to answer for; see `answers`.
        addresses: the web page of each trial's run by trial key, and of the sweep's by the empty key; rows and points link
            there.

    Raises:
        OSError: the disk is full or the folder is not writable; the files that were there before are unchanged.
    """
    data = ReportData.of(facts, records, budgets, addresses)
    still = tradeoff_png(data.tradeoff)
    later = [run.command for run in facts.later_runs]
    about = {"sweep": facts.name, "dataset": facts.dataset, "command": facts.command, "started": facts.started}
    about |= {"latency_place": facts.latency_place}
    best = [answer.to_json() for answer in data.answers]
    return write_files(folder, data.table, about | {"later_commands": later}, still, render_page(data, still), best)


def render_page(data: ReportData, still: bytes) -> str:
    """The page as HTML.

    Args:
        still: the figure as a PNG, for browsers that run no script.
    """
    facts, metric = data.facts, data.metric
    tradeoff = tradeoff_figure(data.tradeoff)
    curves = curve_figures(data) if tradeoff else {}
    figures = {
        "themes": themes(),
        "tradeoff": tradeoff.figure if tradeoff else None,
        "curves": curves,
        "sensitivity": sensitivity_figures(data) if tradeoff else {},
    }
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            title=facts.name,
            subtitle=_subtitle(data),
            about_data=mask_text(narrative.about_data(facts)),
            lead=[mask_text(sentence) for sentence in narrative.lead(data)],
            cards=[card(answer, facts.baseline, data.addresses) for answer in data.answers],
            routes=[route_rows(each) for each in compare_routes([each for each in data.tradeoff.winners if each.judged])],
            strip=narrative.strip(data),
            trust=narrative.trust(metric, facts.baseline, data.tradeoff.configurations, data.gains),
            tradeoff=tradeoff,
            tradeoff_alt=alternative(data.tradeoff, data.answers),
            tradeoff_caption=caption(tradeoff, metric) if tradeoff else "",
            still=base64.b64encode(still).decode() if tradeoff else "",
            chips=chips(data.tradeoff),
            examined=evidence_words.examined(data),
            curves=list(curves),
            curve_first=next((each.best.student for each in data.answers if each.best and each.best.student in curves), None),
            sensitivity=data.sensitivities[:MAX_SENSITIVITIES],
            words_searched=any(not each.numeric for each in data.sensitivities),
            sensitivity_methods=list(dict.fromkeys(each.method for each in data.sensitivities)),
            trials=trial_rows(data),
            **section_context(data),
            **shared_context(figures, metric),
        )
    )


def chips(data: TradeoffData) -> list[tuple[str, list[dict[str, Any]]]]:
    """The legend as check boxes: for each kind the names, each with its colour and fill or its shape."""
    style, found = data.style, data.configurations
    coloured = [{"name": name, "colour": style.colours[name], "fill": style.fills[name]} for name in style.groups(found)]
    shaped = [{"name": name, "shape": style.shapes[name][2]} for name in dict.fromkeys(each.student for each in found)]
    of_routes = route_colours(found)
    by_route = (
        [("route", [{"name": name, "colour": colour, "fill": 0} for name, colour in of_routes.items()])] if of_routes else []
    )
    if not style.by_sweep:
        return [("method", coloured), ("student", shaped), *by_route]
    methods = [{"name": name} for name in sorted({each.method for each in found})]
    return [("sweep", coloured), ("student", shaped), ("method", methods), *by_route]


def section_context(data: ReportData) -> dict[str, Any]:
    """What a page shows of one sweep besides its answers and trials: gains, failures, teachers, provenance."""
    facts = data.facts
    notes = [mask_text(note) for note in facts.notes[:MAX_REASONS]]
    if len(facts.notes) > MAX_REASONS:
        notes.append(f"and {len(facts.notes) - MAX_REASONS:,} more notes")
    return {
        "facts": facts,
        "heat": heat(data),
        "untrained_heat": untrained_heat(data),
        "failed": reasons([record for record in data.records if record.status == "failed"]),
        "failed_words": "A failed trial does not stop the others.",
        "stopped": reasons([record for record in data.records if record.status == "stopped"]),
        "stopped_words": (
            "The scheduler stopped these trials early, by their results on validation data. They have no result on test data, "
            "so no comparison includes them."
        ),
        "collapsed": reasons(
            [record for record in data.records if record.trial.key in data.collapsed_trials],
            collapse_words(data.metric, trivial_value(facts, "validation")),
        ),
        "collapsed_words": narrative.remedy_of_collapse(facts),
        "notes": notes,
        "costs": [
            {
                "teacher": cost.teacher,
                "sentences": teacher_words.teacher_sentences(cost),
                "facts": teacher_words.teacher_facts(cost, data.metric, facts.test_samples),
                "reasons": teacher_words.delivery_reasons(cost),
            }
            for cost in data.teacher_costs
        ],
        "provenance": provenance_words.provenance(facts),
        "tracked": provenance_words.tracked(facts, data.addresses),
        "tracked_at": data.addresses.get(""),
        "spec": _spec(facts),
    }


def _spec(facts: SweepFacts) -> str:
    """The spec as YAML without its secrets."""
    return yaml.safe_dump(mask_data(json.loads(json_text(facts.spec))), sort_keys=False, allow_unicode=True)


def _subtitle(data: ReportData) -> str:
    facts, records = data.facts, data.records
    methods = len({record.trial.method for record in records})
    students = len({record.trial.student.variant for record in records})
    parts = [f"Distillation on {facts.dataset_label}", wording.counted(students, "student"), wording.counted(methods, "method")]
    parts.append(wording.counted(len(records), "trial"))
    return ", ".join(parts) + (f", started {wording.moment(facts.started)}" if facts.started else "")


def card(answer: Answer, baseline: str, addresses: Mapping[str, str]) -> dict[str, Any]:
    """One answer as its card shows it."""
    return {
        "question": answer_cards.card_title(answer),
        "best": answer.best,
        "split": answer_cards.of_test_split(answer.best) if answer.best else "",
        "link": addresses.get(answer.best.key) if answer.best else None,
        "nothing": answer_cards.nothing_fits(answer) if answer.best is None else "",
        "facts": answer_cards.card_facts(answer, baseline),
        "state": answer_cards.verdict_state(answer),
        "tag": answer_cards.verdict_tag(answer),
        "verdict": f"{answer_cards.verdict(answer)} {answer_cards.level_words(answer)}".strip() if answer.best else "",
        "settings": answer_cards.card_settings(answer.best) if answer.best else [],
    }


def route_rows(comparison: RouteComparison) -> dict[str, Any]:
    """The comparison of routes within one bound as the page shows it."""
    return {
        "bound": answer_cards.budget_words(comparison.bound),
        "state": comparison.state,
        "verdict": routes.route_verdict(comparison),
        "rows": [
            {
                "route": each.route,
                "student": f"{each.best.choice}, {each.best.method}",
                "size": wording.size(each.best.median("size_bytes")),
                "latency": wording.milliseconds(each.best.median("latency_ms")),
                "test": routes.test_words(each),
                "behind": routes.behind_words(each),
                "gain": routes.gain_words(each),
            }
            for each in comparison.results
        ],
    }


def alternative(data: TradeoffData, answered: Sequence[Answer]) -> str:
    """The trade-off figure in words, for readers who do not see it."""
    words = [
        f"{each.best.choice} with {each.best.method}: {wording.short(each.best.median('parameters'))} parameters, "
        f"{wording.score(each.best.test.mean, data.metric)}"
        for each in answered
        if each.best
    ]
    column = data.metric.column("test")
    known = [f"teacher {each.name} {wording.score(each.value(column), data.metric)}" for each in data.teachers]
    count = wording.counted(len(data.configurations), "configuration")
    return f"Scatter of test {data.metric.label} against size, {count}. " + "; ".join([*words, *known])


def caption(drawn: TradeoffFigure, metric: Metric, of: str = "of a method on a student") -> str:
    """What the marks of the trade-off figure mean.

    Args:
        of: what a large point is the winner of.
    """
    beyond, far = ("above", "below") if metric.direction == "max" else ("below", "above")
    words = (
        f"A large point is the winner {of}, with the mean and the 95% interval over its reported seeds. A small point is "
        "another setting that finished. On the log scale, points of the same size are moved slightly apart; the exact sizes "
        "are in the tooltips and in the table. Rings and the dashed line mark the Pareto front. It is chosen on validation "
        f"data, so on test data a point may lie {beyond} it. The star and the dotted line are the teacher."
    )
    if drawn.outside:
        outside = f"{wording.counted(drawn.outside, 'point')} far {far} the others"
        words += f" At first the figure leaves out {outside}: double-click shows everything."
    if drawn.shown < drawn.total:
        words += f" {drawn.shown:,} of {drawn.total:,} configurations are drawn: the front, and an even choice of the others."
    return words
