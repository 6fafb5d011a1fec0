"""Teachers and students as LoggedModels, read back by MLflow's own client."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from stillhouse.spec.records import SweepFacts, TrialRecord
from stillhouse.tracking import Tracker, locate, sync
from stillhouse.tracking.external import model_name
from stillhouse.tracking.store import open_client, settings

RecordMaker = Callable[..., TrialRecord]
FactsMaker = Callable[..., SweepFacts]


def logged_models(home: Path, kind: str) -> list[Any]:
    with settings():
        client = open_client(locate(None, home))
        experiment = client.get_experiment_by_name("tests")
        found = client.search_logged_models([experiment.experiment_id])
    return [model for model in found if model.model_type == kind]


def test_a_finished_student_is_an_external_model_with_its_numbers_and_settings(
    home: Path, make_record: RecordMaker, make_facts: FactsMaker
) -> None:
    record = make_record(0, weights="students/a.safetensors", weights_hash="ab12")
    sync(None, home, "tests", make_facts(), [record], {})
    (model,) = logged_models(home, "student")
    assert str(model.status) == "READY"
    assert model.tags["mlflow.model.isExternal"] == "true"
    assert model.tags["weights_hash"] == "ab12"
    assert model.params["temperature"] == "4.0"
    numbers = {metric.key: metric.value for metric in model.metrics}
    assert numbers["test_accuracy"] == 0.75
    assert not any(name.startswith("epoch_") for name in numbers)


def test_a_trial_that_did_not_finish_is_no_model(home: Path, make_record: RecordMaker, make_facts: FactsMaker) -> None:
    records = [make_record(0, status="failed", reason="x"), make_record(1, status="stopped", reason="y")]
    sync(None, home, "tests", make_facts(), records, {})
    assert logged_models(home, "student") == []


def test_writing_again_makes_no_second_model_and_a_new_record_replaces_the_old_one(
    home: Path, make_record: RecordMaker, make_facts: FactsMaker
) -> None:
    for epochs in (3, 3, 4):
        sync(None, home, "tests", make_facts(), [make_record(0, epochs=epochs)], {})
    assert len(logged_models(home, "student")) == 1
    assert len(logged_models(home, "teacher")) == 1


def test_a_teacher_is_a_model_of_the_parent_run(home: Path, make_facts: FactsMaker) -> None:
    done = sync(None, home, "tests", make_facts(), [], {})
    (model,) = logged_models(home, "teacher")
    assert model.source_run_id == done.run_id
    assert {metric.key: metric.value for metric in model.metrics}["teacher_big_test_accuracy"] == 0.875


def test_a_models_name_holds_nothing_that_mlflow_refuses() -> None:
    assert model_name("a/b:c.d%e'f\"g") == "a-b-c-d_e_f_g"


def test_what_stands_in_the_store_is_known_with_its_pages(
    home: Path, make_record: RecordMaker, make_facts: FactsMaker, runs_in: Callable[..., list[Any]]
) -> None:
    tracker = Tracker(None, home=home, experiment="tests")
    parent = tracker.start_sweep(make_facts())
    tracker.log_trial(make_record(0))
    addresses = tracker.drain()
    tracker.close()
    (run,) = runs_in(locate(None, home))
    start = f"http://127.0.0.1:5000/#/experiments/{run.info.experiment_id}/runs/"
    end = "?workflowType=machine_learning"
    assert addresses == {"": f"{start}{parent}{end}", "00000000cafe": f"{start}{run.info.run_id}{end}"}


def test_the_pages_of_a_server_are_named_without_its_password(tmp_path: Path) -> None:
    assert (
        locate("https://me:secret@tracking.example:8443/mlflow/?token=1", tmp_path).pages
        == "https://tracking.example:8443/mlflow"
    )
    assert locate("databricks", tmp_path).pages is None
