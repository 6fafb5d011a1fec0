"""Sweeps on several real nodes of which only the driver's sees the home, while nodes, actors and files are lost."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.cluster_utils import Cluster as Nodes
from ray.core.generated import autoscaler_pb2

import stillhouse
from stillhouse.durable import Damaged
from stillhouse.errors import InfrastructureError, Interrupted
from stillhouse.home_access.home_address import COMMON_VARIABLE, SCRATCH_VARIABLE
from stillhouse.knowledge.fill_log import fill_log
from stillhouse.knowledge.layout import MANIFEST, Layout
from stillhouse.knowledge.store import KnowledgeStore
from stillhouse.spec.records import TrialRecord
from stillhouse.sweep import run as run_module
from stillhouse.sweep.execution.trial_environment import TrialEnvironment
from stillhouse.sweep.home.ledger import Ledger
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.sweep.progress import Progress
from stillhouse.sweep.results.results import Results
from stillhouse.sweep.sweep import Sweep

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# More than the teacher forwards at once, and another view for each epoch: a teacher that is killed has work under way.
TRAIN, VIEWS, EPOCHS, TRIALS = 600, 24, 24, 4
SPEC: dict[str, Any] = {
    "name": "apart",
    "dataset": {"name": "digits", "validation": 80, "options": {"limit": TRAIN + 80}},
    "views": {"policy": [{"crop": {"padding": 1}}], "count": VIEWS},
    "teachers": {"big": {"model": "resnet8", "train": {"epochs": 2}, "resources": {"custom": {"teacher": 1}}}},
    "students": [{"model": "mlp", "hidden": [16]}],
    "methods": {"kd": {"kd_weight": {"uniform": [0.1, 0.9]}}},
    "knowledge": {"way": "cached"},
    "search": {"trials_per_method": TRIALS - 1, "max_epochs": EPOCHS},
    "trial_resources": {"cpu": 1, "custom": {"trial": 1}},
    "max_concurrent_trials": 2,
    # Nobody listens there, which costs a sweep nothing.
    "tracking": {"uri": "http://127.0.0.1:9"},
}
TRIAL = "ResourceTrainable"
"""What Tune makes of the class of a trial's actor."""
NOTICE_S = 2.0
"""How long before its end a node that is taken back hears of it."""


@dataclass
class Site:
    """A head with the driver and the home, and nodes that do not see it: one for teachers, others for trials."""

    nodes: Nodes
    folder: Path
    scratch: dict[str, Path] = field(default_factory=dict)
    teachers: list[Any] = field(default_factory=list)
    trials: list[Any] = field(default_factory=list)

    def add(self, role: str) -> None:
        """Adds a node of this role that does not see the home."""
        scratch = Path(tempfile.mkdtemp(prefix="scratch-", dir=self.folder))
        node = self.nodes.add_node(
            num_cpus=2,
            resources={role: 2},
            env_vars={COMMON_VARIABLE: "0", SCRATCH_VARIABLE: str(scratch)},
        )
        self.scratch[node.node_id] = scratch
        self._of(role).append(node)

    def drain(self, role: str) -> None:
        """Tells Ray that the oldest node of this role will be gone soon, as a cloud does that takes a machine back."""
        preemption = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        deadline_ms = int((time.time() + NOTICE_S) * 1000)
        client = ray._raylet.GcsClient(address=self.nodes.address)
        accepted, reason = client.drain_node(self._of(role)[0].node_id, preemption, "taken back", deadline_ms)
        assert accepted, reason

    def lose(self, role: str) -> None:
        """Kills the oldest node of this role with all its processes."""
        self.nodes.remove_node(self._of(role).pop(0), allow_graceful=False)

    def copies(self, home: Path) -> list[Path]:
        """The folders of living nodes in which they keep what they have of this home."""
        mark = (home / ".mark").read_text()
        alive = [self.scratch[node.node_id] for node in (*self.trials, *self.teachers)]
        return [folder for scratch in alive for folder in scratch.glob(f"stillhouse-*-{mark}")]

    def processes(self, actor: str) -> list[int]:
        """The processes of the living actors whose class has this name; of all drivers of the cluster."""
        alive = self.nodes.global_state.actor_table(actor_id=None, job_id=None, actor_state_name="ALIVE")
        return sorted(int(each["Pid"]) for each in alive.values() if each["ActorClassName"].endswith(actor))

    def _of(self, role: str) -> list[Any]:
        return self.teachers if role == "teacher" else self.trials


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


