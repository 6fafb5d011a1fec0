"""Sweeps and checks on a cluster of several real nodes on this machine, reached by its address."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.cluster_utils import Cluster as Nodes
from typer.testing import CliRunner

import stillhouse
from stillhouse.cli import app
from stillhouse.doctor import Finding
from stillhouse.errors import InfrastructureError
from stillhouse.provenance import code_facts
from stillhouse.sweep.cluster.cluster import Cluster
from stillhouse.sweep.cluster.node_checks import check_nodes, findings_of, nodes_without_home, probe_nodes
from stillhouse.sweep.cluster.node_probe import versions
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.sweep.planning.trial_keys import make_views
from stillhouse.sweep.progress import Progress
from stillhouse.sweep.shutdown import ShutdownRequest
from stillhouse.sweep.sweep import Sweep
from stillhouse.sweep.teacher_setup import teacher_definition

pytestmark = [pytest.mark.ray, pytest.mark.slow]

OWN_NET = """
import ray
import torch
from pathlib import Path
from own_layers import flat

def tiny(num_classes, input_shape, notes=""):
    if notes and ray.is_initialized():
        with Path(notes).open("a") as file:
            file.write(f"{ray.get_runtime_context().get_node_id()} {torch.get_num_threads()}\\n")
    return flat(num_classes, input_shape)
"""
OWN_LAYERS = """
from math import prod
from torch import nn

def flat(num_classes, input_shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(prod(input_shape), 16), nn.ReLU(), nn.Linear(16, num_classes))
"""
OWN_METHOD = """
from dataclasses import dataclass
from stillhouse.distill.method import Card, Method

@dataclass(frozen=True, kw_only=True)
class Plain(Method):
    card = Card(title="Plain training", arxiv=None, family="control")
