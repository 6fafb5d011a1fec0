"""How the death of Ray's servers is noticed, for a Ray of this process and for a cluster that it joined."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stillhouse.errors import InfrastructureError
from stillhouse.sweep.cluster import ray_watch
from stillhouse.sweep.cluster.ray_internals import RayServers
from stillhouse.sweep.cluster.ray_watch import RayWatch
from stillhouse.sweep.shutdown import ShutdownRequest

Start = Callable[[], "subprocess.Popen[bytes]"]


@pytest.fixture
def start() -> Iterator[Start]:
    started = []

    def sleeper() -> "subprocess.Popen[bytes]":
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"]))
        return started[-1]

    yield sleeper
    for process in started:
        process.kill()
        process.wait()


def watch_until_failed(servers: RayServers, shutdown: ShutdownRequest, timeout_s: float = 10) -> None:
    """Watches, and waits as a sweep does that is in the middle of its work."""
    with shutdown:
        watch = RayWatch(servers, shutdown)
        try:
            time.sleep(timeout_s)
        finally:
            watch.stop()


@pytest.mark.parametrize("name", ["gcs_server", "raylet"])
def test_a_dead_server_ends_the_sweep_with_a_sentence_and_the_other_processes(tmp_path: Path, start: Start, name: str) -> None:
    essential, other = {"gcs_server": start(), "raylet": start()}, start()
    servers = RayServers(essential=essential, others=(other,), raylet_socket=None, gcs_address=None, session=tmp_path)
    shutdown = ShutdownRequest(tmp_path / "stop", remedy="continue with: resume")
    threading.Timer(0.5, essential[name].kill).start()
    with pytest.raises(InfrastructureError, match=f"process {name} ended; its logs are in {tmp_path}.*; continue with: resume"):
        watch_until_failed(servers, shutdown)
    assert all(process.wait(5) != 0 for process in (*essential.values(), other))


def test_a_sweep_that_leaves_ray_is_not_told_of_its_end(tmp_path: Path, start: Start) -> None:
    servers = RayServers(essential={"raylet": start()}, others=(), raylet_socket=None, gcs_address=None, session=tmp_path)
    with ShutdownRequest(tmp_path / "stop") as shutdown:
        watch = RayWatch(servers, shutdown)
        watch.stop()
        servers.essential["raylet"].kill()
        time.sleep(3 * ray_watch._LOOK_S)
    assert not shutdown.failed


def test_a_joined_cluster_is_lost_with_the_raylet_of_this_node(tmp_path: Path) -> None:
    path = tmp_path / "raylet"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    servers = RayServers(essential={}, others=(), raylet_socket=str(path), gcs_address=None, session=tmp_path)
    shutdown = ShutdownRequest(tmp_path / "stop")
    threading.Timer(1.0, listener.close).start()
    with pytest.raises(InfrastructureError, match="the raylet of this node ended"):
        watch_until_failed(servers, shutdown)


def test_a_head_that_is_away_for_a_moment_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_watch, "GCS_TIMEOUT_S", 1.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    servers = RayServers(essential={}, others=(), raylet_socket=None, gcs_address=address, session=tmp_path)
    shutdown = ShutdownRequest(tmp_path / "stop")
    began = time.monotonic()
    with pytest.raises(InfrastructureError, match=f"the head of the cluster at {address} is not reachable"):
        watch_until_failed(servers, shutdown)
    assert time.monotonic() - began > 1.5


def test_the_second_ctrl_c_kills_the_processes_of_ray(tmp_path: Path, start: Start) -> None:
    raylet = start()
    servers = RayServers(essential={"raylet": raylet}, others=(), raylet_socket=None, gcs_address=None, session=tmp_path)
    with ShutdownRequest(tmp_path / "stop") as shutdown:
        watch = RayWatch(servers, shutdown)
        watch._over.set()
        shutdown.before_end()
        assert raylet.wait(5) == -9
        watch.stop()
