"""A store that cannot be opened costs a sweep seconds; numbers that changed since they were written are written again."""

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillhouse.spec.records import SweepFacts, TrialRecord
from stillhouse.tracking import Tracker, locate
from stillhouse.tracking.store import PROBE_TIMEOUT_S, RejectedError, UnreachableError, open_client

RecordMaker = Callable[..., TrialRecord]
FactsMaker = Callable[..., SweepFacts]
RunReader = Callable[..., list[Any]]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def binary(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 100)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


@pytest.mark.parametrize("damage", [cut, binary, folder, link_loop], ids=lambda damage: damage.__name__)
def test_a_database_that_cannot_be_opened_is_one_sentence_within_seconds(
    home: Path,
    make_record: RecordMaker,
    make_facts: FactsMaker,
    damage: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(home / "mlflow.db")
    began = time.monotonic()
    tracker = Tracker(None, home=home, experiment="tests")
    assert tracker.start_sweep(make_facts()) is None
    tracker.log_trial(make_record(0))
    tracker.drain()
    assert not tracker.finish(make_facts(), {})
    tracker.close()
    assert time.monotonic() - began < 10
    (sentence,) = capsys.readouterr().err.splitlines()
    assert "mlflow.db cannot be opened" in sentence
    assert "stillhouse sync" in sentence


def test_a_database_that_another_process_holds_is_waited_for_and_then_tried_again(home: Path) -> None:
    with sqlite3.connect(home / "mlflow.db", isolation_level=None) as holder:
        holder.execute("PRAGMA journal_mode = DELETE")
        holder.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        with pytest.raises(UnreachableError, match="is locked by another process"):
            open_client(locate(None, home))
        assert time.monotonic() - began < 3 * PROBE_TIMEOUT_S
        holder.execute("ROLLBACK")
    holder.close()
    open_client(locate(None, home))


def test_a_named_sqlite_file_is_checked_as_the_one_of_the_home_is(tmp_path: Path) -> None:
    binary(tmp_path / "a b.db")
    with pytest.raises(RejectedError, match=r"a b\.db cannot be opened: file is not a database"):
        open_client(locate(f"sqlite:///{tmp_path}/a b.db", tmp_path))


def test_numbers_of_a_teacher_that_changed_between_runs_are_written_again(
    home: Path, make_record: RecordMaker, make_facts: FactsMaker, runs_in: RunReader
) -> None:
    """MLflow's key of a model's number holds its time and not its value, so the same time with another value is refused."""
    for accuracy in (0.875, 0.75, 0.75):
        facts = make_facts()
        facts = facts.model_copy(update={"teachers": [facts.teachers[0].model_copy(update={"test_accuracy": accuracy})]})
        tracker = Tracker(None, home=home, experiment="tests")
        tracker.start_sweep(facts)
        tracker.log_trial(make_record(0))
        assert tracker.finish(facts, {})
        tracker.close()
        (parent,) = runs_in(locate(None, home), "sweep")
        assert parent.data.metrics["teacher_big_test_accuracy"] == accuracy


def test_a_half_written_run_is_completed_although_its_teacher_changed(
    home: Path, make_record: RecordMaker, make_facts: FactsMaker, runs_in: RunReader
) -> None:
    for accuracy, drop in ((0.875, 0.125), (0.8125, 0.0625)):
        facts = make_facts()
        facts = facts.model_copy(update={"teachers": [facts.teachers[0].model_copy(update={"test_accuracy": accuracy})]})
        tracker = Tracker(None, home=home, experiment="tests")
        tracker.start_sweep(facts)
        tracker.log_trial(make_record(0))
        assert tracker.finish(facts, {})
        tracker.close()
        (run,) = runs_in(locate(None, home))
        assert run.data.metrics["accuracy_drop"] == drop
        with sqlite3.connect(home / "mlflow.db") as database:  # as after a kill between the batches
            database.execute("update runs set status = 'RUNNING', end_time = null where run_uuid = ?", (run.info.run_id,))
        database.close()
