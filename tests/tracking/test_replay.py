"""`sync` on the embedded store."""

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillhouse.errors import InfrastructureError
from stillhouse.spec.records import SweepFacts, TrialRecord
from stillhouse.tracking import Tracker, locate, sync

RecordMaker = Callable[..., TrialRecord]
FactsMaker = Callable[..., SweepFacts]
RunReader = Callable[..., list[Any]]


def test_twice_the_same_ledger_gives_the_same_runs(
    home: Path, make_record: RecordMaker, make_facts: FactsMaker, runs_in: RunReader
) -> None:
    records = [make_record(0), make_record(1, status="failed", reason="x"), make_record(2, status="stopped")]
    first = sync(None, home, "tests", make_facts(), records, {})
    runs = {run.info.run_id: (run.data.metrics, run.data.params) for run in runs_in(locate(None, home))}
    second = sync(None, home, "tests", make_facts(), records, {})
    assert (first.created, first.skipped, first.failed) == (3, 0, 0)
    assert (second.created, second.skipped, second.failed) == (0, 3, 0)
    assert {run.info.run_id: (run.data.metrics, run.data.params) for run in runs_in(locate(None, home))} == runs


def test_what_the_tracker_wrote_is_not_written_again(home: Path, make_record: RecordMaker, make_facts: FactsMaker) -> None:
    tracker = Tracker(None, home=home, experiment="tests")
    run_id = tracker.start_sweep(make_facts())
    tracker.log_trial(make_record(0))
    assert tracker.finish(make_facts(), {})
    tracker.close()
    result = sync(None, home, "tests", make_facts(), [make_record(0), make_record(1)], {})
    assert (result.created, result.skipped, result.run_id) == (1, 1, run_id)


def test_runs_of_one_trial_that_two_requests_made_become_one(
    home: Path, make_record: RecordMaker, make_facts: FactsMaker, runs_in: RunReader
) -> None:
    sync(None, home, "tests", make_facts(), [make_record(0)], {})
    (run,) = runs_in(locate(None, home))
    from stillhouse.tracking.store import open_client, settings

    with settings():
        tags = {name: run.data.tags[name] for name in ("trial_key", "role", "mlflow.parentRunId")}
        open_client(locate(None, home)).create_run(run.info.experiment_id, tags=tags)
    result = sync(None, home, "tests", make_facts(), [make_record(0)], {})
    assert [run.info.run_id for run in runs_in(locate(None, home))] == [run.info.run_id]
    assert result.skipped == 1


def test_a_store_that_cannot_be_opened_is_an_infrastructure_error(
    tmp_path: Path, free_port: int, make_facts: FactsMaker
) -> None:
    with pytest.raises(InfrastructureError, match="nothing answers") as caught:
        sync(f"http://me:hush@127.0.0.1:{free_port}", tmp_path, "tests", make_facts(), [], {})
    assert "hush" not in str(caught.value)


def test_a_missing_report_is_a_reason_and_costs_no_trial(
    home: Path, tmp_path: Path, make_record: RecordMaker, make_facts: FactsMaker
) -> None:
    result = sync(None, home, "tests", make_facts(), [make_record(0)], {"page": tmp_path / "none.html"})
    assert (result.created, result.failed) == (1, 0)
    assert "none.html" in result.reasons[0]


def test_a_store_of_a_newer_mlflow_is_said_in_one_sentence(
    home: Path, make_record: RecordMaker, make_facts: FactsMaker
) -> None:
    with contextlib.closing(sqlite3.connect(home / "mlflow.db")) as database:
        database.execute("update alembic_version set version_num = 'ffffffffffff'")
        database.commit()
    with pytest.raises(InfrastructureError, match=r"cannot write to the tracking store .*mlflow.db: .+"):
        sync(None, home, "tests", make_facts(), [make_record(0)], {})


def test_numbers_that_were_measured_later_are_added_to_the_run_that_is_there(
    home: Path, make_record: RecordMaker, make_facts: FactsMaker, runs_in: RunReader
) -> None:
    record = make_record(0)
    sync(None, home, "tests", make_facts(), [record], {})
    (before,) = runs_in(locate(None, home))
    later = record.model_copy(update={"metrics": record.metrics | {"onnx_latency_ms": 0.125, "robustness_blur": 0.5}})
    results = [sync(None, home, "tests", make_facts(), [later], {}) for _ in range(2)]
    (after,) = runs_in(locate(None, home))
    assert after.info.run_id == before.info.run_id
    assert after.data.metrics == before.data.metrics | {"onnx_latency_ms": 0.125, "robustness_blur": 0.5}
    assert [(result.created, result.skipped) for result in results] == [(1, 0), (0, 1)]


def test_a_teacher_that_was_evaluated_anew_does_not_spoil_the_runs_of_its_students(
    home: Path, make_record: RecordMaker, make_facts: FactsMaker, runs_in: RunReader
) -> None:
    """The record holds the comparison with the teacher as the trial knew it: a model takes one value of a name and time."""
    metrics = make_record(0).metrics | {"accuracy_drop": 0.120, "compression_ratio": 9.0}
    result = sync(None, home, "tests", make_facts(), [make_record(0, metrics=metrics)], {})
    assert (result.created, result.failed, result.reasons) == (1, 0, ())
    (run,) = runs_in(locate(None, home))
    # The teacher has 10,000 parameters and 0.875, the student 1,000 and 0.75.
    assert (run.data.metrics["accuracy_drop"], run.data.metrics["compression_ratio"]) == (0.125, 10.0)


def test_an_incomplete_run_whose_data_were_moved_is_completed(
    home: Path, make_record: RecordMaker, make_facts: FactsMaker, runs_in: RunReader
) -> None:
    from stillhouse.tracking.store import open_client, settings

    def facts(root: str) -> SweepFacts:
        return make_facts(spec={"name": "tiny", "dataset": {"name": "digits", "root": root}})

    sync(None, home, "tests", facts("/before"), [make_record(0)], {})
    (run,) = runs_in(locate(None, home))
    with settings():
        open_client(locate(None, home)).update_run(run.info.run_id, status="RUNNING")
    result = sync(None, home, "tests", facts("/after"), [make_record(0)], {})
    assert (result.created, result.reasons) == (1, ())
    (run,) = runs_in(locate(None, home))
    assert (run.info.status, run.data.params["dataset.root"]) == ("FINISHED", "/before")


def test_a_student_that_was_stored_keeps_its_model_when_its_run_is_completed(
    home: Path, make_record: RecordMaker, make_facts: FactsMaker, runs_in: RunReader
) -> None:
    from stillhouse.tracking.external import EXTERNAL_TAG
    from stillhouse.tracking.store import open_client, settings

    sync(None, home, "tests", make_facts(), [make_record(0)], {})
    (run,) = runs_in(locate(None, home))
    with settings():
        client = open_client(locate(None, home))
        (model,) = client.search_logged_models([run.info.experiment_id], filter_string=f"source_run_id = '{run.info.run_id}'")
        client.delete_logged_model_tag(model.model_id, EXTERNAL_TAG)
        client.update_run(run.info.run_id, status="RUNNING")
    sync(None, home, "tests", make_facts(), [make_record(0)], {})
    with settings():
        condition = f"source_run_id = '{run.info.run_id}'"
        found = open_client(locate(None, home)).search_logged_models([run.info.experiment_id], filter_string=condition)
    assert [each.model_id for each in found] == [model.model_id]
