"""The tracker on the embedded SQLite store."""

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillhouse.spec.records import SweepFacts, TrialRecord
from stillhouse.tracking import Tracker, locate

RecordMaker = Callable[..., TrialRecord]
FactsMaker = Callable[..., SweepFacts]
RunReader = Callable[..., list[Any]]


def _track(home: Path, facts: SweepFacts, records: list[TrialRecord], artifacts: dict[str, Path] | None = None) -> str | None:
    tracker = Tracker(None, home=home, experiment="tests")
    run_id = tracker.start_sweep(facts)
    for record in records:
        tracker.log_trial(record)
    assert tracker.finish(facts, artifacts or {}, best={"test_accuracy": 0.75})
    tracker.close()
    return run_id


def test_a_sweep_is_one_parent_with_one_child_per_trial(
    home: Path, make_record: RecordMaker, make_facts: FactsMaker, runs_in: RunReader
) -> None:
    parent = _track(home, make_facts(), [make_record(0), make_record(1)])
    children = runs_in(locate(None, home))
    assert [run.info.run_id for run in runs_in(locate(None, home), "sweep")] == [parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent}
    assert {run.data.tags["trial_key"] for run in children} == {"00000000cafe", "00000001cafe"}


def test_a_child_has_the_metrics_that_a_scatter_chart_plots(
    home: Path, make_record: RecordMaker, make_facts: FactsMaker, runs_in: RunReader
) -> None:
    _track(home, make_facts(), [make_record(0)])
    (run,) = runs_in(locate(None, home))
    expected = {
        "test_accuracy": 0.75,
        "validation_accuracy": 0.5,
        "parameters": 1000.0,
        "size_bytes": 4096.0,
        "macs": 2000.0,
        "latency_ms": 0.25,
        "compression_ratio": 10.0,
        "accuracy_drop": 0.125,
    }
    assert expected.items() <= run.data.metrics.items()
    assert run.data.params["temperature"] == "4.0"


def test_a_childs_times_are_the_trials_own(
    home: Path, make_record: RecordMaker, make_facts: FactsMaker, runs_in: RunReader
) -> None:
    _track(home, make_facts(), [make_record(0)])
    (run,) = runs_in(locate(None, home))
    assert (run.info.start_time, run.info.end_time) == (1772366400000, 1772366460000)  # 2026-03-01 12:00 and 12:01 UTC


def test_a_failed_trial_is_a_run_with_status_failed_and_the_reason(
    home: Path, make_record: RecordMaker, make_facts: FactsMaker, runs_in: RunReader
) -> None:
    _track(home, make_facts(), [make_record(0, status="failed", reason="out of memory", curve=[], metrics={})])
    (run,) = runs_in(locate(None, home))
    assert (run.info.status, run.data.tags["reason"]) == ("FAILED", "out of memory")


def test_a_curve_longer_than_a_batch_arrives_whole(home: Path, make_record: RecordMaker, make_facts: FactsMaker) -> None:
    _track(home, make_facts(), [make_record(0, epochs=700)])
    with sqlite3.connect(home / "mlflow.db") as database:
        (count,) = database.execute("select count(*) from metrics where key = 'epoch_train_loss'").fetchone()
    database.close()
    assert count == 700


def test_more_params_than_a_batch_takes_arrive_whole(
    home: Path, make_record: RecordMaker, make_facts: FactsMaker, runs_in: RunReader
) -> None:
    record = make_record(0)
    many = {f"weight_{number}": "x" * 6500 for number in range(130)}
    trial = record.trial.model_copy(update={"hyperparameters": many})
    _track(home, make_facts(), [record.model_copy(update={"trial": trial})])
    (run,) = runs_in(locate(None, home))
    assert sum(name.startswith("weight_") for name in run.data.params) == 130


def test_the_same_sweep_again_finds_its_runs(
    home: Path, make_record: RecordMaker, make_facts: FactsMaker, runs_in: RunReader
) -> None:
    first = _track(home, make_facts(), [make_record(0)])
    second = _track(home, make_facts(), [make_record(0), make_record(1)])
    assert first == second
    assert len(runs_in(locate(None, home))) == 2


def test_sweeps_of_one_name_in_two_homes_stay_apart_in_one_store(
    home: Path, tmp_path: Path, make_record: RecordMaker, make_facts: FactsMaker, runs_in: RunReader
) -> None:
    store = f"sqlite:///{home / 'mlflow.db'}"
    runs = set()
    for other in ("a", "b"):
        tracker = Tracker(store, home=tmp_path / other, experiment="tests")
        runs.add(tracker.start_sweep(make_facts()))
        tracker.log_trial(make_record(0))
        assert tracker.finish(make_facts(), {})
        tracker.close()
    assert len(runs) == 2
    assert len(runs_in(locate(None, home))) == 2


def test_a_changed_record_replaces_its_run(
    home: Path, make_record: RecordMaker, make_facts: FactsMaker, runs_in: RunReader
) -> None:
    _track(home, make_facts(), [make_record(0, status="failed", reason="node lost")])
    _track(home, make_facts(), [make_record(0)])
    (run,) = runs_in(locate(None, home))
    assert (run.info.status, run.data.tags["status"]) == ("FINISHED", "finished")