@pytest.fixture(scope="module", autouse=True)
def _eager_checkpoints() -> Iterator[None]:
    """A checkpoint after every epoch, so that each has one to lose."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "TrialEnvironment", partial(TrialEnvironment, checkpoint_interval_s=0.0))
        yield


class Watch(Progress):
    """Calls back with the number of epochs that trials have reported, and counts how often each trial came to its end."""

    def __init__(
        self,
        on_epoch: Callable[[int], None] = lambda _epochs: None,
        on_end: Callable[[TrialRecord], None] = lambda _record: None,
    ) -> None:
        super().__init__("faults", quiet=True)
        self._on_epoch = on_epoch
        self._on_end = on_end
        self.epochs = 0
        self.notes: list[str] = []
        self.ends: Counter[str] = Counter()

    def trial_epoch(self, key: str, epoch: int, accuracy: float | None) -> None:
        super().trial_epoch(key, epoch, accuracy)
        self.epochs += 1
        self._on_epoch(self.epochs)

    def trial_done(self, record: TrialRecord) -> None:
        super().trial_done(record)
        self.ends[record.trial.key] += 1
        self._on_end(record)

    def note(self, text: str) -> None:
        super().note(text)
        self.notes.append(text)


def prepare(site: Site, home: str) -> Path:
    """The spec; in this home the teacher, but nothing of what it knows, is there already where any sweep trained it."""
    for trained in [] if (site.folder / home).exists() else list(site.folder.glob("undisturbed/teachers")):
        shutil.copytree(trained, site.folder / home / "teachers")
    spec = site.folder / "apart.yaml"
    spec.write_text(yaml.safe_dump(SPEC))
    return spec


def run(site: Site, home: str, watch: Watch) -> Results:
    """The sweep in this home."""
    spec = prepare(site, home)
    return Sweep.from_yaml(spec, home=site.folder / home, address=site.nodes.address, progress=watch).run()


def weights_of(results: Results) -> dict[str, str | None]:
    return {record.trial.key: record.weights_hash for record in results.records}


def filled(home: Path) -> Counter[int]:
    """How many samples the teacher forwarded of each view, by the log of fills."""
    samples: Counter[int] = Counter()
    with suppress(FileNotFoundError):
        for line in fill_log(home / "knowledge").read_text().splitlines():
            if line.endswith("}"):
                samples[json.loads(line)["view"]] += json.loads(line)["rows"]
    return samples


def check(results: Results, undisturbed: Results, mended: Iterable[int] = ()) -> None:
    """Every trial finished, with the bits that it has when nothing happens, and the teacher forwarded each view once.

    Args:
        mended: views that were damaged at home and are whole again.
    """
    assert {record.status: record.reason for record in results.records} == {"finished": None}
    assert weights_of(results) == weights_of(undisturbed)
    assert sorted(results.sweep_home.ledger.keys()) == sorted(weights_of(undisturbed))
    assert {record.trial.key: record for record in results.sweep_home.read_records()}.keys() == weights_of(undisturbed).keys()
    for record in results.records:
        assert (results.sweep_home.folder / str(record.weights)).is_file()
    assert not any((results.sweep_home.folder / "trials").glob("*")), "checkpoints of finished trials are dropped"
    assert filled(results.home) == Counter([*range(VIEWS), *mended] * TRAIN)
    (teacher,) = results.facts.teachers
    assert teacher.samples_forwarded == filled(results.home).total()


@pytest.fixture(scope="module")
def undisturbed(site: Site) -> Results:
    watch = Watch()
    results = run(site, "undisturbed", watch)
    assert any("2 of 3 nodes cannot access the home" in note for note in watch.notes)
    return results


def test_teachers_and_trials_on_nodes_without_the_home_use_its_keeper(site: Site, undisturbed: Results) -> None:
    check(undisturbed, undisturbed)
    (trial_node,) = site.trials
    copies = list(site.scratch[trial_node.node_id].glob("stillhouse-*/knowledge/*/manifest"))
    assert len(copies) == VIEWS, "each view was copied to the node once"


# The driver is killed

LEASE_S = 30.0
COMMAND_LINE = f"""
import runpy
from stillhouse.home_access import leases