"""


@dataclass
class Site:
    """A cluster and the folder in which its driver works; `elsewhere` is where the worker of the second node works."""

    nodes: Nodes
    folder: Path
    elsewhere: Path
    second: Any
    ids: dict[str, str]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder, elsewhere = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("elsewhere")
    before = Path.cwd()
    nodes = Nodes()
    try:
        os.chdir(folder)
        nodes.add_node(num_cpus=1, include_dashboard=False, labels={"pool": "head"})
        os.chdir(elsewhere)
        second = nodes.add_node(num_cpus=2, labels={"pool": "trial"}, resources={"slot": 2})
        os.chdir(folder)
        third = nodes.add_node(num_cpus=1, num_gpus=1, labels={"pool": "teacher"})
        assert nodes.head_node is not None
        ids = {"head": nodes.head_node.node_id, "trial": second.node_id, "teacher": third.node_id}
        yield Site(nodes, folder, elsewhere, second, ids)
    finally:
        ray.shutdown()
        nodes.shutdown()
        os.chdir(before)


@pytest.fixture
def joined(site: Site) -> Iterator[None]:
    """This process as a driver whose workers keep the working folder of their node."""
    ray.init(address=site.nodes.address, log_to_driver=False, namespace="stillhouse")
    yield
    ray.shutdown()


def of_node(findings: list[Finding], node_id: str) -> dict[str, Finding]:
    return {finding.what: finding for finding in findings if node_id[:6] in finding.node}


def test_a_sweep_at_an_address_takes_its_code_along_and_places_teachers_and_trials(site: Site) -> None:
    own = site.folder / "own"
    (own / "methods").mkdir(parents=True)
    (own / "own_nets.py").write_text(OWN_NET)
    (own / "own_layers.py").write_text(OWN_LAYERS)
    (own / "methods" / "plain.py").write_text(OWN_METHOD)
    notes = {name: site.folder / f"{name}-nodes" for name in ("teacher", "student")}
    spec = {
        "name": "placed",
        "dataset": {"name": "digits", "validation": 80, "options": {"limit": 240}},
        "teachers": {
            "big": {
                "model": "own_nets:tiny",
                "notes": str(notes["teacher"]),
                "train": {"epochs": 1},
                "resources": {"gpu": 1, "labels": {"pool": "teacher"}},
            }
        },
        "students": [{"model": "own_nets:tiny", "name": "own", "notes": str(notes["student"])}],
        "methods": {"scratch": {}, "plain": {}, "kd": "defaults"},
        "method_paths": ["methods"],
        "search": {"trials_per_method": 1, "max_epochs": 1},
        "trial_resources": {"cpu": 2, "custom": {"slot": 1}, "labels": {"pool": "trial"}},
    }
    path = own / "placed.yaml"
    path.write_text(yaml.safe_dump(spec))
    # As the command line does, from a folder that no worker shares.
    command = [sys.executable, "-m", "stillhouse.cli", "sweep", str(path), "--address", site.nodes.address]
    done = subprocess.run(
        [*command, "--home", str(site.folder / "home"), "--json"],
        cwd=site.folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["trials"] == {"planned": 3, "finished": 3, "failed": 0, "reused": 0}
    # The teacher's actor builds its network, and so do trials that look at it; students are built by trials alone.
    assert set(notes["student"].read_text().splitlines()) == {f"{site.ids['trial']} 2"}, "with as many threads as cores"
    assert site.ids["teacher"] in notes["teacher"].read_text().split()
    here = code_facts()
    for record in SweepHome(site.folder / "home", "placed").read_records():
        assert record.code["version"] == stillhouse.__version__
        assert record.code["commit"] == here["commit"]
        assert "runtime_resources" in str(record.code["package_path"]), "the checkout's own code came along"


def test_a_home_that_only_some_nodes_see_is_found(site: Site, joined: None) -> None:
    # The same path is another folder for every process whose working folder is another.
    home = Path("/proc/self/cwd/home")
    for folder in (site.folder, site.elsewhere):
        (folder / "home").mkdir(exist_ok=True)
    (apart,) = nodes_without_home(probe_nodes(home))
    assert site.ids["trial"][:6] in apart.node
    fact = {finding.what: finding for finding in findings_of(apart, versions(), "")}["home"].fact
    assert fact.startswith(f"node {apart.node} does not share the home {home}: it does not read what is written here")
    assert "\n" not in fact


def test_a_node_with_another_version_is_found_and_holds_a_sweep_back(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "torchvision-0.1.2.dist-info"
    old.mkdir()
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.1.2\n")
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        node = site.nodes.add_node(num_cpus=1)
    try:
        ray.init(address=site.nodes.address, log_to_driver=False, namespace="stillhouse")
        with pytest.raises(
            InfrastructureError, match=rf"node .*{node.node_id[:6]}.* has torchvision 0\.1\.2 .*; install the same"
        ):
            check_nodes(site.folder / "home")
    finally:
        ray.shutdown()
        site.nodes.remove_node(node)
        # Until Ray knows that it is gone, a driver on this machine may be attached to it.
        site.nodes.wait_for_nodes()


def test_the_doctor_makes_every_check_on_every_node_and_fails_for_a_gpu_that_cannot_be_used(site: Site) -> None:
    runner = CliRunner()
    done = runner.invoke(app, ["doctor", "--address", site.nodes.address, "--home", str(site.folder / "home"), "--json"])
    assert done.exit_code == 4
    assert done.stdout, done.stderr
    findings = [Finding(**finding) for finding in json.loads(done.stdout)]
    for name, node_id in site.ids.items():
        found = of_node(findings, node_id)
        assert set(found) == {"versions", "home", "mlflow", "gpus", "token", "clock"}
        # The GPU of the teacher's node is made up.
        assert [what for what, finding in found.items() if not finding.good] == (["gpus"] if name == "teacher" else [])
    assert not list((site.folder / "home").glob(".doctor*")), "the probes are gone"


def test_an_impossible_request_ends_the_sweep_with_a_sentence_before_anything_starts(site: Site, tmp_path: Path) -> None:
    spec = tmp_path / "large.yaml"
    spec.write_text(
        yaml.safe_dump(
            {
                "name": "large",
                "dataset": {"name": "digits", "validation": 80, "options": {"limit": 240}},
                "students": ["mlp"],
                "methods": ["scratch"],
                "search": {"trials_per_method": 1, "max_epochs": 1},
                "trial_resources": {"cpu": 64},
            }
        )
    )
    sweep = Sweep.from_yaml(spec, home=site.folder / "home", address=site.nodes.address)
    with pytest.raises(InfrastructureError, match=r"trial_resources\.cpu must be <= 2, .* the largest node has, got 64"):
        sweep.run()
    assert not sweep.sweep_home.read_records()


def test_a_plan_at_an_address_is_measured_and_placed_there_and_nothing_else_starts(site: Site, tmp_path: Path) -> None:
    spec = tmp_path / "planned.yaml"
    spec.write_text(
        yaml.safe_dump(
            {
                "name": "planned",
                "dataset": {"name": "digits", "validation": 80, "options": {"limit": 240}},
                "teachers": {"big": {"model": "lenet", "train": {"epochs": 1}, "resources": {"cpu": 1}}},
                "students": ["mlp"],
                "methods": {"scratch": {}, "kd": "defaults"},
                "search": {"trials_per_method": 1, "max_epochs": 1},
                "trial_resources": {"cpu": 1, "labels": {"pool": "trial"}},
            }
        )
    )
    # A node that another test took away may be counted for a while.
    site.nodes.wait_for_nodes()
    command = ["sweep", str(spec), "--home", str(tmp_path / "home"), "--address", site.nodes.address, "--dry-run", "--measure"]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    # The node for trials has two cores, and the teacher, which may go anywhere, goes elsewhere.
    assert document["placement"]["trials_at_once"] == 2
    assert (document["placement"]["nodes"], document["placement"]["problems"]) == (3, [])
    assert document["estimate"]["measured"] == 1
    assert document["estimate"]["trial_hours"] > 0 < document["estimate"]["teacher_hours"]
    assert not (tmp_path / "home" / "sweeps").exists()


def test_a_teacher_that_may_go_anywhere_goes_where_the_plan_puts_it(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "apart.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "name": "apart",
                "dataset": {"name": "digits", "validation": 80, "options": {"limit": 240}},
                "teachers": {"big": {"model": "mlp", "train": {"epochs": 1}, "resources": {"cpu": 1}}},
                "students": ["mlp"],
                "methods": ["scratch"],
                # On every node but one, which is left for the teacher.
                "trial_resources": {"cpu": 1, "labels": {"pool": "in(trial, teacher)"}},
            }
        )
    )
    sweep = Sweep.from_yaml(path, home=tmp_path / "home")
    definition = teacher_definition("big", sweep.spec, sweep.data(), tmp_path / "home")
    place = Cluster(
        sweep.spec,
        address=site.nodes.address,
        home=tmp_path / "home",
        progress=Progress("apart", quiet=True),
        shutdown=ShutdownRequest(tmp_path / "stop"),
    )
    with place as cluster:
        cluster.share(sweep.data())
        (teacher,) = cluster.start_teachers([definition], sweep.data(), make_views(sweep.spec, sweep.data()))
        assert ray.get(teacher.handle.about.remote())["node"] == site.ids["head"]


def test_an_address_that_does_not_answer_is_said_at_once(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["doctor", "--address", "127.0.0.1:1", "--home", str(tmp_path)])
    assert done.exit_code == 4
    assert "cannot reach the cluster at 127.0.0.1:1: Connection refused" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
