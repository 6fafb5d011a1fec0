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
    assert "every gain comes from a single seed and has no interval" in table["words"]


def test_over_students_without_seeds_a_gain_has_no_interval_and_is_not_bold(facts: Facts, record: Make) -> None:
    """Two gains that are equal by the grain of the test split once gave a bold "+0.8 ± 0.00"."""
    records = [
        record(method, student=student, test=correct / 360)
        for student, base in (("small", 320), ("large", 340))
        for method, correct in (("control", base), ("a", base + 3))
    ]
    (row,) = heat(ReportData.of(facts(), records))["rows"]
    assert [(cell["number"], cell["words"], cell["look"]) for cell in row["cells"]] == [
        ("+0.8", "one seed", "gain"),
        ("+0.8", "one seed", "gain"),
        ("+0.8", "2 students, no interval", "gain all"),
    ]


def test_seeds_that_gain_equally_give_no_interval_and_are_not_bold(facts: Facts, record: Make) -> None:
    records = [
        record(method, seed=seed, test=(320 + seed + bonus) / 360)
        for seed in range(3)
        for method, bonus in (("control", 0), ("a", 1))
    ]
    (row,) = heat(ReportData.of(facts(), records))["rows"]
    assert [(cell["number"], cell["words"], cell["look"]) for cell in row["cells"]] == [("+0.3", "3 equal seeds", "gain")]


def test_over_students_with_seeds_the_interval_comes_from_the_seeds(facts: Facts, record: Make) -> None:
    records = [
        record(method, student=student, seed=seed, test=0.8 + gain)
        for student in ("small", "large")
        for seed, gains in enumerate((0.01, 0.02, 0.03))
        for method, gain in (("control", 0.0), ("a", gains))
    ]
    (row,) = heat(ReportData.of(facts(), records))["rows"]
    # Each student: s = 0.01, n = 3, error 0.01 / sqrt(3). Of the mean: that over sqrt(2), with 4 degrees of freedom, for which
    # t(0.975) = 2.776: 2.776 x 0.01 / sqrt(6) = 0.01133.
    assert (row["cells"][-1]["words"], row["cells"][-1]["look"]) == ("± 1.1, 2 students", "gain sure all")


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
        record("a", test=0.7, hyperparameters={"t": 1}, key="low"),
        record("a", test=0.8, hyperparameters={"t": 2}, key="high"),
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