# Sooner than usual, so that there is less to wait for.
leases.EXPIRE_S = {LEASE_S}
runpy.run_module("stillhouse.cli", run_name="__main__")
"""
ACTORS = (TRIAL, "TeacherActor", "Keeper")


@contextmanager
def driver(site: Site, home: str) -> Iterator[subprocess.Popen[bytes]]:
    """The command line that runs the sweep in this home, in a process of its own."""
    command = [sys.executable, "-c", COMMAND_LINE, "sweep", str(prepare(site, home)), "--address", site.nodes.address]
    with subprocess.Popen(
        [*command, "--home", str(site.folder / home)],
        cwd=site.folder,
        env={**os.environ, "PYTHONPATH": str(Path(stillhouse.__file__).parents[1])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def records_in(ledger: Ledger) -> dict[str, tuple[bytes, int]]:
    """Content and time of each record, by trial key."""
    return {key: (ledger.path(key).read_bytes(), ledger.path(key).stat().st_mtime_ns) for key in [*ledger.keys()]}


def test_the_driver_is_killed_and_the_same_command_goes_on(site: Site, undisturbed: Results) -> None:
    ledger = SweepHome(site.folder / "driver", SPEC["name"]).ledger
    with driver(site, "driver") as process:
        while not records_in(ledger):
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        actors = {pid for name in ACTORS for pid in site.processes(name)}
        process.kill()
    kept = records_in(ledger)
    assert len(actors) >= len(ACTORS)
    assert 1 <= len(kept) < TRIALS
    check(run(site, "driver", Watch()), undisturbed)
    after = records_in(ledger)
    assert {key: after[key] for key in kept} == kept
    # Others hold leases until they are released, the killed driver's end by themselves; their processes a moment later.
    deadline = time.monotonic() + 4 * LEASE_S
    while left := {
        *(pid for pid in actors if Path(f"/proc/{pid}").exists()),
        *(pid for name in ACTORS for pid in site.processes(name)),
    }:
        assert time.monotonic() < deadline, left
        time.sleep(0.5)


# Nodes and actors are lost


def kill_in_the_middle_of_a_fill(site: Site, home: Path, killed: list[str]) -> None:
    """`kill -9` of the teacher while some rows of a view are in the home and others are not, stopped meanwhile."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not killed:
        time.sleep(0.02)
        for teacher in site.processes("TeacherActor") if filled(home) else []:
            os.kill(teacher, signal.SIGSTOP)
            if any(samples < TRAIN for samples in filled(home).values()):
                os.kill(teacher, signal.SIGKILL)
                killed.append("teacher")
                break
            os.kill(teacher, signal.SIGCONT)


def test_the_teacher_in_the_middle_of_a_fill_and_a_trials_worker_are_killed(site: Site, undisturbed: Results) -> None:
    killed: list[str] = []
    hunter = threading.Thread(target=kill_in_the_middle_of_a_fill, args=(site, site.folder / "actors", killed))

    def on_epoch(epochs: int) -> None:
        if epochs == EPOCHS:
            os.kill(site.processes(TRIAL)[0], signal.SIGKILL)
            killed.append("worker")

    hunter.start()
    results = run(site, "actors", Watch(on_epoch))
    hunter.join()
    assert killed == ["teacher", "worker"]
    check(results, undisturbed)


def test_a_node_with_trials_is_taken_back_and_the_node_with_the_teacher_is_lost(site: Site, undisturbed: Results) -> None:
    lost: list[str] = []

    def lose(role: str) -> None:
        site.lose(role)
        lost.append(role)

    def on_epoch(epochs: int) -> None:
        # The new node first: Ray counts what cannot be placed as lost, and takes its time for it.
        if epochs == 2:
            site.add("teacher")
            lose("teacher")
        if epochs == EPOCHS:
            site.add("trial")
            site.drain("trial")
        if epochs == EPOCHS + 10:
            lose("trial")

    check(run(site, "nodes", Watch(on_epoch)), undisturbed)
    assert lost == ["teacher", "trial"]


# Chaos

MAX_RUNS = 5
SEED_VARIABLE, SEED = "STILLHOUSE_CHAOS_SEED", 20
EVERY_FAULT_ONCE = SEED_VARIABLE not in os.environ
"""A seed of one's own has the frequent faults several times, which takes twice as long."""
ARTIFACTS = Path(__file__).parents[2] / ".artifacts"