def test_a_run_left_half_written_is_completed(
    home: Path, make_record: RecordMaker, make_facts: FactsMaker, runs_in: RunReader
) -> None:
    _track(home, make_facts(), [make_record(0)])
    (before,) = runs_in(locate(None, home))
    with sqlite3.connect(home / "mlflow.db") as database:  # as after a kill between the batches
        database.execute("update runs set status = 'RUNNING', end_time = null where run_uuid = ?", (before.info.run_id,))
        database.execute("delete from metrics where key = 'test_accuracy'")
        database.execute("delete from latest_metrics where key = 'test_accuracy'")
    database.close()
    _track(home, make_facts(), [make_record(0)])
    (run,) = runs_in(locate(None, home))
    assert run.data.metrics["test_accuracy"] == 0.75
    assert (run.info.run_id, run.info.status) == (before.info.run_id, "FINISHED")


def test_a_run_left_half_written_of_another_record_is_replaced(
    home: Path, make_record: RecordMaker, make_facts: FactsMaker, runs_in: RunReader
) -> None:
    _track(home, make_facts(), [make_record(0, status="failed", reason="node lost")])
    with sqlite3.connect(home / "mlflow.db") as database:
        database.execute("update runs set status = 'RUNNING', end_time = null where name like '%cafe%'")
    database.close()
    _track(home, make_facts(), [make_record(0)])
    (run,) = runs_in(locate(None, home))
    assert (run.info.status, run.data.tags["status"]) == ("FINISHED", "finished")
    assert "reason" not in run.data.tags


def test_trials_are_compared_with_a_teacher_as_soon_as_it_is_known(
    home: Path, make_record: RecordMaker, make_facts: FactsMaker, runs_in: RunReader
) -> None:
    tracker = Tracker(None, home=home, experiment="tests")
    tracker.start_sweep(make_facts(teachers=[]))
    tracker.know(make_facts())
    tracker.log_trial(make_record(0))
    tracker.drain()
    tracker.close()
    (run,) = runs_in(locate(None, home))
    assert (run.data.metrics["compression_ratio"], run.data.metrics["accuracy_drop"]) == (10.0, 0.125)


def test_the_file_is_whole_when_nobody_writes_any_more(
    home: Path, tmp_path: Path, make_record: RecordMaker, make_facts: FactsMaker, runs_in: RunReader
) -> None:
    _track(home, make_facts(), [make_record(0)])
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copy(home / "mlflow.db", copy)
    assert len(runs_in(locate(None, copy))) == 1


def test_comparisons_are_completed_when_the_teacher_is_measured_at_the_end(
    home: Path, make_record: RecordMaker, make_facts: FactsMaker, runs_in: RunReader
) -> None:
    tracker = Tracker(None, home=home, experiment="tests")
    tracker.start_sweep(make_facts(teachers=[]))
    tracker.log_trial(make_record(0))
    assert tracker.finish(make_facts(), {})
    tracker.close()
    (run,) = runs_in(locate(None, home))
    assert (run.data.metrics["compression_ratio"], run.data.metrics["accuracy_drop"]) == (10.0, 0.125)


def test_spec_and_report_are_kept_with_the_parent_and_hold_no_password(
    home: Path, tmp_path: Path, make_facts: FactsMaker
) -> None:
    table, page = tmp_path / "table.csv", tmp_path / "report.html"
    table.write_text("uri\npostgresql://me:hush@db/x\n")
    page.write_text("<script>/:\\/\\/[a]@/.test(x)</script>")
    facts = make_facts(spec={"tracking": {"uri": "http://me:hush@host"}})
    run_id = _track(home, facts, [], {"page": page, "data/t.csv": table})
    folder = home / "mlartifacts" / str(run_id) / "artifacts"
    assert (folder / "report.html").read_bytes() == page.read_bytes()
    assert (folder / "data" / "t.csv").read_text() == "uri\npostgresql://***@db/x\n"
    assert "http://***@host" in (folder / "spec.yaml").read_text()


