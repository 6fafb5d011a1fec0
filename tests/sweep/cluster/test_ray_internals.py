"""What is used of Ray beyond its public interface exists in the installed Ray, and what happens where it does not."""

import inspect
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray import _private as ray_private
from ray._common.constants import HEAD_NODE_RESOURCE_NAME
from ray._private import ray_constants, services, state, utils, worker
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray.exceptions import RayActorError
from ray.train._internal.storage import StorageContext
from ray.tune.experiment import Trial
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from stillhouse.sweep.cluster import ray_internals
from stillhouse.sweep.cluster.connection import connect
from stillhouse.sweep.cluster.ray_internals import draining_nodes, make_private_token, on_loopback, prefer_node

NODE = "ab" * 28


@pytest.fixture(scope="module")
def _local_ray() -> Iterator[None]:
    connect(None)
    yield
    ray.shutdown()


def test_no_other_module_uses_rays_private_modules() -> None:
    core = Path(ray_internals.__file__).parents[2]
    found = [path.name for path in core.rglob("*.py") if re.search(r"\bray(\.\w+)*\._\w+", path.read_text())]
    assert found == ["ray_internals.py"]


def test_the_names_of_the_jobs_variable_and_of_the_heads_resource_are_rays() -> None:
    assert ray_internals.JOB_VARIABLE == RAY_JOB_CONFIG_JSON_ENV_VAR
    assert ray_internals.HEAD_RESOURCE == HEAD_NODE_RESOURCE_NAME


def test_a_draining_node_is_one_that_rays_state_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(state.state), "get_draining_nodes", lambda _self: {NODE: 0})
    assert draining_nodes() == {NODE}


def test_ray_without_draining_nodes_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(type(state.state), "get_draining_nodes")
    assert draining_nodes() == frozenset()


def test_ray_without_its_private_state_has_no_draining_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ray_private, "state")
    monkeypatch.setitem(sys.modules, "ray._private.state", None)
    assert draining_nodes() == frozenset()


def test_a_new_token_and_an_earlier_one_are_readable_by_their_user_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "ray" / "auth_token"
    make_private_token(path)
    token = path.read_bytes()
    assert len(token) >= 32
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    make_private_token(path)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (token, 0o600)


def test_ray_starts_on_loopback_in_the_context_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", True)
    with on_loopback():
        assert services.get_node_ip_address() == "127.0.0.1"
    assert ray_constants.ENABLE_RAY_CLUSTER is True


def test_ray_without_the_switch_starts_all_the_same_and_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ray_constants, "ENABLE_RAY_CLUSTER")
    with on_loopback():
        assert not hasattr(ray_constants, "ENABLE_RAY_CLUSTER")
    assert not hasattr(ray_constants, "ENABLE_RAY_CLUSTER")


def test_ray_without_its_private_constants_starts_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ray_private, "ray_constants")
    monkeypatch.setitem(sys.modules, "ray._private.ray_constants", None)
    entered = []
    with on_loopback():
        entered.append(True)
    assert entered == [True]


def test_an_actor_prefers_its_node_and_goes_elsewhere_where_that_is_full() -> None:
    strategy = prefer_node(NODE)["scheduling_strategy"]
    assert (strategy.node_id, strategy.soft, strategy._spill_on_unavailable) == (NODE, True, True)
    assert prefer_node("") == {}


def test_ray_that_cannot_leave_a_full_node_chooses_the_node_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(self: NodeAffinitySchedulingStrategy, node_id: str, soft: bool) -> None:
        raise AssertionError("an actor that may not leave a full node would wait for it")

    monkeypatch.setattr(NodeAffinitySchedulingStrategy, "__init__", init)
    assert prefer_node(NODE) == {}


# Words that Ray's errors are recognised by


def test_the_beginnings_of_rays_connection_errors_are_those_that_are_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        utils.check_version_info({"ray_version": "1.0.0", "python_version": "3.8.0"}, "this process", raise_on_mismatch=True)
    assert str(caught.value).startswith(ray_internals.VERSION_MISMATCH)
    assert f'f"{ray_internals.NOT_CONNECTED} to Ray cluster at' in inspect.getsource(worker)


@pytest.mark.ray
@pytest.mark.usefixtures("_local_ray")
def test_ray_reports_the_death_of_a_worker_in_the_words_that_are_recognised() -> None:
    """The other words, of a worker that Ray ended to save the node, need a node without memory."""

    class Dying:
        def die(self) -> None:
            os._exit(1)

    actor = ray.remote(Dying).options(num_cpus=0).remote()
    with pytest.raises(RayActorError) as caught:
        ray.get(actor.die.remote())
    assert ray_internals.WORKER_DEATHS[0] in str(caught.value)


@pytest.mark.ray
@pytest.mark.usefixtures("_local_ray")
def test_tune_writes_its_mark_before_each_error_of_a_trial(tmp_path: Path) -> None:
    storage = StorageContext(storage_path=str(tmp_path), experiment_dir_name="run")
    trial = Trial("none", stub=True, storage=storage)
    trial.init_local_path()
    for message in ("first", "second"):
        trial.handle_error(RuntimeError(message))
    attempts = Path(trial.error_file).read_text().split(ray_internals.TUNE_ATTEMPT)
    assert ["first" in attempt for attempt in attempts] == [False, True, False]
    assert ["second" in attempt for attempt in attempts] == [False, False, True]