class Chaos(threading.Thread):
    """Breaks one thing after another, in an order that the seed shuffles, from the first epoch of the first trial on.

    The next thing is due some epochs after the last one, whatever the sweep is at by then; what cannot be broken at that
    moment, such as a record before any trial has finished, is broken later.
    """

    def __init__(self, site: Site, home: Path, seed: int) -> None:
        super().__init__(daemon=True)
        self._site = site
        self._home = home
        self._random = random.Random(seed)
        self.log: list[str] = [f"{SEED_VARIABLE}={seed}"]
        self.flipped: dict[Path, int] = {}
        self.garbled: Counter[str] = Counter()
        self.count = 0
        self.error: BaseException | None = None
        self._finished: set[str] = set()
        self._over = threading.Event()
        self._changed = threading.Condition()
        self._epochs = 0
        self._interrupting = False
        self._interrupted = False
        self._under_way = False
        often: list[tuple[str, Callable[[], bool], int]] = [
            ("kill -9 of a trial's worker", self._kill_worker, 4),
            ("kill -9 of all trials' workers, a checkpoint is cut off", self._cut_checkpoint, 3),
            ("kill -9 of the teacher's actor", lambda: self._kill("TeacherActor"), 2),
            ("kill -9 of the home's keeper", lambda: self._kill("Keeper"), 2),
            ("kill -9 of the teacher's actor and of the keeper", lambda: self._kill("TeacherActor", "Keeper"), 1),
            ("a node with trials is lost, another one is there", lambda: self._lose("trial"), 1),
            ("a node with trials is taken back, another one is there", lambda: self._lose("trial", notice=True), 1),
            ("the teacher's node is lost, another one is there", lambda: self._lose("teacher"), 1),
            ("a byte of a view at home is flipped", self._flip_view, 3),
            ("a byte of a node's copy of a view is flipped", self._flip_copy, 2),
            ("the driver is interrupted", self._interrupt, 1),
            ("a finished trial's record is garbled, the driver interrupted", self._garble_record, 1),
        ]
        deck = [(words, fault) for words, fault, times in often for _ in range(1 if EVERY_FAULT_ONCE else times)]
        self._random.shuffle(deck)
        self._deck = deck
        self.faults = len(deck)
        self._pace = 0.9 * TRIALS * EPOCHS / self.faults

    # In the sweep's thread

    def begin(self) -> None:
        """A run of the sweep begins."""
        with self._changed:
            self._interrupted = self._interrupting
            self._under_way = True
            self._changed.notify_all()

    def on_epoch(self, _epochs: int) -> None:
        with self._changed:
            self._epochs += 1
            self._changed.notify_all()
            if self._epochs == 1:
                self.start()
            # A sweep must not be over before the last fault.
            few = 1 if self._due < self.faults else 0
            self._changed.wait_for(lambda: self._due - self.count <= few or self._interrupting, timeout=3)
            if self._interrupting:
                self._interrupting = False
                self._changed.notify_all()
                os.kill(os.getpid(), signal.SIGTERM)

    def on_end(self, record: TrialRecord) -> None:
        with self._changed:
            self._finished.add(record.trial.key)

    def broke_off(self, reason: Exception) -> None:
        """A run of the sweep ended; until the next one there is nothing to break."""
        self._under_way = False
        self.note(f"the sweep ended: {reason}")

    def note(self, text: str) -> None:
        self.log.append(f"           {text}")

    def end(self) -> None:
        self._over.set()
        with self._changed:
            self._changed.notify_all()
        if self.ident is not None:
            self.join(60)

    # In the thread of its own

    @property
    def _due(self) -> int:
        """How many faults should have come by now."""
        return min(self.faults, 1 + int((self._epochs - 1) / self._pace))

    def run(self) -> None:
        began = time.monotonic()
        try:
            while self._deck and not self._over.is_set():
                with self._changed:
                    self._changed.wait_for(lambda: (self._due > self.count and self._under_way) or self._over.is_set())
                # Somewhere in an epoch, not always at its end.
                time.sleep(self._random.uniform(0.0, 0.3))
                if (done := next((card for card in self._deck if card[1]()), None)) is not None:
                    self.log.append(f"{time.monotonic() - began:7.1f} s  {done[0]}")
                    self._deck.remove(done)
                    with self._changed:
                        self.count += 1
                        self._changed.notify_all()
        except Exception as error:
            self.error = error

    def _kill(self, *actors: str) -> bool:
        found = [pid for name in actors for pid in self._site.processes(name)[:1]]
        return len(found) == len(actors) and all(kill(pid) for pid in found)

    def _kill_worker(self) -> bool:
        found = self._site.processes(TRIAL)
        return bool(found) and kill(self._random.choice(found))

    def _cut_checkpoint(self) -> bool:
        found = self._site.processes(TRIAL)
        checkpoints = list(self._home.glob("sweeps/*/trials/*/checkpoint"))
        if not (found and checkpoints):
            return False
        # No process is left to write another one after it.
        for pid in found:
            kill(pid)
        return self._spoil(self._random.choice(sorted(checkpoints)), lambda content: content[: len(content) // 2])

    def _lose(self, role: str, *, notice: bool = False) -> bool:
        self._site.add(role)
        if notice:
            self._site.drain(role)
            time.sleep(NOTICE_S)
        self._site.lose(role)
        return True

    def _flip_view(self) -> bool:
        views = [each for each in sealed_views(self._home) if each not in self.flipped]
        if not views:
            return False
        view = self._random.choice(views)
        number = identity_of(view)["view"]
        if not self._spoil(view / "part-000.arrow", self._flip):
            return False
        self.flipped[view] = number
        return True

    def _flip_copy(self) -> bool:
        copies = [view for folder in self._site.copies(self._home) for view in sealed_views(folder)]
        return bool(copies) and self._spoil(self._random.choice(copies) / "part-000.arrow", self._flip)

    def _garble_record(self) -> bool:
        with self._changed:
            finished = sorted(self._finished)
        if not finished or self._interrupted:
            return False
        key = self._random.choice(finished)
        (record,) = self._home.glob(f"sweeps/*/ledger/{key}.record")
        self.garbled[key] += self._spoil(record, self._flip)
        return self._interrupt()

    def _interrupt(self) -> bool:
        with self._changed:
            # The second request of a run would leave the process.
            if self._interrupted:
                return False
            self._interrupting = self._interrupted = True
            self._changed.notify_all()
            # Sent in the sweep's thread, where it is sure that the sweep takes it.
            self._changed.wait_for(lambda: not self._interrupting or self._over.is_set())
        return True

    def _spoil(self, path: Path, damage: Callable[[bytes], bytes]) -> bool:
        try:
            content = path.read_bytes()
            # Renamed into its place: who has the old file mapped has read it already.
            beside = path.with_name(".damaged")
            beside.write_bytes(damage(content))
            beside.replace(path)
        except FileNotFoundError:
            return False
        return True

    def _flip(self, content: bytes) -> bytes:
        place = self._random.randrange(len(content) // 4, len(content) * 3 // 4)
        return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def sealed_views(home: Path) -> list[Path]:
    return sorted(path.parent for path in home.glob(f"knowledge/*/{MANIFEST}"))


def identity_of(view: Path) -> Mapping[str, Any]:
    return Layout.read(view / MANIFEST)[0].identity


def is_whole(view: Path) -> bool:
    try:
        KnowledgeStore(view.parent).open(identity_of(view))
    except Damaged:
        return False
    return True


def test_a_sweep_outlives_every_kind_of_fault_in_random_order_with_the_same_results(
    site: Site, undisturbed: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int(os.environ.get(SEED_VARIABLE) or SEED)
    with capsys.disabled():
        sys.stdout.write(f"\n{SEED_VARIABLE}={seed}\n")
    home = site.folder / "chaos"
    chaos = Chaos(site, home, seed)
    ends: Counter[str] = Counter()
    runs = 0
    try:
        while True:
            runs += 1
            chaos.begin()
            watch = Watch(chaos.on_epoch, chaos.on_end)
            try:
                stormy = run(site, "chaos", watch)
                break
            except (InfrastructureError, Interrupted) as error:
                # The message names the same command to continue.
                chaos.broke_off(error)
                assert runs < MAX_RUNS
            finally:
                ends += watch.ends
    finally:
        chaos.end()
        chaos.note(f"{chaos.count} faults, {runs} runs of the sweep")
        ARTIFACTS.mkdir(exist_ok=True)
        (ARTIFACTS / "chaos.log").write_text("\n".join(chaos.log) + "\n")
    assert chaos.error is None, chaos.error
    assert chaos.count == chaos.faults >= (12 if EVERY_FAULT_ONCE else 20)
    check(stormy, undisturbed, mended=[number for view, number in chaos.flipped.items() if is_whole(view)])
    # Who finished did so once, and once more where its record was garbled.
    assert all(ends[key] <= 1 + chaos.garbled[key] for key in ends), ends
