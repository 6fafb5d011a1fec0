"""The connection of a sweep to its cluster; whole sweeps are in test_end_to_end."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from stillhouse.sweep.cluster import cluster
from stillhouse.sweep.cluster.cluster import Cluster
from stillhouse.sweep.progress import Progress
from stillhouse.sweep.shutdown import ShutdownRequest

# A connection that is made by half


def test_a_connection_that_fails_half_way_is_closed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_home: Path, _max_bytes: None) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    left: list[bool] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: left.append(True))
    monkeypatch.setattr(cluster, "connect", lambda _address, _spec: None)
    monkeypatch.setattr(cluster, "shared_home", full)
    monkeypatch.setattr(Cluster, "_check_placement", lambda _self, _home: None)
    one = SimpleNamespace(cpu=1, num_workers=1)
    spec: Any = SimpleNamespace(name="s", trial_resources=one, knowledge=SimpleNamespace(max_bytes=None))
    ending, progress = ShutdownRequest(tmp_path / "stop"), Progress("s", quiet=True)
    monkeypatch.setattr(ending, "listen", lambda: None)
    with pytest.raises(OSError, match="No space left"):
        Cluster(spec, address="head:6379", home=tmp_path, progress=progress, shutdown=ending)
    assert left == [True]
