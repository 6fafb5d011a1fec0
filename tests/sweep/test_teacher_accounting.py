"""What teachers computed and what trials read back, by hand, over runs that end well and runs that are interrupted."""

import json
from pathlib import Path
from typing import Any

import pytest

from stillhouse.knowledge.fill_log import append_line, fill_log
from stillhouse.spec.metric import ACCURACY, Metric
from stillhouse.spec.records import StudentChoice, SweepFacts, TeacherFacts, Trial, TrialRecord
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.sweep.teacher_accounting import TeacherAccounts, TeacherUse, teacher_warnings

BIG = TeacherFacts(name="big", model="resnet8", key="hash-of-big", parameters=1, size_bytes=1, macs=1)
ERROR = Metric(name="mean_absolute_error", direction="min", label="mean absolute error")


@pytest.fixture
def sweep_home(tmp_path: Path) -> SweepHome:
    (tmp_path / "knowledge").mkdir()
    return SweepHome(tmp_path, "mine")


def fill(sweep_home: SweepHome, rows: int, *, sweep: str = "mine", teacher: str = BIG.key) -> None:
    entry = {"teacher": teacher, "rows": rows, "bytes": 4 * rows, "seconds": rows / 100, "sweeps": [sweep]}
    append_line(fill_log(sweep_home.home / "knowledge"), json.dumps(entry))


def record(key: str, teacher: str, **teaching: int) -> TrialRecord:
    student = StudentChoice(name="mlp", model="mlp")
    return TrialRecord(
        trial=Trial(key=key, student=student, method="kd", teacher=teacher, epochs=1), status="finished", teaching=teaching
    )


def facts(**changes: Any) -> SweepFacts:
    return SweepFacts(name="mine", spec={}, dataset={}, baseline="scratch", planned=1, **changes)


def test_a_run_counts_what_was_filled_since_its_beginning_for_its_sweep(sweep_home: SweepHome) -> None:
    fill(sweep_home, 1000)
    accounts = TeacherAccounts(sweep_home, None)
    fill(sweep_home, 30)
    fill(sweep_home, 500, sweep="other")
    fill(sweep_home, 700, teacher="hash-of-another")
    use = accounts.use_in_run(BIG, [])
    assert (use.forwarded, use.gathered, use.fills) == (30, 0, {"samples": 30, "bytes": 120, "seconds": 0.3})


def test_teachers_of_one_trial_are_used_equally(sweep_home: SweepHome) -> None:
    records = [record("a", "big", samples_gathered=10, samples_forwarded=4), record("b", "big+other", samples_gathered=20)]
    records.append(record("c", "other", samples_gathered=1000))
    use = TeacherAccounts(sweep_home, None).use_in_run(BIG, records)
    assert (use.forwarded, use.gathered) == (4, 10 + 20 // 2)


def test_the_total_adds_this_run_to_the_earlier_ones(sweep_home: SweepHome) -> None:
    earlier = facts(teachers=[BIG.model_copy(update={"samples_filled": 100, "bytes_written": 400, "trained_now": True})])
    records = [record("a", "big", samples_gathered=10, samples_forwarded=4, samples_called=3)]
    use = TeacherUse(forwarded=0, gathered=0, fills={"samples": 30, "bytes": 120, "seconds": 0.3})
    total = TeacherAccounts(sweep_home, earlier).total(BIG, records, use)
    assert (total.samples_filled, total.samples_forwarded, total.samples_reused) == (130, 134, 10)
    assert (total.samples_called, total.bytes_written, total.fill_seconds) == (3, 520, 0.3)
    assert total.trained_now, "an earlier run trained it"


def test_what_an_interrupted_run_filled_is_counted_by_the_next_one(sweep_home: SweepHome) -> None:
    fill(sweep_home, 1000)
    began = sweep_home.fill_log_bytes()
    fill(sweep_home, 50)
    interrupted = facts(teachers=[BIG], open_fills=began)
    accounts = TeacherAccounts(sweep_home, interrupted)
    fill(sweep_home, 7)
    total = accounts.total(BIG, [], accounts.use_in_run(BIG, []))
    assert total.samples_filled == 50 + 7


@pytest.mark.parametrize(("metric", "teacher", "warned"), [(ACCURACY, 0.5, True), (ACCURACY, 0.9, False), (ERROR, 0.9, True)])
def test_a_teacher_that_is_worse_than_a_student_is_warned_of(metric: Metric, teacher: float, warned: bool) -> None:
    """The best student has 0.75 where higher is better and 0.25 where lower is."""
    records = [
        record(key, "big").model_copy(update={"metrics": {metric.column("validation"): value}})
        for key, value in (("a", 0.25), ("b", 0.75))
    ]
    known = BIG.model_copy(update={"metrics": {metric.column("validation"): teacher}})
    warnings = teacher_warnings([known], records, metric)
    assert [warning.startswith("teacher big is worse than the best student") for warning in warnings] == [True] * warned


def test_without_finished_students_there_is_no_warning() -> None:
    assert teacher_warnings([BIG], [], ACCURACY) == []