def test_an_artifact_that_is_missing_makes_the_end_incomplete(
    home: Path, tmp_path: Path, make_facts: FactsMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = Tracker(None, home=home, experiment="tests")
    tracker.start_sweep(make_facts())
    assert not tracker.finish(make_facts(), {"page": tmp_path / "nowhere.html"})
    tracker.close()
    assert "nowhere.html" in capsys.readouterr().err


def test_the_parent_has_the_summary_and_the_data_set(
    home: Path, make_record: RecordMaker, make_facts: FactsMaker, runs_in: RunReader
) -> None:
    _track(home, make_facts(), [make_record(0), make_record(1, status="failed", reason="x", metrics={})])
    (parent,) = runs_in(locate(None, home), "sweep")
    wanted = {"trials_finished": 1.0, "trials_failed": 1.0, "best_test_accuracy": 0.75, "teacher_big_parameters": 10_000.0}
    assert wanted.items() <= parent.data.metrics.items()
    assert parent.info.status == "FINISHED"
    assert [(item.dataset.name, item.dataset.digest) for item in parent.inputs.dataset_inputs] == [
        ("digits", "0123456789abcdef")
    ]


def test_a_sweep_closed_before_its_end_is_marked_as_killed(home: Path, make_facts: FactsMaker, runs_in: RunReader) -> None:
    tracker = Tracker(None, home=home, experiment="tests")
    tracker.start_sweep(make_facts())
    tracker.close()
    assert [run.info.status for run in runs_in(locate(None, home), "sweep")] == ["KILLED"]


@pytest.mark.slow
def test_a_cold_store_is_made_in_the_home(tmp_path: Path, make_facts: FactsMaker, capfd: pytest.CaptureFixture[str]) -> None:
    assert _track(tmp_path / "new" / "home", make_facts(), []) is not None
    assert (tmp_path / "new" / "home" / "mlflow.db").exists()
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


_DRIVER = """
import sys
from pathlib import Path
from stillhouse.spec.records import SweepFacts
from stillhouse.tracking import Tracker, tracker as module

module.START_TIMEOUT_S = 100.0  # both make the tables, one after the other, on a machine that may be busy
facts = SweepFacts.model_validate_json(sys.argv[2])
tracker = Tracker(None, home=Path(sys.argv[1]), experiment="tests")
print(tracker.start_sweep(facts))
print(tracker.finish(facts, {}))
tracker.close()
"""


@pytest.mark.slow
def test_two_drivers_may_open_one_cold_store_at_the_same_time(tmp_path: Path, make_facts: FactsMaker) -> None:
    drivers = [
        subprocess.Popen(
            [sys.executable, "-c", _DRIVER, str(tmp_path), make_facts(name).model_dump_json()],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("a", "b")
    ]
    answers = [driver.communicate(timeout=120)[0].split() for driver in drivers]
    assert [complete for _, complete in answers] == ["True", "True"]
    assert len({run_id for run_id, _ in answers}) == 2


def test_a_store_of_another_mlflow_version_is_named_and_the_sweep_goes_on(
    home: Path, make_record: RecordMaker, make_facts: FactsMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    with sqlite3.connect(home / "mlflow.db") as database:
        database.execute("update alembic_version set version_num = 'from_the_future'")
    database.close()
    tracker = Tracker(None, home=home, experiment="tests")
    assert tracker.start_sweep(make_facts()) is None
    tracker.log_trial(make_record(0))
    assert not tracker.finish(make_facts(), {})
    tracker.close()
    assert "mlflow db upgrade" in capsys.readouterr().err


def test_a_deleted_experiment_is_not_written_to(
    home: Path, make_facts: FactsMaker, runs_in: RunReader, capsys: pytest.CaptureFixture[str]
) -> None:
    _track(home, make_facts(), [])
    with sqlite3.connect(home / "mlflow.db") as database:
        database.execute("update experiments set lifecycle_stage = 'deleted' where name = 'tests'")
    database.close()
    tracker = Tracker(None, home=home, experiment="tests")
    assert tracker.start_sweep(make_facts()) is None
    tracker.close()
    assert "was deleted" in capsys.readouterr().err


def test_a_pre_existing_store_keeps_what_it_had(home: Path, make_facts: FactsMaker, runs_in: RunReader) -> None:
    from stillhouse.tracking.store import open_client, settings

    with settings():
        client = open_client(locate(None, home))
        mine = client.create_run(client.create_experiment("mine"), run_name="precious").info.run_id
    _track(home, make_facts(), [])
    assert client.get_run(mine).info.run_name == "precious"


def test_a_disk_that_cannot_be_written_costs_the_sweep_nothing(
    tmp_path: Path, make_record: RecordMaker, make_facts: FactsMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    tracker = Tracker(None, home=tmp_path / "file", experiment="tests")
    assert tracker.start_sweep(make_facts()) is None
    tracker.log_trial(make_record(0))
    assert not tracker.finish(make_facts(), {})
    tracker.close()
    assert "warning: tracking:" in capsys.readouterr().err


def test_environment_variables_are_taken_back_and_the_users_own_are_left(
    home: Path, make_facts: FactsMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    before = dict(os.environ)
    tracker = Tracker(None, home=home, experiment="tests")
    tracker.start_sweep(make_facts())
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    tracker.close()
    assert dict(os.environ) == before


def test_no_thread_is_left_behind(home: Path, make_facts: FactsMaker) -> None:
    _track(home, make_facts(), [])
    assert not [thread for thread in threading.enumerate() if thread.name == "stillhouse-tracking"]


def test_a_store_that_moves_with_its_home_is_found_again(
    home: Path, tmp_path: Path, make_record: RecordMaker, make_facts: FactsMaker, runs_in: RunReader
) -> None:
    first = _track(home, make_facts(), [make_record(0)])
    moved = tmp_path / "moved"
    shutil.move(home, moved)
    assert _track(moved, make_facts(), [make_record(0)]) == first
    assert len(runs_in(locate(None, moved))) == 1
