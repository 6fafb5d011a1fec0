"""How a cluster is joined: what is sent along, inside a job and outside, and the message when it cannot be joined."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.runtime_env.runtime_env import _merge_runtime_env

from stillhouse.errors import InfrastructureError
from stillhouse.provenance import code_facts
from stillhouse.sweep.cluster import connection
from stillhouse.sweep.cluster.connection import connect

JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"


@pytest.fixture
def listening() -> Iterator[str]:
    """An address where something listens that is no cluster."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options that Ray was called with; Ray itself is replaced."""
    calls: list[dict[str, Any]] = []

    def init(**options: Any) -> None:
        folder = options["runtime_env"].get("working_dir")
        calls.append(options | {"sent": sorted(path.name for path in Path(folder).iterdir()) if folder else []})

    monkeypatch.setattr(ray, "init", init)
    return calls


def test_a_driver_at_an_address_sends_its_code_and_tells_its_commit(joined: list[dict[str, Any]]) -> None:
    connect("auto")
    (asked,) = joined
    assert asked["sent"] == ["methods", "platform", "search_spaces", "users"]
    assert asked["runtime_env"]["env_vars"].get("STILLHOUSE_COMMIT") == code_facts()["commit"]
    assert not Path(asked["runtime_env"]["working_dir"]).exists(), "the copy is gone when it is sent"


def test_in_a_job_its_working_directory_and_its_variables_go_first(
    joined: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = {"working_dir": "gcs://_ray_pkg_0.zip", "env_vars": {"PYTHONPATH": "platform", "OMP_WAIT_POLICY": "ACTIVE"}}
    monkeypatch.setenv(JOB, json.dumps({"runtime_env": job}))
    connect("auto")
    ours = joined[0]["runtime_env"]
    assert "working_dir" not in ours
    # Ray gives None when the two contradict each other.
    merged = _merge_runtime_env(job, ours)
    assert merged is not None
    assert merged["working_dir"] == job["working_dir"]
    assert merged["env_vars"]["PYTHONPATH"] == "platform"
    assert merged["env_vars"]["OMP_WAIT_POLICY"] == "ACTIVE"
    assert merged["env_vars"]["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] == "1"


@pytest.mark.parametrize(
    ("mode", "remedy"),
    [
        (None, "if the cluster requires a token, set RAY_AUTH_MODE=token"),
        ("token", "the cluster's token may differ from the one here"),
    ],
)
def test_a_cluster_that_does_not_let_us_in_is_one_sentence_with_the_variable(
    listening: str, mode: str | None, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_options: Any) -> None:
        raise ConnectionError(f"Failed to connect to Ray cluster at {listening}")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with pytest.raises(InfrastructureError, match=f"cannot join the cluster at {listening}: .*{remedy}") as caught:
        connect(listening)
    assert "\n" not in str(caught.value)


def test_another_version_of_ray_is_one_sentence_with_both(listening: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_options: Any) -> None:
        raise RuntimeError(
            "Version mismatch: The cluster was started with:\n    Ray: 2.1.0\n    Python: 3.9.1\nThis process was started "
            "with:\n    Ray: 2.60.0\n    Python: 3.11.2\n"
        )

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(
        InfrastructureError, match=r"Ray: 2\.1\.0 .* Ray: 2\.60\.0 .*; install the cluster's versions"
    ) as caught:
        connect(listening)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "no-such-host.invalid:6379", "127.0.0.1:port", "127.0.0.1:99999999", "head", ":6379"]
)
def test_an_address_where_nothing_listens_is_reported_before_ray_is_called(address: str, joined: list[dict[str, Any]]) -> None:
    with pytest.raises(InfrastructureError, match=f"cannot reach the cluster at {address}: .*; give the address"):
        connect(address)
    assert not joined


def test_only_modules_that_the_spec_names_are_the_users() -> None:
    from stillhouse.spec.load import validate

    spec = validate(
        {
            "name": "own",
            "dataset": {"name": "own_data:make"},
            "students": ["own_nets:tiny", "mlp", "torchvision:resnet18"],
            "teachers": {"big": {"model": "own_nets:large"}},
            "methods": ["scratch"],
        }
    )
    assert list(connection._modules(spec)) == ["own_data", "own_nets"]


def test_an_address_of_the_environment_names_its_variable(
    joined: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(InfrastructureError, match="or unset RAY_ADDRESS, which names it, to start Ray here"):
        connect("127.0.0.1:1")
    assert not joined


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_folder_for_temporary_files_that_is_too_long_names_its_variable(
    variable: str, joined: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(connection, "make_private_token", lambda: None)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(variable, "/" + "x" * 60)
    with pytest.raises(InfrastructureError, match=f"the path in {variable} has 61 bytes.*set {variable} to a shorter folder"):
        connect(None)
    assert not joined
    monkeypatch.setenv(variable, "/tmp")
    connect(None)
    assert len(joined) == 1
