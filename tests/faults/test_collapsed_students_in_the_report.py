"""Students that learned nothing are named as such, with the setting to change, and are no base for a gain and no gain.

A collapsed baseline once gave "+46.4 over scratch", collapsed students a loss of 71.8 points, as if a method had done it.
"""

from pathlib import Path

import pytest

from stillhouse.errors import UsageError
from stillhouse.report import sweep_front, sweep_winners, write_report
from stillhouse.report.narrative import lead
from stillhouse.report.page_tables import heat
from stillhouse.report.report_data import ReportData
from stillhouse.spec.records import StudentChoice, SweepFacts, Trial, TrialRecord
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.sweep.results.results import Results
from stillhouse.sweep.results.trained_students import find_trial

# Ten hand signs, of which the most common is 14 % of the validation images.
FACTS = SweepFacts(
    name="signs",
    spec={"training": {"learning_rate": None, "gradient_clip": None}},
    dataset={"name": "image_folder", "folder": "signs", "num_classes": 10, "trivial": {"validation": 0.14, "test": 0.14}},
    baseline="scratch",
    planned=6,
    objectives={"validation_accuracy": "max", "parameters": "min"},
)
NOTHING = 0.14


def trial(method: str, value: float, *, student: str = "lenet", size: int = 100, seed: int = 0) -> TrialRecord:
    return TrialRecord(
        trial=Trial(
            key=f"{method}-{student}-{seed}",
            student=StudentChoice(name=student, model=student),
            method=method,
            teacher=None if method == "scratch" else "big",
            seed=seed,
            epochs=8,
        ),
        status="finished",
        epochs_run=8,
        metrics={"validation_accuracy": value, "test_accuracy": value, "parameters": float(size), "size_bytes": 4.0 * size},
    )


def cells(*records: TrialRecord) -> dict[str, list[tuple[str, str]]]:
    """Number and words of each gain, by method."""
    table = heat(ReportData.of(FACTS, records))
    return {row["method"]: [(cell["number"], cell["words"]) for cell in row["cells"]] for row in table["rows"]}


def test_a_collapsed_baseline_is_no_base_for_a_gain() -> None:
    assert cells(trial("scratch", NOTHING), trial("dist", 0.78)) == {"dist": [("", "baseline collapsed")]}


def test_a_collapsed_student_is_no_gain() -> None:
    found = cells(trial("scratch", 0.75), trial("kd", NOTHING), trial("dist", 0.78))
    assert found == {"kd": [("", "collapsed")], "dist": [("+3.0", "one seed")]}


def test_one_collapsed_seed_is_enough_to_have_no_gain() -> None:
    records = [trial("scratch", 0.75, seed=seed) for seed in range(3)]
    records += [trial("kd", value, seed=seed) for seed, value in enumerate((0.78, NOTHING, 0.79))]
    assert cells(*records) == {"kd": [("", "collapsed")]}


def test_over_all_students_those_that_collapsed_are_left_out() -> None:
    records = [trial("scratch", 0.75), trial("kd", 0.78), trial("scratch", 0.6, student="mlp"), trial("kd", 0.1, student="mlp")]
    ((_, _, overall),) = cells(*records).values()
    assert overall == ("+3.0", "1 student, no interval, without 1 that collapsed")


def test_the_answer_counts_them_and_names_the_setting() -> None:
    sentences = lead(ReportData.of(FACTS, [trial("scratch", NOTHING), trial("kd", 0.05), trial("dist", 0.78)]))
    (collapsed,) = [sentence for sentence in sentences if "collapsed:" in sentence]
    assert collapsed.startswith("2 of 3 finished trials collapsed: their students are no better than a model that ignores the")
    assert "training.gradient_clip" in collapsed
    assert "no student finished both with scratch and with another method and without a collapse" in sentences[-1]
    assert "with dist" in sentences[0]


def test_the_page_marks_their_rows_and_lists_them(tmp_path: Path) -> None:
    page = write_report(FACTS, [trial("scratch", NOTHING), trial("dist", 0.78)], tmp_path).page.read_text(encoding="utf-8")
    (row,) = (part.partition("</tr>")[0] for part in page.split('<tr class="collapsed">')[1:])
    assert ">scratch-lenet-0<" in row
    assert ">collapsed<" in row
    listed = page.partition("<h3>Collapsed</h3>")[2].partition("</table>")[0]
    assert "no better than a model that ignores the image (accuracy 0.1400)" in listed
    assert "scratch on lenet" in listed
    assert "<dd>not known: scratch collapsed</dd>" in page


def test_a_small_collapsed_student_is_on_no_front_and_no_answer(tmp_path: Path) -> None:
    records = [trial("scratch", NOTHING, student="tiny", size=1), trial("scratch", 0.75)]
    assert [each.student for each in sweep_front(FACTS, records)] == ["lenet"]
    files = write_report(FACTS, records, tmp_path)
    assert [answer["student"] for answer in files.best] == ["lenet"]
    assert [each.collapsed for each in sweep_winners(FACTS, records)] == [True, False]


def test_where_all_collapsed_there_is_no_answer_and_nothing_to_export(tmp_path: Path) -> None:
    records = [trial("scratch", NOTHING), trial("kd", 0.1)]
    first, second = lead(ReportData.of(FACTS, records))
    assert first.startswith("2 of 2 finished trials collapsed")
    assert second == "So there is no answer."
    assert write_report(FACTS, records, tmp_path / "out").best == ()
    sweep_home = SweepHome(tmp_path, "signs")
    sweep_home.write_spec({"name": "signs"})
    sweep_home.write_facts(FACTS)
    for record in records:
        sweep_home.ledger.write(record)
    with pytest.raises(UsageError, match="no finished trial to export that did not collapse"):
        find_trial(Results.read(tmp_path, "signs"), "best")


def test_where_none_collapsed_the_page_has_no_word_of_it(tmp_path: Path) -> None:
    page = write_report(FACTS, [trial("scratch", 0.75), trial("dist", 0.78)], tmp_path).page.read_text(encoding="utf-8")
    assert "ollapsed" not in page.partition("</style>")[2].partition('type="text/plain"')[0]
