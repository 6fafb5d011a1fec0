"""Teachers that are trained ahead, listed and stopped from the command line, and replicas that fill together in real actors."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.cluster_utils import Cluster as Nodes
from typer.testing import CliRunner

from stillhouse.cli import app
from stillhouse.knowledge.fill_log import count_fills
from stillhouse.spec.load import validate
from stillhouse.sweep.sweep import Sweep
from stillhouse.teachers.actor_registry import running_teachers

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SPEC: dict[str, Any] = {
    "name": "shared",
    "dataset": {"name": "digits", "validation": 100, "options": {"limit": 420, "limit_test": 100}},
    "views": {"policy": ["crop"], "count": 2},
    "teachers": {"big": {"model": "lenet", "train": {"epochs": 1}, "replicas": 2}},
    "students": [{"model": "lenet", "width": 0.5}],
    "methods": {"kd": "defaults"},
    "knowledge": {"way": "cached"},
    "search": {"algorithm": "grid", "max_epochs": 2, "scheduler": "none", "confirm_seeds": 0},
}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    nodes = Nodes()
    try:
        nodes.add_node(num_cpus=2, include_dashboard=False)
        yield nodes.address
    finally:
        ray.shutdown()
        nodes.shutdown()


def run(*arguments: str) -> Any:
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_teachers_are_trained_ahead_shared_by_replicas_and_gone_after_the_sweep(address: str, tmp_path: Path) -> None:
    spec, home = tmp_path / "shared.yaml", tmp_path / "home"
    spec.write_text(yaml.safe_dump(SPEC))
    (trained,) = run("teachers", "train", str(spec), "--home", str(home), "--address", address)
    assert trained["trained_now"]
    assert Path(trained["weights"]).is_file()
    (again,) = run("teachers", "train", str(spec), "--home", str(home), "--address", address)
    assert not again["trained_now"]
    assert again["weights"] == trained["weights"]

    results = Sweep(validate(SPEC), home=home, address=address).run()
    assert {record.status for record in results.records} == {"finished"}
    (card,) = run("teachers", "ls", "--home", str(home))
    assert count_fills(home / "knowledge", card["weights_hash"])["samples"] == 2 * 320, (
        "each view once, whichever replica filled it"
    )

    listed = run("teachers", "ls", "--home", str(home), "--address", address)
    assert [each for each in listed["running"] if each["leases"]] == []
    stop = CliRunner().invoke(app, ["teachers", "stop", "nobody", "--address", address])
    assert stop.exit_code == 2
    assert "no teacher 'nobody' runs at" in stop.stderr


def test_a_teacher_in_use_is_stopped_only_by_force(address: str) -> None:
    from stillhouse.home_access.leases import Leased, LeaseHolder
    from stillhouse.home_access.ray_process import NAMESPACE

    class Stand(Leased):
        def about(self) -> dict[str, Any]:
            return {"name": "big", "status": "stands in", "pid": os.getpid(), "leases": self.leases()}

    ray.init(address=address, namespace=NAMESPACE, log_to_driver=False)
    try:
        options = {"name": "teacher-0", "namespace": NAMESPACE, "lifetime": "detached", "num_cpus": 0, "max_restarts": -1}
        handle = ray.remote(Stand).options(**options).remote(60.0)
        leases = LeaseHolder({"sweep": "mine"})
        leases.hold(handle)
        ray.get(handle.about.remote())
        kept = run("teachers", "stop", "big", "--address", address)
        assert [each["actor"] for each in kept["in_use"]] == ["teacher-0"]
        assert [each["sweep"] for each in kept["in_use"][0]["leases"]] == ["mine"]
        ended = run("teachers", "stop", "--force", "--address", address)
        assert [each["actor"] for each in ended["ended"]] == ["teacher-0"]
        leases.close()
        assert running_teachers() == []
    finally:
        ray.shutdown()
