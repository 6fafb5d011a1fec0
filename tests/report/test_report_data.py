"""The same ledger reported once by a metric where higher is better and once mirrored, where lower is better."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from stillhouse.report import Source, write_comparison, write_report
from stillhouse.report.answer_cards import against_teacher, verdict, verdict_state
from stillhouse.report.answers import Answer
from stillhouse.report.learning_curves import curve_figures
from stillhouse.report.page_tables import heat, trial_rows
from stillhouse.report.report_data import ReportData
from stillhouse.report.tradeoff_figure import tradeoff_figure
from stillhouse.spec.metric import Metric
from stillhouse.spec.records import SweepFacts, TrialRecord
from stillhouse.spec.size_bound import Budget

Make = Callable[..., TrialRecord]
Facts = Callable[..., SweepFacts]
Sweep = Callable[..., list[TrialRecord]]
ERROR = Metric(name="error", direction="min", label="mean error", percent=True)
DEGREES = Metric(name="mae", direction="min", label="mean absolute error")
BUDGETS = (Budget("parameters", 30_000), Budget("size_bytes", 10))


def mirrored(record: TrialRecord, metric: Metric) -> TrialRecord:
    """The record with 1 - v for every accuracy v, under the names of `metric`."""

    def of(values: dict[str, Any]) -> dict[str, Any]:
        return {
            name.replace("accuracy", metric.name): 1 - value if name.endswith("_accuracy") else value
            for name, value in values.items()
        }

    return record.model_copy(update={"metrics": of(record.metrics), "curve": [of(entry) for entry in record.curve]})


def mirrored_facts(facts: SweepFacts, metric: Metric) -> SweepFacts:
    teachers = [
        teacher.model_copy(
            update={
                "metrics": {
                    metric.column("validation"): 1 - (teacher.validation_accuracy or 0.0),
                    metric.column("test"): 1 - (teacher.test_accuracy or 0.0),
                },
                "validation_accuracy": None,
                "test_accuracy": None,
            }
        )
        for teacher in facts.teachers
    ]
    objectives = {metric.column("validation"): metric.direction, "parameters": "min"}
    return facts.model_copy(update={"metric": metric, "teachers": teachers, "objectives": objectives})


@pytest.fixture(scope="module")
def both(facts: Facts, sweep: Sweep) -> tuple[ReportData, ReportData]:
    """The sweep's report, and its mirrored one."""
    records = sweep()
    return (
        ReportData.of(facts(), records),
        ReportData.of(mirrored_facts(facts(), ERROR), [mirrored(record, ERROR) for record in records]),
    )


def test_winners_and_fronts_are_the_same(both: tuple[ReportData, ReportData]) -> None:
    first, second = (
        (
            [each.key for each in data.tradeoff.winners],
            {axis: [each.key for each in front] for axis, front in data.tradeoff.fronts.items()},
        )
        for data in both
    )
    assert first == second
    assert len(first[1]["parameters"]) > 1


def named(answer: Answer) -> tuple[object, ...]:
    groups = (answer.tied, answer.better, answer.unsure)
    return (
        answer.question,
        answer.best.key if answer.best else None,
        [[each.key for each in group] for group in groups],
        answer.worse,
        answer.least,
        answer.compression,
        verdict_state(answer),
        verdict(answer),
        against_teacher(answer),
    )


def numbers(answer: Answer) -> list[float | None]:
    estimates = (answer.gain, answer.drop)
    return [value for each in estimates if each for value in (each.mean, each.half_width)]


@pytest.mark.parametrize("budgets", [(), BUDGETS])
def test_answers_verdicts_gains_and_drops_are_the_same(facts: Facts, sweep: Sweep, budgets: tuple[Budget, ...]) -> None:
    records = sweep()
    higher = ReportData.of(facts(), records, budgets)
    lower = ReportData.of(mirrored_facts(facts(), ERROR), [mirrored(record, ERROR) for record in records], budgets)
    assert [named(answer) for answer in higher.answers] == [named(answer) for answer in lower.answers]
    for first, second in zip(higher.answers, lower.answers, strict=True):
        assert numbers(first) == pytest.approx(numbers(second), abs=1e-12)


def test_the_answers_as_json_have_the_keys_of_the_metric(both: tuple[ReportData, ReportData]) -> None:
    higher, lower = (data.answers[0].to_json() for data in both)
    assert (higher["question"], lower["question"]) == ("most accurate", "best")
    assert lower["test_error"] == pytest.approx(1 - higher["test_accuracy"])
    assert lower["error_drop"] == pytest.approx(higher["accuracy_drop"])
    assert lower["test_interval"] == pytest.approx([1 - bound for bound in reversed(higher["test_interval"])])
    assert not [key for key in lower if "accuracy" in key]


