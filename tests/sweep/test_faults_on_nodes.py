"""Sweeps on several real nodes of which only the driver's sees the home, while nodes, actors and files are lost."""

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.cluster_utils import Cluster as Nodes
from ray.exceptions import RaySystemError

from stillhouse.errors import InfrastructureError
from stillhouse.sweep import sweep as sweep_module
from stillhouse.sweep.progress import Progress
from stillhouse.sweep.results import Results
from stillhouse.sweep.runner import TrialEnvironment
from stillhouse.sweep.sweep import Sweep
from stillhouse.teachers.homes import COMMON_VARIABLE, SCRATCH_VARIABLE

pytestmark = [pytest.mark.ray, pytest.mark.slow]

TRAIN, VIEWS, EPOCHS = 320, 3, 3
SPEC: dict[str, Any] = {
    "name": "apart",
    "dataset": {"name": "digits", "validation": 80, "options": {"limit": TRAIN + 80}},
    "views": {"policy": [{"crop": {"padding": 1}}], "count": VIEWS},
    "teachers": {"big": {"model": "lenet", "train": {"epochs": 2}, "resources": {"custom": {"teacher": 1}}}},
    "students": [{"model": "mlp", "hidden": [16]}],
    "methods": {"kd": {"kd_weight": {"uniform": [0.1, 0.9]}}},
    "search": {"trials_per_method": 4, "max_epochs": EPOCHS},
    "trial_resources": {"cpu": 1, "custom": {"trial": 1}},
    "max_concurrent_trials": 2,
}


