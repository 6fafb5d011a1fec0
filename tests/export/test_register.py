"""A student in MLflow's registry, and MLflow's own server answering with it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stillhouse.errors import InfrastructureError, UsageError
from stillhouse.models.checkpoint_files import read_checkpoint
from stillhouse.models.weights import state_hash
from stillhouse.sweep.results.results import Results
from stillhouse.tracking import ModelAlias, fetch_weights, locate, parse_registration, sync
from stillhouse.tracking.server import log_file, start_server, stop_server, wait_until_healthy
from stillhouse.tracking.store import open_client, settings

LENET, MLP = "aa00000000000001", "ab00000000000002"
SERVER_TIMEOUT_S = 240


@pytest.mark.parametrize("text", ["digits@pareto", "My model 2@best-of_3"])
def test_a_model_and_its_alias_are_read(text: str) -> None:
    name, alias = text.split("@")
    assert parse_registration(text) == ModelAlias(name, alias)
    assert parse_registration(text).uri == f"models:/{text}"


@pytest.mark.parametrize(
    "text",
    ["", "digits", "@pareto", "digits@", " @x", "a/b@x", "a:b@x", "..@x", "a@b@x", "it's@x", "digits@latest", "d@v1", "d@a b"],
)
def test_what_mlflow_would_refuse_is_refused_before_anything_is_written(text: str) -> None:
    with pytest.raises(UsageError, match="--register"):
        parse_registration(text)


class Registered:
    """A home whose trials stand in its store, with the LeNet registered from it."""

    def __init__(self, swept: Any, folder: Path) -> None:
        self.swept = swept
        self.location = locate(None, swept.home)
        results = Results.read(swept.home, "tiny")
        assert sync(None, swept.home, "tiny", results.facts, results.records, {}).failed == 0
        self.first = swept.export(LENET, folder / "first", register="digits@pareto")["registered"]
        self.folder = folder

    def client(self) -> Any:
        from mlflow.tracking import MlflowClient

        with settings():
            open_client(self.location)
            return MlflowClient(self.location.uri, registry_uri=self.location.uri)


@pytest.fixture(scope="module")
def registered(exported: tuple[Any, Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Registered:
    swept, folder = exported[0], tmp_path_factory.mktemp("registered")
    shutil.copytree(swept.home, folder / "home")
    return Registered(type(swept)(folder / "home"), folder)


@pytest.mark.slow
def test_the_alias_leads_to_the_student_with_signature_example_and_card(registered: Registered, tmp_path: Path) -> None:
    import mlflow

    client, first = registered.client(), registered.first
    version = client.get_model_version_by_alias("digits", "pareto")
    assert (first["uri"], first["version"], first["reused"]) == ("models:/digits@pareto", "1", False)
    assert version.tags["weights_hash"] == registered.swept.record().weights_hash
    run = client.get_run(version.run_id)
    assert run.data.tags["trial_key"] == LENET
    assert run.info.status == "FINISHED"
    assert first["model_id"] in [output.model_id for output in run.outputs.model_outputs]
    logged = client.get_logged_model(first["model_id"])
    assert [str(link["version"]) for link in json.loads(logged.tags["mlflow.modelVersions"])] == ["1"]
    assert {metric.key: metric.value for metric in logged.metrics}["test_accuracy"] == pytest.approx(
        registered.swept.record().metrics["test_accuracy"]
    )
    folder = Path(
        mlflow.artifacts.download_artifacts(version.source, dst_path=str(tmp_path), tracking_uri=registered.location.uri)
    )
    assert not list(folder.rglob("*.pkl")) + list(folder.rglob("*.pth"))
    assert (folder / "extra_files" / "README.md").read_text() == (registered.folder / "first" / "README.md").read_text()
    model = mlflow.models.Model.load(str(folder))
    assert [(spec.type, spec.shape) for spec in model.signature.inputs.inputs] == [(np.dtype(np.float32), (-1, 1, 8, 8))]
    assert [(spec.type, spec.shape) for spec in model.signature.outputs.inputs] == [(np.dtype(np.float32), (-1, 10))]
    data = registered.swept.data()
    np.testing.assert_array_equal(model.load_input_example(str(folder)), data.normalise(data.validation.images[:2]).numpy())


@pytest.mark.slow
def test_the_same_student_again_is_the_same_version_with_another_alias(registered: Registered) -> None:
    again = registered.swept.export(LENET, registered.folder / "again", register="digits@smallest")["registered"]
    assert (again["version"], again["model_id"], again["reused"]) == ("1", registered.first["model_id"], True)
    aliases = registered.client().get_registered_model("digits").aliases
    assert {name: str(version) for name, version in aliases.items()} == {"pareto": "1", "smallest": "1"}


@pytest.mark.slow
def test_another_student_becomes_the_next_version_and_takes_the_alias(registered: Registered) -> None:
    other = registered.swept.export(MLP, registered.folder / "other", register="moving@pareto")["registered"]
    assert other["version"] == "1"
    next_one = registered.swept.export(LENET, registered.folder / "other", register="moving@pareto")["registered"]
    assert next_one["version"] == "2"
    assert registered.client().get_model_version_by_alias("moving", "pareto").tags["trial_key"] == LENET


@pytest.mark.slow
def test_a_trial_that_is_not_in_the_store_is_reported_with_the_remedy(
    swept: Any, registered: Registered, tmp_path: Path
) -> None:
    shutil.copy(registered.swept.home / "mlflow.db", swept.home / "mlflow.db")
    with pytest.raises(UsageError, match="write it with: stillhouse sync tiny"):
        swept.export(LENET, tmp_path / "out", register="digits@pareto")
    assert (tmp_path / "out" / "student.onnx").exists()


def test_a_store_that_is_down_costs_the_registration_not_the_export(swept: Any, tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{closed.getsockname()[1]}"
    spec = swept.sweep_home.read_spec() | {"tracking": {"uri": uri}}
    (swept.sweep_home.folder / "spec.json").write_text(json.dumps(spec))
    with pytest.raises(InfrastructureError, match="nothing answers"):
        swept.export(LENET, tmp_path / "out", register="digits@pareto")
    assert (tmp_path / "out" / "student.onnx").exists()


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["models:/digits@pareto", "models:/digits/1"])
def test_a_registered_student_can_teach_another_sweep(
    registered: Registered, reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = read_checkpoint(fetch_weights(reference, None, home=registered.swept.home))
    assert state_hash(weights) == registered.swept.record().weights_hash
    assert not list(tmp_path.iterdir()), "MLflow made a store of its own in the working folder"


@pytest.mark.slow
def test_an_alias_that_nobody_set_is_reported(registered: Registered) -> None:
    with pytest.raises(UsageError, match="MLflow has no 'models:/digits@nobody'"):
        fetch_weights("models:/digits@nobody", None, home=registered.swept.home)


@pytest.mark.slow
def test_mlflows_server_answers_a_request_with_the_students_logits(registered: Registered, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": registered.location.uri,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/digits@pareto"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    log = tmp_path / "serve.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, env=environment, cwd=tmp_path, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        deadline = time.monotonic() + SERVER_TIMEOUT_S
        while not _answers(port):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.3)
        pixels = registered.swept.data().validation.images[:7]
        images = registered.swept.data().normalise(pixels)
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            json.dumps({"inputs": images.tolist()}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            logits = torch.tensor(json.load(answer)["predictions"])
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
    torch.testing.assert_close(logits, registered.swept.logits(pixels), atol=1e-6, rtol=0)


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.mark.slow
def test_a_tracking_server_takes_the_student_too(swept: Any, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    location = locate(None, tmp_path / "server")
    server = start_server(location, port)
    uri = f"http://127.0.0.1:{port}"
    try:
        wait_until_healthy(server, port, log_file(location))
        spec = swept.sweep_home.read_spec() | {"tracking": {"uri": uri}}
        (swept.sweep_home.folder / "spec.json").write_text(json.dumps(spec))
        results = Results.read(swept.home, "tiny")
        assert sync(uri, swept.home, "tiny", results.facts, results.records, {}).failed == 0
        for reused in (False, True):
            done = swept.export(LENET, tmp_path / "out", register="digits@pareto")["registered"]
            assert (done["version"], done["store"], done["reused"]) == ("1", uri, reused)
        weights = fetch_weights("models:/digits@pareto", uri, home=swept.home)
    finally:
        stop_server(server)
    assert weights.name == "student.safetensors"
    assert state_hash(read_checkpoint(weights)) == swept.record().weights_hash
