"""The students of the Pareto front stand in MLflow with their weights, without anybody asking."""

import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stillhouse.models.checkpoint_files import read_checkpoint
from stillhouse.models.weights import state_hash
from stillhouse.sweep.results.mlflow_sync import front_records, store_front, sync_sweep
from stillhouse.sweep.results.results import Results
from stillhouse.sweep.results.trained_students import read_spec
from stillhouse.tracking import locate
from stillhouse.tracking.store import open_client, settings

LENET, MLP = "aa00000000000001", "ab00000000000002"


class Synced:
    """A home whose sweep was written into its own store."""

    def __init__(self, swept: Any) -> None:
        self.swept = swept
        self.front = {record.trial.key for record in front_records(Results.read(swept.home, "tiny"))}
        self.runs, self.students = sync_sweep(Results.read(swept.home, "tiny"))

    def models(self, *, external: bool = False) -> list[Any]:
        with settings():
            client = open_client(locate(None, self.swept.home))
            experiment = client.get_experiment_by_name("tiny")
            found = client.search_logged_models([experiment.experiment_id])
        students = [model for model in found if model.model_type == "student"]
        return [model for model in students if ("mlflow.model.isExternal" in model.tags) == external]

    def fetched(self, model: Any, folder: Path) -> Path:
        import mlflow

        uri = locate(None, self.swept.home).uri
        with settings():
            return Path(mlflow.artifacts.download_artifacts(model.artifact_location, dst_path=str(folder), tracking_uri=uri))


@pytest.fixture(scope="module")
def synced(exported: tuple[Any, Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Synced:
    swept, folder = exported[0], tmp_path_factory.mktemp("synced")
    shutil.copytree(swept.home, folder / "home")
    return Synced(type(swept)(folder / "home"))


@pytest.mark.slow
def test_every_student_of_the_front_is_stored_and_no_other(synced: Synced) -> None:
    assert synced.students.reasons == ()
    assert synced.students.stored == len(synced.front) >= 1
    assert {model.tags["trial_key"] for model in synced.models()} == synced.front
    # Each student once: those of the front with their weights, the others without.
    assert {model.tags["trial_key"] for model in synced.models(external=True)} == {LENET, MLP} - synced.front
    assert len(synced.models()) == len(synced.front)


@pytest.mark.slow
def test_a_stored_student_has_its_weights_a_signature_an_example_and_its_numbers(synced: Synced, tmp_path: Path) -> None:
    import mlflow

    model = next(model for model in synced.models() if model.tags["trial_key"] == LENET)
    assert str(model.status) == "READY"
    record = synced.swept.record()
    assert {metric.key: metric.value for metric in model.metrics}["test_accuracy"] == pytest.approx(
        record.metrics["test_accuracy"]
    )
    folder = synced.fetched(model, tmp_path)
    assert state_hash(read_checkpoint(folder / "extra_files" / "student.safetensors")) == record.weights_hash
    described = mlflow.models.Model.load(str(folder))
    assert [(spec.type, spec.shape) for spec in described.signature.inputs.inputs] == [(np.dtype(np.float32), (-1, 1, 8, 8))]
    pixels = synced.swept.data().validation.images[:5]
    answer = mlflow.pyfunc.load_model(str(folder)).predict(synced.swept.data().normalise(pixels).numpy())
    torch.testing.assert_close(torch.as_tensor(answer), synced.swept.logits(pixels), atol=1e-6, rtol=0)
    example: Any = described.load_input_example(str(folder))
    assert example.shape == (2, 1, 8, 8)


@pytest.mark.slow
def test_writing_again_stores_nothing_and_loads_no_student(synced: Synced, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a student was loaded")

    monkeypatch.setattr("stillhouse.sweep.results.mlflow_sync.load_student", refuse)
    before = {model.model_id for model in synced.models()}
    _, again = sync_sweep(Results.read(synced.swept.home, "tiny"))
    assert (again.stored, again.skipped, again.reasons) == (0, len(synced.front), ())
    assert {model.model_id for model in synced.models()} == before


@pytest.mark.slow
def test_registering_a_stored_student_takes_the_model_that_is_there_and_adds_the_card(synced: Synced, tmp_path: Path) -> None:
    stored = next(model for model in synced.models() if model.tags["trial_key"] == LENET)
    done = synced.swept.export(LENET, tmp_path / "out", register="stored@pareto")["registered"]
    assert (done["model_id"], done["version"], done["reused"]) == (stored.model_id, "1", False)
    assert len(synced.models()) == len(synced.front)
    folder = synced.fetched(stored, tmp_path)
    assert (folder / "extra_files" / "README.md").read_text() == (tmp_path / "out" / "README.md").read_text()


@pytest.mark.slow
def test_damaged_weights_are_a_reason_and_cost_no_other_student(swept: Any, synced: Synced) -> None:
    results = Results.read(swept.home, "tiny")
    first, *rest = front_records(results)
    (results.sweep_home.folder / str(first.weights)).write_bytes(b"not tensors")
    again = Synced(swept)
    assert (again.runs.failed, again.students.stored) == (0, len(rest))
    (reason,) = again.students.reasons
    assert first.trial.key in reason
    assert "\n" not in reason


def test_a_store_that_is_down_is_one_reason_and_nothing_is_loaded(swept: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stillhouse.sweep.results.mlflow_sync.load_student", lambda *_: pytest.fail("a student was loaded"))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{closed.getsockname()[1]}"
    results = Results.read(swept.home, "tiny")
    spec = read_spec(results.sweep_home)
    down = spec.model_copy(update={"tracking": spec.tracking.model_copy(update={"uri": uri})})
    students = store_front(results, down)
    assert students.stored == 0
    (reason,) = students.reasons
    assert "nothing answers" in reason