@dataclass
class Site:
    """A head with the driver and the home, and nodes that do not see it: one for teachers, others for trials."""

    nodes: Nodes
    folder: Path
    scratch: dict[str, Path] = field(default_factory=dict)
    teachers: list[Any] = field(default_factory=list)
    trials: list[Any] = field(default_factory=list)

    def add(self, role: str) -> Any:
        """A node of this role that does not see the home."""
        scratch = self.folder / f"scratch-{len(self.scratch)}"
        scratch.mkdir()
        node = self.nodes.add_node(
            num_cpus=2,
            resources={role: 2},
            env_vars={COMMON_VARIABLE: "0", SCRATCH_VARIABLE: str(scratch)},
        )
        self.scratch[node.node_id] = scratch
        (self.teachers if role == "teacher" else self.trials).append(node)
        return node

    def lose(self, role: str) -> None:
        """Kills a node of this role with all its processes."""
        self.nodes.remove_node((self.teachers if role == "teacher" else self.trials).pop(0), allow_graceful=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder, before = tmp_path_factory.mktemp("site"), Path.cwd()
    os.chdir(folder)
    # Nodes are added from a thread too, which may set no signal handlers.
    nodes = Nodes(shutdown_at_exit=False)
    try:
        nodes.add_node(num_cpus=1, include_dashboard=False)
        site = Site(nodes, folder)
        site.add("teacher")
        site.add("trial")
        yield site
    finally:
        ray.shutdown()
        nodes.shutdown()
        os.chdir(before)


class Watch(Progress):
    """Calls back with the number of epochs that trials have reported."""

    def __init__(self, at: Mapping[int, Callable[[], None]]) -> None:
        super().__init__("faults", quiet=True)
        self._at = dict(at)
        self.epochs = 0
        self.notes: list[str] = []

    def trial_epoch(self, key: str, epoch: int, accuracy: float) -> None:
        super().trial_epoch(key, epoch, accuracy)
        self.epochs += 1
        if (act := self._at.pop(self.epochs, None)) is not None:
            act()

    def note(self, text: str) -> None:
        super().note(text)
        self.notes.append(text)


def run(site: Site, home: str, at: Mapping[int, Callable[[], None]] = {}, **changes: Any) -> tuple[Results, Watch]:
    spec = site.folder / f"{home}.yaml"
    spec.write_text(yaml.safe_dump(SPEC | changes))
    watch = Watch(at)
    sweep = Sweep.from_yaml(spec, home=site.folder / home, address=site.nodes.address, progress=watch)
    return sweep.run(), watch


def weights_of(results: Results) -> dict[str, str | None]:
    return {record.trial.key: record.weights_hash for record in results.records}


def check(results: Results, undisturbed: Results) -> None:
    """Every trial finished, with the bits that it has when nothing happens, and the teacher forwarded each view once."""
    assert {record.status for record in results.records} == {"finished"}
    assert weights_of(results) == weights_of(undisturbed)
    for record in results.records:
        assert (results.place.folder / str(record.weights)).is_file()
    assert not any((results.place.folder / "trials").glob("*")), "checkpoints of finished trials are dropped"
    (teacher,) = results.facts.teachers
    assert teacher.samples_forwarded == VIEWS * TRAIN


@pytest.fixture(scope="module")
def undisturbed(site: Site) -> Results:
    results, watch = run(site, "undisturbed")
    assert any("2 of 3 nodes do not see the home" in note for note in watch.notes)
    return results


def test_teachers_and_trials_on_nodes_without_the_home_use_its_keeper(site: Site, undisturbed: Results) -> None:
    check(undisturbed, undisturbed)
    (trial_node,) = site.trials
    copies = list(site.scratch[trial_node.node_id].glob("stillhouse-*/knowledge/*/manifest"))
    assert len(copies) == VIEWS, "each view was copied to the node once"


# Nodes and actors are lost


def kill_process(found: Callable[[], int | None]) -> None:
    """`kill -9` of a process of the site, if there is one now."""
    if (pid := found()) is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def actor_process(name: str) -> Callable[[], int | None]:
    """The process of one of the living actors whose class has this name."""

    def find() -> int | None:
        # Between two runs of a sweep this process has left the cluster.
        with suppress(RaySystemError):
            alive = [each for each in ray._private.state.actors().values() if each["State"] == "ALIVE"]
            return next((int(each["Pid"]) for each in alive if each["ActorClassName"] == name), None)
        return None

    return find


def test_the_teachers_actor_and_a_trials_worker_are_killed(site: Site, undisturbed: Results) -> None:
    results, _ = run(
        site,
        "actors",
        {
            2: lambda: kill_process(actor_process("TeacherActor")),
            4: lambda: kill_process(actor_process("DistillTrial")),
        },
    )
    check(results, undisturbed)


def test_the_node_with_running_trials_and_the_node_with_the_teacher_are_lost(site: Site, undisturbed: Results) -> None:
    def lose(role: str) -> None:
        # The new one first: Ray counts what can not be placed as lost, and takes its time for it.
        site.add(role)
        site.lose(role)

    results, _ = run(site, "nodes", {2: lambda: lose("trial"), 6: lambda: lose("teacher")})
    check(results, undisturbed)
    assert not any((site.folder / "nodes" / "sweeps" / "apart" / "trials").glob("*"))


# Chaos

FAULTS, MOST_RUNS = 20, 6
SEED_VARIABLE = "STILLHOUSE_CHAOS_SEED"
ARTIFACTS = Path(__file__).parents[2] / ".artifacts"


class Chaos(threading.Thread):
    """Breaks something every few moments until it has done so often enough, and notes what."""

    def __init__(self, site: Site, home: Path, seed: int) -> None:
        super().__init__(daemon=True)
        self._site = site
        self._random = random.Random(seed)
        self.log: list[str] = [f"seed {seed}"]
        self.error: BaseException | None = None
        self._lost: list[str] = []
        self.over = threading.Event()
        self._faults: dict[str, Callable[[], bool]] = {
            "kill -9 of a trial's worker": lambda: self._kill("DistillTrial"),
            "kill -9 of the teacher's actor": lambda: self._kill("TeacherActor"),
            "kill -9 of the home's keeper": lambda: self._kill("Keeper"),
            "a node with trials is lost, another one comes": lambda: self._lose("trial"),
            "the teacher's node is lost, another one comes": lambda: self._lose("teacher"),
            "a checkpoint is cut off": lambda: self._spoil(
                home.glob("sweeps/*/trials/*/checkpoint"), lambda content: content[: len(content) // 2]
            ),
            "a byte of a view at home is flipped": lambda: self._spoil(sealed_parts([home]), flip),
            "a byte of a node's copy is flipped": lambda: self._spoil(
                sealed_parts(each for folder in site.scratch.values() for each in folder.iterdir()), flip
            ),
        }
        self._weights = [6, 3, 2, 1, 1, 4, 2, 2]

    @property
    def count(self) -> int:
        return sum(" s  " in line for line in self.log)

    def run(self) -> None:
        began = time.monotonic()
        try:
            while self.count < FAULTS and not self.over.wait(self._random.uniform(0.2, 1.0)):
                (name,) = self._random.choices(list(self._faults), self._weights)
                if self._faults[name]():
                    self.log.append(f"{time.monotonic() - began:7.1f} s  {name}")
        except Exception as error:
            self.error = error

    def _kill(self, actor: str) -> bool:
        pid = actor_process(actor)()
        if pid is None:
            return False
        kill_process(lambda: pid)
        return True

    def _lose(self, role: str) -> bool:
        # A new node takes a while on a machine with two cores: two of each kind are enough.
        if self._lost.count(role) == 2:
            return False
        self._lost.append(role)
        self._site.add(role)
        self._site.lose(role)
        return True

    def _spoil(self, files: Iterable[Path], damage: Callable[[bytes], bytes]) -> bool:
        try:
            path = self._random.choice(sorted(files))
            content = path.read_bytes()
            # Renamed into its place: who has the old file mapped has read it already.
            beside = path.with_name(".damaged")
            beside.write_bytes(damage(content))
            beside.replace(path)
        except (IndexError, FileNotFoundError):
            return False
        return True


def sealed_parts(folders: Iterable[Path]) -> list[Path]:
    return [path.parent / "part-000.arrow" for folder in folders for path in folder.glob("knowledge/*/manifest")]


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.skipif(
    SEED_VARIABLE not in os.environ,
    reason=f"takes minutes and asks for a machine of its own; set {SEED_VARIABLE} to a seed to run it",
)
def test_a_sweep_outlives_twenty_random_faults_with_the_same_results(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    seed = int(os.environ.get(SEED_VARIABLE) or time.time_ns() % 10**6)
    sys.stdout.write(f"{SEED_VARIABLE}={seed}\n")
    eager = partial(TrialEnvironment, checkpoint_interval_s=0.0)
    monkeypatch.setattr(sweep_module, "TrialEnvironment", eager)
    longer: dict[str, Any] = {"search": {"trials_per_method": 6, "max_epochs": 40}, "name": "chaos"}
    calm, _ = run(site, "calm", **longer)
    chaos = Chaos(site, site.folder / "chaos", seed)
    runs = 0
    try:
        chaos.start()
        while True:
            runs += 1
            try:
                stormy, _ = run(site, "chaos", **longer)
                break
            except InfrastructureError as error:
                # The user is told to go on with the same command.
                chaos.log.append(f"           the sweep ended: {error}")
                assert runs < MOST_RUNS
    finally:
        chaos.over.set()
        chaos.join(60)
        ARTIFACTS.mkdir(exist_ok=True)
        (ARTIFACTS / "chaos.log").write_text("\n".join([*chaos.log, f"{runs} runs of the sweep"]) + "\n")
    assert chaos.error is None, chaos.error
    assert chaos.count >= FAULTS
    assert {record.status for record in stormy.records} == {"finished"}
    assert weights_of(stormy) == weights_of(calm)
    (teacher,) = stormy.facts.teachers
    # What was damaged at home is forwarded once more, and nothing else is.
    flipped = sum("view at home" in line for line in chaos.log)
    assert VIEWS * TRAIN <= teacher.samples_forwarded <= (VIEWS + flipped) * TRAIN
