"""The tables of the page: the heat map of gains, the trials, the reasons of failures."""

from collections.abc import Callable

from stillhouse.report.page_tables import MAX_REASONS, heat, reasons, trial_rows
from stillhouse.report.report_data import ReportData
from stillhouse.spec.records import SweepFacts, TrialRecord

Make = Callable[..., TrialRecord]
Facts = Callable[..., SweepFacts]


def test_the_heat_map_has_the_smallest_student_first_and_a_column_for_all(facts: Facts, record: Make) -> None:
    records = [
        record(method, student=student, parameters=size, test=0.8 + gain)
        for student, size in (("large", 900), ("small", 90))
        for method, gain in (("control", 0.0), ("a", 0.02))
    ]
    table = heat(ReportData.of(facts(), records))
    assert [(column["label"], column["size"]) for column in table["columns"]] == [
        ("small", "90"),
        ("large", "900"),
        ("all students", "mean"),
    ]
    ((cells,),) = ([row["cells"] for row in table["rows"]],)
    assert [cell["number"] for cell in cells] == ["+2.0", "+2.0", "+2.0"]
    assert "every gain comes from a single seed" in table["words"]


def test_a_pair_that_did_not_run_and_one_without_a_baseline_have_no_number(facts: Facts, record: Make) -> None:
    records = [
        record("control", student="small"),
        record("a", student="small"),
        record("a", student="large"),
        record("b", student="small"),
    ]
    rows = {row["method"]: row["cells"] for row in heat(ReportData.of(facts(), records))["rows"]}
    words = {cell["words"] for cells in rows.values() for cell in cells if not cell["number"]}
    assert words == {"not run", "no baseline of this size"}


def test_without_another_method_there_is_no_gain_to_show(facts: Facts, record: Make) -> None:
    table = heat(ReportData.of(facts(), [record("control")]))
    assert table == {"rows": [], "words": "No method other than control finished, so there is no gain to show."}


def test_trials_without_a_result_come_last(facts: Facts, record: Make) -> None:
    records = [
        record("a", status="failed", test=None, key="failed"),
        record("a", test=0.7, parameters=99_999, key="low"),
        record("a", test=0.8, key="high"),
    ]
    shown = trial_rows(ReportData.of(facts(), records))["rows"]
    assert [(row["cells"][0]["text"], row["front"]) for row in shown] == [("high", True), ("low", False), ("failed", False)]


def test_reasons_are_counted_and_the_most_frequent_comes_first(record: Make) -> None:
    records = [record("a", seed=seed, status="failed", test=None, reason="NaN") for seed in range(2)]
    records.append(record("b", status="failed", test=None, reason=None))
    rows = reasons(records)
    assert [(row["count"], row["reason"], row["where"]) for row in rows] == [
        ("2", "NaN", "a on lenet (2)"),
        ("1", "no reason was recorded", "b on lenet"),
    ]


def test_reasons_beyond_the_limit_are_only_counted(record: Make) -> None:
    records = [record("a", seed=seed, status="failed", test=None, reason=f"r{seed}") for seed in range(MAX_REASONS + 5)]
    rows = reasons(records)
    assert len(rows) == MAX_REASONS + 1
    assert (rows[-1]["count"], rows[-1]["reason"]) == ("5", "5 more reasons, in tradeoff.csv")