def test_gains_are_positive_where_a_method_is_better(both: tuple[ReportData, ReportData]) -> None:
    first, second = both
    assert len(first.gains) == len(second.gains) > 20
    for higher, lower in zip(first.gains, second.gains, strict=True):
        assert (higher.method, higher.column, higher.kind, higher.over) == (lower.method, lower.column, lower.kind, lower.over)
        assert higher.difference is not None
        assert lower.difference is not None
        assert lower.difference.mean == pytest.approx(higher.difference.mean, abs=1e-12)
        assert lower.difference.half_width == pytest.approx(higher.difference.half_width, abs=1e-12)


def test_the_heat_map_shows_the_same_numbers_and_colours(both: tuple[ReportData, ReportData]) -> None:
    cells = [
        [(cell["number"], cell["words"], cell["look"]) for row in heat(data)["rows"] for cell in row["cells"]] for data in both
    ]
    assert cells[0] == cells[1]


def test_trials_have_the_same_order_marks_and_statuses(both: tuple[ReportData, ReportData]) -> None:
    shown = [
        [(row["front"], row["cells"][0]["text"], row["cells"][3]["text"]) for row in trial_rows(data)["rows"]] for data in both
    ]
    assert shown[0] == shown[1]
    assert {status for _, _, status in shown[0]} == {"finished", "stopped", "failed"}
    higher, lower = (data.table.frame[data.metric.drop_column] for data in both)
    pd.testing.assert_series_equal(higher, lower, check_names=False, atol=1e-12)


def test_settings_have_the_same_effects(both: tuple[ReportData, ReportData]) -> None:
    for first, second in zip(both[0].sensitivities, both[1].sensitivities, strict=True):
        assert (first.method, first.hyperparameter, first.best) == (second.method, second.hyperparameter, second.best)
        assert first.correlation == pytest.approx(second.correlation)
        assert first.effects == pytest.approx(second.effects, abs=1e-12)


def test_the_axes_of_the_metric_are_mirrored(both: tuple[ReportData, ReportData], facts: Facts, record: Make) -> None:
    records = [record(f"m{number}", test=0.9 + number / 200) for number in range(10)] + [record("far", test=0.1)]
    higher = tradeoff_figure(ReportData.of(facts(), records).tradeoff)
    lower = tradeoff_figure(ReportData.of(mirrored_facts(facts(), ERROR), [mirrored(each, ERROR) for each in records]).tradeoff)
    assert higher is not None
    assert lower is not None
    low, high = higher.figure["switch"]["scores"]["test"]["range"]
    assert lower.figure["switch"]["scores"]["test"]["range"] == pytest.approx([1 - high, 1 - low])
    assert higher.outside == lower.outside == 1
    for first, second in zip(*(curve_figures(data).values() for data in both), strict=True):
        low, high = first[0]["layout"]["yaxis"]["range"]
        assert second[0]["layout"]["yaxis"]["range"] == pytest.approx([1 - high, 1 - low], abs=1e-5)


@pytest.mark.parametrize("metric", [ERROR, DEGREES])
def test_a_page_of_another_metric_never_says_accuracy(facts: Facts, sweep: Sweep, tmp_path: Path, metric: Metric) -> None:
    made, records = mirrored_facts(facts(), metric), [mirrored(record, metric) for record in sweep()]
    first = Source(facts=made, records=records)
    second = Source(facts=made.model_copy(update={"name": "again"}), records=records)
    for files in (write_report(made, records, tmp_path / "one"), write_comparison([first, second], tmp_path / "two")):
        page = re.sub(r'<script type="text/plain" id="plotly">.*?</script>', "", files.page.read_text(), flags=re.DOTALL)
        assert "accura" not in page.lower()
        assert f"{metric.label.capitalize()} against size" in page
        assert "lower is better" in page
        assert ("%" in re.sub("95%", "", page.partition("<main>")[2].partition("<details>")[0])) == metric.percent
        assert "accuracy" not in files.csv.read_text()


def test_sweeps_with_different_metrics_are_not_ranked_against_each_other(facts: Facts, record: Make, tmp_path: Path) -> None:
    sources = [
        Source(facts=facts(name="first"), records=[record("a", test=0.5)]),
        Source(facts=mirrored_facts(facts(name="second"), ERROR), records=[mirrored(record("b", test=0.9), ERROR)]),
    ]
    files = write_comparison(sources, tmp_path)
    assert "different metrics (first by accuracy and second by mean error)" in files.page.read_text()
    assert [each["sweep"] for each in files.best] == ["first", "second"]


def test_a_student_without_a_teacher_is_compared_with_the_teacher_not_with_its_own(
    facts: Facts, record: Make, tmp_path: Path
) -> None:
    alone = [record("control", seed=seed, test=0.9 + seed / 1000) for seed in range(3)]
    page = write_report(facts(), alone, tmp_path).page.read_text()
    assert "Compared with the teacher large" in page
    assert "its teacher large" not in page
    assert "trained with control" in page


def test_a_student_larger_than_its_teacher_has_more_parameters(facts: Facts, record: Make, tmp_path: Path) -> None:
    page = write_report(facts(), [record(parameters=2 * 855_770)], tmp_path).page.read_text()
    assert "2\N{MULTIPLICATION SIGN} more parameters" in page
    assert "fewer parameters" not in page
