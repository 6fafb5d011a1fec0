"""A sweep interrupted, starved of disk, garbled, extended, retried and forked; one Ray for all, the driver in this process."""

import http.server
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from stillhouse.errors import DiskFullError, InfrastructureError, Interrupted, UsageError
from stillhouse.spec.records import Trial
from stillhouse.sweep import run as run_module
from stillhouse.sweep.execution.trial_environment import TrialEnvironment
from stillhouse.sweep.home.manage import stop_sweep
from stillhouse.sweep.home.status import StatusReader
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.sweep.progress import Progress
from stillhouse.sweep.results.mlflow_sync import sync_sweep
from stillhouse.sweep.results.results import Results
from stillhouse.sweep.sweep import Sweep
from stillhouse.tracking import locate
from stillhouse.tracking.server import log_file, start_server, stop_server, wait_until_healthy
from stillhouse.workers import environment_of_workers

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SLOW_S = 0.1
# Long enough that a request arrives in the middle of a trial and of the teacher's training.
EPOCHS, TEACHER_EPOCHS, SAMPLES = 150, 60, 320
SPEC: dict[str, Any] = {
    "name": "life",
    "dataset": {"name": "digits", "validation": 80, "options": {"limit": SAMPLES + 80}},
    "views": {"policy": [{"crop": {"padding": 1}}], "count": 2},
    "teachers": {"big": {"model": "lenet", "train": {"epochs": TEACHER_EPOCHS}}},
    "students": [{"model": "mlp", "hidden": [16]}],
    "methods": {"scratch": {"label_smoothing": {"uniform": [0.0, 0.3]}}, "kd": {"temperature": 4.0}},
    "search": {"trials_per_method": 3, "max_epochs": EPOCHS},
    "max_concurrent_trials": 2,
}
ALONE: dict[str, Any] = {"teachers": {}, "methods": {"scratch": SPEC["methods"]["scratch"]}, "max_concurrent_trials": 1}
"""The same controls without anything that asks a teacher: started in a few seconds."""
NOWHERE = {"uri": "http://127.0.0.1:9"}
"""A tracking server that is down, which costs a sweep nothing."""
FEW: dict[str, Any] = {"search": {"trials_per_method": 1, "max_epochs": EPOCHS}, "tracking": NOWHERE}
"""The first trial of each method."""
SHORT: dict[str, Any] = {**ALONE, "search": {"trials_per_method": 3, "max_epochs": 20}}


def write_spec(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump(SPEC | changes))
    return path


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        namespace="stillhouse",
        runtime_env={"env_vars": dict(environment_of_workers())},
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def undisturbed(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("undisturbed")
    return Sweep.from_yaml(write_spec(folder / "life.yaml"), home=folder / "home").run()


@pytest.fixture(scope="module")
def alone(undisturbed: Results) -> dict[str, str | None]:
    """Weights of the controls, which need no teacher."""
    return weights_of(record for record in undisturbed.records if record.trial.method == "scratch")


@pytest.fixture
def copy(undisturbed: Results, tmp_path: Path) -> SweepHome:
    """A home of its own that holds the undisturbed sweep."""
    shutil.copytree(undisturbed.home, tmp_path / "home")
    return SweepHome(tmp_path / "home", "life")


def weights_of(records: Any) -> dict[str, str | None]:
    return {record.trial.key: record.weights_hash for record in records}


def stamps(sweep_home: SweepHome) -> dict[str, tuple[int, int]]:
    """Inode and time of every record: writing one again changes both."""
    return {path.stem: (path.stat().st_ino, path.stat().st_mtime_ns) for path in sweep_home.ledger.folder.glob("*.record")}


@dataclass
class Events(Progress):
    """Counts what happens, and does `act` at the first event called `at`."""

    at: str = ""
    act: Callable[[], None] = lambda: None
    started: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    acted: bool = False

    def __post_init__(self) -> None:
        super().__init__("life", quiet=True)

    def note(self, text: str) -> None:
        self.notes.append(text)
        if " cached: " in text:
            self._event("cached")

    def teacher(self, name: str, text: str) -> None:
        if "epoch" in text:
            self._event("teacher")

    def trial_started(self, trial: Trial) -> None:
        super().trial_started(trial)
        if trial.key in self.started:
            self._event("again")
        self.started.append(trial.key)

    def trial_epoch(self, key: str, epoch: int, accuracy: float | None) -> None:
        super().trial_epoch(key, epoch, accuracy)
        self._event("epoch")

    def _event(self, name: str) -> None:
        if name == self.at and not self.acted:
            self.acted = True
            self.act()


# Ended from outside


@dataclass
class Interruptions:
    """What three runs of one sweep left: ended in the teacher's training, in the trials, and not at all."""

    sweep_home: SweepHome
    sentences: list[str]
    teacher_checkpoints: int
    answers: list[bool]
    events: Events
    kept: dict[str, tuple[int, int]]
    checkpoints: set[str]
    status: dict[str, Any]
    results: Results


def interrupted(spec: Path, home: Path, events: Events) -> str:
    with pytest.raises(Interrupted) as caught:
        Sweep.from_yaml(spec, home=home, progress=events).run()
    return str(caught.value)


@pytest.fixture(scope="module")
def interruptions(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Interruptions:
    folder = tmp_path_factory.mktemp("interrupted")
    spec, sweep_home = write_spec(folder / "life.yaml"), SweepHome(folder / "home", "life")
    answers: list[bool] = []
    asking = threading.Thread(
        target=lambda: answers.append(stop_sweep(sweep_home.home, "life", wait_s=120, tell=lambda _text: None))
    )
    early = Events(at="teacher", act=lambda: os.kill(os.getpid(), signal.SIGTERM))
    sentences = [interrupted(spec, sweep_home.home, early)]
    teacher_checkpoints = len(list((sweep_home.home / "teachers").glob("*/checkpoint")))
    late = Events(at="epoch", act=asking.start)
    sentences.append(interrupted(spec, sweep_home.home, late))
    asking.join()
    checkpoints = {path.parent.name for path in (sweep_home.folder / "trials").glob("*/checkpoint")}
    kept, status = stamps(sweep_home), StatusReader(sweep_home).read()
    results = Sweep.named("life", home=sweep_home.home).run()
    return Interruptions(sweep_home, sentences, teacher_checkpoints, answers, late, kept, checkpoints, status, results)


def test_whatever_ends_a_sweep_the_command_to_continue_is_shown(interruptions: Interruptions) -> None:
    sentence = (
        f"interrupted; finished trials are stored. Continue with: stillhouse resume life --home {interruptions.sweep_home.home}"
    )
    assert interruptions.sentences == [sentence, sentence]


def test_a_teacher_in_training_writes_a_checkpoint(interruptions: Interruptions) -> None:
    assert interruptions.teacher_checkpoints == 1


def test_trials_under_way_write_checkpoints_and_no_other_one_starts(interruptions: Interruptions) -> None:
    assert interruptions.checkpoints
    assert interruptions.checkpoints == set(interruptions.events.started) - interruptions.kept.keys()
    assert len(interruptions.events.started) <= 2


def test_stop_waits_for_the_end_and_status_tells_of_it(interruptions: Interruptions) -> None:
    assert interruptions.answers == [True]
    status = interruptions.status
    assert (status["state"], status["planned"], status["running"]) == ("unfinished", 6, [])


def test_an_interrupted_sweep_ends_as_an_undisturbed_one(interruptions: Interruptions, undisturbed: Results) -> None:
    assert weights_of(interruptions.results.records) == weights_of(undisturbed.records)
    after = stamps(interruptions.sweep_home)
    assert {key: after[key] for key in interruptions.kept} == interruptions.kept
    (teacher,) = interruptions.results.facts.teachers
    (expected,) = undisturbed.facts.teachers
    assert teacher.samples_forwarded == expected.samples_forwarded == 2 * SAMPLES
    assert teacher.samples_reused == expected.samples_reused
    assert StatusReader(interruptions.sweep_home).read()["state"] == "finished"


def test_a_request_while_tune_retries_trials_ends_the_sweep(cluster: None, tmp_path: Path) -> None:
    spec, sweep_home = write_spec(tmp_path / "life.yaml", **ALONE), SweepHome(tmp_path / "home", "life")
    sweep_home.folder.mkdir(parents=True)
    # Students cannot be written, not even by root, so that every attempt of a trial fails at its end.
    (sweep_home.folder / "students").symlink_to("/proc")
    events = Events(at="again", act=lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert "stillhouse resume" in interrupted(spec, sweep_home.home, events)
    assert not stamps(sweep_home)


# Its workers die

DEADLY = '''
"""A method that no worker survives."""

import os
import signal
from dataclasses import dataclass
from typing import ClassVar

from stillhouse.distill.method import Card, Method


@dataclass(frozen=True, kw_only=True)
class Deadly(Method):
    """Kills its process in the second epoch."""

    card: ClassVar[Card] = Card(title="Deadly", equations="none")

    def loss(self, step):
        if step.epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(step)
'''


def test_a_trial_that_kills_its_worker_at_every_attempt_fails_alone(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stillhouse.sweep.cluster.tune_run.RESTARTS_OF_A_TRIAL", 0)
    monkeypatch.setattr("stillhouse.sweep.trial_retries._MAX_WORKER_DEATHS", 2)
    (folder := tmp_path / "own").mkdir()
    (folder / "deadly.py").write_text(DEADLY)
    changes = {"methods": {"scratch": {}, "deadly": {}}, "search": {"trials_per_method": 1, "max_epochs": 2}}
    spec = write_spec(tmp_path / "life.yaml", **ALONE | changes, method_paths=[str(folder)], tracking=NOWHERE)
    results = Sweep.from_yaml(spec, home=tmp_path / "home").run()
    assert {record.trial.method: record.status for record in results.records} == {"scratch": "finished", "deadly": "failed"}
    (failed,) = results.failed
    assert str(failed.reason).startswith(
        "its worker died 2 times in epoch 2; if memory ran out, lower training.batch_size or give each"
    )
    assert "\n" not in str(failed.reason)
    assert not any((results.sweep_home.folder / "trials").glob("*"))


# The disk


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Callable[[str], None]]:
    """A file system of its own at `folder`; gives what makes it larger."""
    folder.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")

    def grow(size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True)

    try:
        yield grow
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def check_few(results: Results, undisturbed: Results) -> None:
    """The first trial of each method finished with its own bits."""
    assert {record.trial.method for record in results.records} == {"scratch", "kd"}
    assert weights_of(results.records).items() <= weights_of(undisturbed.records).items()


def fill_up(folder: Path, leave: int) -> None:
    """Takes all of the disk but about `leave` bytes."""
    room = shutil.disk_usage(folder).free - leave
    (folder / "ballast").write_bytes(b"0" * max(0, room))


def test_a_full_disk_ends_the_sweep_soon_and_costs_nothing_finished(undisturbed: Results, tmp_path: Path) -> None:
    tracking = {"uri": f"sqlite:///{tmp_path}/tracking.db"}
    spec = write_spec(tmp_path / "life.yaml", tracking=tracking, max_concurrent_trials=1)
    with small_disk(tmp_path / "home", "16m") as grow:
        sweep_home = SweepHome(tmp_path / "home", "life")
        events = Events(at="epoch", act=lambda: fill_up(sweep_home.home, 0))
        with pytest.raises(InfrastructureError) as caught:
            Sweep.from_yaml(spec, home=sweep_home.home, progress=events).run()
        sentence = str(caught.value)
        assert isinstance(caught.value, DiskFullError)
        assert sentence.endswith(f"and continue with: stillhouse resume life --home {sweep_home.home}")
        assert "\n" not in sentence
        assert len(events.started) == len(set(events.started)), "no trial is tried again in vain"
        before = stamps(sweep_home)
        assert len(before) < 6
        grow("64m")
        results = Sweep.from_yaml(spec, home=sweep_home.home).run()
        assert {key: stamps(sweep_home)[key] for key in before} == before
        assert weights_of(results.records) == weights_of(undisturbed.records)


def test_a_disk_that_is_full_from_the_start_is_one_sentence(cluster: None, tmp_path: Path) -> None:
    with small_disk(tmp_path / "home", "64k"):
        with pytest.raises(InfrastructureError, match=r"o space left on device .* and continue with: ") as caught:
            Sweep.from_yaml(write_spec(tmp_path / "life.yaml", **ALONE), home=tmp_path / "home").run()
        assert "\n" not in str(caught.value)


def test_a_disk_that_is_full_under_the_ledger_ends_the_sweep_until_there_is_room(
    alone: dict[str, str | None], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    ledger = home / "sweeps" / "life" / "ledger"
    spec = write_spec(tmp_path / "life.yaml", **ALONE, tracking=NOWHERE)
    with small_disk(ledger, "64k") as grow:
        fill_up(ledger, 0)
        events = Events()
        with pytest.raises(InfrastructureError) as caught:
            Sweep.from_yaml(spec, home=home, progress=events).run()
        sentence = str(caught.value)
        assert isinstance(caught.value, DiskFullError)
        assert sentence.endswith(f"and continue with: stillhouse resume life --home {home}")
        assert "\n" not in sentence
        assert len(events.started) == len(set(events.started)), "no trial is tried again in vain"
        grow("64m")
        results = Sweep.named("life", home=home).run()
    assert weights_of(results.records) == alone


def test_a_disk_that_is_full_under_the_checkpoints_costs_nothing_else(
    alone: dict[str, str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "TrialEnvironment", partial(TrialEnvironment, checkpoint_interval_s=0.0))
    sweep_home, checkpoints = SweepHome(tmp_path / "home", "life"), set[Path]()
    with small_disk(sweep_home.folder / "trials", "64k"):
        fill_up(sweep_home.folder / "trials", 0)
        events = Events(at="epoch", act=lambda: checkpoints.update((sweep_home.folder / "trials").glob("*/*")))
        spec = write_spec(tmp_path / "life.yaml", **ALONE, tracking=NOWHERE)
        results = Sweep.from_yaml(spec, home=sweep_home.home, progress=events).run()
    assert events.acted
    assert not checkpoints, "not even a part of one is left"
    assert weights_of(results.records) == alone


def test_a_disk_that_is_full_under_the_knowledge_ends_a_sweep_that_wants_it_there_until_there_is_room(
    undisturbed: Results, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    shutil.copytree(undisturbed.home / "teachers", home / "teachers")
    spec = write_spec(tmp_path / "life.yaml", **FEW, knowledge={"way": "cached"})
    with small_disk(home / "knowledge", "1m") as grow:
        # When the way is chosen there is room; when the first view is written there is none.
        events = Events(at="cached", act=lambda: fill_up(home / "knowledge", 0))
        with pytest.raises(InfrastructureError) as caught:
            Sweep.from_yaml(spec, home=home, progress=events).run()
        assert events.acted
        again = f"Free some space (`stillhouse teachers prune` helps) and continue with: stillhouse resume life --home {home}"
        assert re.fullmatch(
            rf"teacher 'big' cannot fill view \d: no space for \d+ bytes of knowledge in {home}/knowledge; "
            rf"finished trials are stored\. {re.escape(again)}",
            str(caught.value),
        )
        assert len(events.started) == len(set(events.started)), "no trial is tried again in vain"
        before = stamps(SweepHome(home, "life"))
        with pytest.raises(InfrastructureError) as caught:
            Sweep.named("life", home=home).run()
        assert str(caught.value) == (
            f"no space for 25.60 kB of knowledge in {home}/knowledge, whose disk has 0 B for it; lower views.count or "
            f"let knowledge.way be auto; finished trials are stored. {again}"
        )
        grow("2m")
        results = Sweep.named("life", home=home).run()
    assert {key: stamps(SweepHome(home, "life"))[key] for key in before} == before
    check_few(results, undisturbed)
    (teacher,) = results.facts.teachers
    assert teacher.samples_forwarded == 2 * SAMPLES


def test_where_the_disk_is_full_under_the_knowledge_alone_auto_computes_it_in_every_trial_and_says_so(
    undisturbed: Results, tmp_path: Path
) -> None:
    home, events = tmp_path / "home", Events()
    shutil.copytree(undisturbed.home / "teachers", home / "teachers")
    with small_disk(home / "knowledge", "64k"):
        fill_up(home / "knowledge", 0)
        spec = write_spec(tmp_path / "life.yaml", **FEW)
        results = Sweep.from_yaml(spec, home=home, progress=events).run()
    said = "2 views take 25.60 kB, more than the 0 B free; raise knowledge.max_bytes, free some disk, or lower views.count"
    assert f"teacher big: logits inline: {said} to have them cached" in events.notes
    check_few(results, undisturbed)


# Garbled files


def garble(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_whatever_file_is_damaged_the_sweep_ends_as_an_undisturbed_one(undisturbed: Results, copy: SweepHome) -> None:
    truncate(copy.folder / "facts")
    torn, gone, garbled = sorted(record.trial.key for record in undisturbed.records if record.trial.method == "kd")
    truncate(copy.ledger.folder / f"{torn}.record")
    garble(copy.ledger.folder / f"{garbled}.record")
    copy.ledger.set_aside(gone)
    for key, source in ((gone, "spec.json"), (torn, f"ledger/{gone}.record"), (garbled, f"ledger/{torn}.record")):
        checkpoint = copy.folder / "trials" / key / "checkpoint"
        checkpoint.parent.mkdir(parents=True)
        checkpoint.write_bytes((copy.folder / source).read_bytes() if (copy.folder / source).exists() else b"")
    views = sorted(path for path in (copy.home / "knowledge").iterdir() if path.is_dir())
    truncate(views[0] / "manifest")
    garble(next(views[1].glob("*.arrow")))
    (weights,) = (copy.home / "teachers").glob("*/weights.safetensors")
    garble(weights)
    before = stamps(copy)
    results = Sweep.named("life", home=copy.home).run()
    assert weights_of(results.records) == weights_of(undisturbed.records)
    changed = {key for key, stamp in stamps(copy).items() if before.get(key) != stamp}
    assert changed == {torn, gone, garbled}, "and nothing that is whole runs again"


def test_a_damaged_spec_is_read_from_the_facts_and_without_them_it_is_one_sentence(copy: SweepHome) -> None:
    before = copy.read_spec_dict()
    truncate(copy.folder / "spec.json")
    assert copy.read_spec_dict() == before
    truncate(copy.folder / "facts")
    with pytest.raises(UsageError, match=r"spec.json is damaged") as caught:
        Sweep.named("life", home=copy.home)
    assert "\n" not in str(caught.value)


def test_a_sweep_that_an_older_version_began_goes_on(undisturbed: Results, copy: SweepHome, tmp_path: Path) -> None:
    path = copy.folder / "spec.json"
    today = json.loads(path.read_text())
    old = copy.read_spec_dict()
    # As if these had come into being since.
    del old["knowledge"], old["search"]["scheduler"], old["teachers"]["big"]["replicas"], old["students"][0]["name"]
    path.write_text(json.dumps(old))
    results = Sweep.from_yaml(write_spec(tmp_path / "life.yaml"), home=copy.home).run()
    assert results.reused == results.planned == 6
    assert json.loads(path.read_text()) == today
    path.write_text(json.dumps({**old, "students": [{"model": "lenet"}]}))
    with pytest.raises(UsageError, match="was started with another spec: students"):
        Sweep.from_yaml(write_spec(tmp_path / "life.yaml"), home=copy.home).run()


def test_a_sweep_whose_folder_is_removed_ends_with_what_happened_and_can_start_again(cluster: None, tmp_path: Path) -> None:
    spec = write_spec(tmp_path / "life.yaml", **SHORT, tracking=NOWHERE)
    sweep_home = SweepHome(tmp_path / "home", "life")
    events = Events(at="epoch", act=lambda: shutil.rmtree(sweep_home.folder, ignore_errors=True))
    with pytest.raises(InfrastructureError) as caught:
        Sweep.from_yaml(spec, home=sweep_home.home, progress=events).run()
    assert str(caught.value) == (
        f"the folder {sweep_home.folder} was removed while the sweep ran, and its finished trials with it; "
        f"teachers and their knowledge are still there. Start the sweep again with its YAML file"
    )
    assert len(events.started) <= 2, "no other trial is started"
    records = Sweep.from_yaml(spec, home=sweep_home.home).run().records
    assert [record.status for record in records] == ["finished"] * 3


def test_a_sweep_whose_folder_cannot_be_written_any_more_ends_at_once_and_goes_on_later(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, sweep_home = write_spec(tmp_path / "life.yaml", **SHORT), SweepHome(tmp_path / "home", "life")
    folder, may = sweep_home.folder, os.access

    def take_rights() -> None:
        folder.chmod(0o555)
        if os.geteuid() == 0:  # to whom rights do not apply
            monkeypatch.setattr(os, "access", lambda path, mode: may(path, mode) and Path(path) != folder)

    events = Events(at="epoch", act=take_rights)
    with pytest.raises(InfrastructureError, match=rf"^the folder {folder} cannot be written; .* stillhouse resume life"):
        Sweep.from_yaml(spec, home=sweep_home.home, progress=events).run()
    assert len(events.started) <= 2, "no other trial is started"
    monkeypatch.undo()
    folder.chmod(0o755)
    assert [record.status for record in Sweep.from_yaml(spec, home=sweep_home.home).run().records] == ["finished"] * 3


# The tracking server


class _Failing(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(500)

    do_POST = do_DELETE = do_GET  # noqa: N815

    def log_message(self, *_arguments: Any) -> None:
        pass


@contextmanager
def bad_server(kind: str) -> Iterator[str]:
    """The address of a tracking server that is down, never answers, or answers 500."""
    if kind == "answers 500":
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Failing)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        server.server_close()
        return
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if kind == "hangs":
            listener.listen(64)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("kind", ["is down", "hangs", "answers 500"])
def test_a_bad_tracking_server_costs_no_trial(
    alone: dict[str, str | None], tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stillhouse.tracking.tracker.START_TIMEOUT_S", 1.0)
    monkeypatch.setattr("stillhouse.tracking.tracker.CLOSE_TIMEOUT_S", 0.5)
    monkeypatch.setattr("stillhouse.sweep.run._TRACKING_TIMEOUT_S", 1.0)
    with bad_server(kind) as address:
        spec = write_spec(tmp_path / "life.yaml", **ALONE, tracking={"uri": address})
        results = Sweep.from_yaml(spec, home=tmp_path / "home").run()
    assert weights_of(results.records) == alone


@contextmanager
def running_server(folder: Path) -> Iterator[tuple[str, int]]:
    """The address of a tracking server of its own, and its process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    location = locate(None, folder)
    server = start_server(location, port)
    try:
        wait_until_healthy(server, port, log_file(location))
        yield f"http://127.0.0.1:{port}", server.pid
    finally:
        os.killpg(server.pid, signal.SIGCONT)
        stop_server(server)


def check_tracked(home: Path) -> None:
    """A sync completes what is in MLflow, and afterwards nothing is missing."""
    done, students = sync_sweep(Results.read(home, "life"))
    assert (done.failed, students.reasons) == (0, ())
    assert done.created + done.skipped == 3
    again, _ = sync_sweep(Results.read(home, "life"))
    assert (again.created, again.skipped) == (0, 3)


class _Slow(http.server.BaseHTTPRequestHandler):
    """Hands every request on to another server when a while has passed."""

    behind = ""

    def do_GET(self) -> None:
        time.sleep(SLOW_S)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        kind = {"Content-Type": self.headers.get("Content-Type", "application/json")}
        asked = urllib.request.Request(self.behind + self.path, body or None, kind, method=self.command)
        try:
            with urllib.request.urlopen(asked, timeout=30) as answer:
                status, content = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, content = error.code, error.read()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815

    def log_message(self, *_arguments: Any) -> None:
        pass


def test_a_slow_server_holds_up_no_trial_and_gets_all_of_them(cluster: None, tmp_path: Path) -> None:
    with running_server(tmp_path / "server") as (address, _):
        proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("_SlowOf", (_Slow,), {"behind": address}))
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        try:
            slow = {"uri": f"http://127.0.0.1:{proxy.server_port}"}
            spec = write_spec(tmp_path / "life.yaml", **SHORT, tracking=slow)
            results = Sweep.from_yaml(spec, home=tmp_path / "home").run()
            check_tracked(tmp_path / "home")
        finally:
            proxy.shutdown()
            proxy.server_close()
    assert [record.status for record in results.records] == ["finished"] * 3


def test_a_server_that_freezes_in_the_middle_holds_up_nothing_and_a_sync_completes_it(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with running_server(tmp_path / "server") as (address, process):
        spec = write_spec(tmp_path / "life.yaml", **SHORT, tracking={"uri": address})
        freezing = Events(at="epoch", act=lambda: os.killpg(process, signal.SIGSTOP))
        results = Sweep.from_yaml(spec, home=tmp_path / "home", progress=freezing).run()
        # The sweep has ended, and the server still stands still.
        assert [record.status for record in results.records] == ["finished"] * 3
        os.killpg(process, signal.SIGCONT)
        check_tracked(tmp_path / "home")


# Longer, again, under another name


def test_an_extended_sweep_keeps_what_it_has_and_runs_again_what_is_requested(
    undisturbed: Results, alone: dict[str, str | None], copy: SweepHome, tmp_path: Path
) -> None:
    kept = write_spec(tmp_path / "life.yaml", **ALONE)
    sweep_home = SweepHome(copy.home, "alone")
    Sweep.forked(Sweep.from_yaml(kept, home=copy.home).spec, "alone", home=copy.home).run()
    failed, stopped, whole = sorted(alone)
    for key, changes in ((failed, {"status": "failed", "reason": "out of luck"}), (stopped, {"status": "stopped"})):
        record = sweep_home.ledger.read(key)
        assert record is not None
        sweep_home.ledger.write(record.model_copy(update={**changes, "weights_hash": None}))
    before = stamps(sweep_home)
    results = Sweep.extended("alone", 5, home=copy.home).run(again=["failed"])
    assert stamps(sweep_home)[whole] == before[whole]
    assert results.planned == len(results.records) == 5
    assert {record.status for record in results.records} == {"finished"}, "nothing stops trials early where no scheduler does"
    assert weights_of(results.records).items() >= alone.items()
    aside = sorted(path.name for path in (sweep_home.ledger.folder / "aside").iterdir())
    assert aside == sorted([f"{failed}.1.record", f"{stopped}.1.record"])
    again = Sweep.named("alone", home=copy.home).run()
    assert (again.planned, again.reused) == (5, 5)


def test_a_failed_trial_is_left_as_it_is_until_somebody_says_so(undisturbed: Results, copy: SweepHome) -> None:
    record = undisturbed.records[0]
    copy.ledger.write(record.model_copy(update={"status": "failed", "reason": "out of luck", "weights_hash": None}))
    results = Sweep.named("life", home=copy.home).run()
    assert [failed.reason for failed in results.failed] == ["out of luck"]


def test_a_fork_takes_over_what_its_spec_shares_with_the_sweep(
    undisturbed: Results, alone: dict[str, str | None], copy: SweepHome, tmp_path: Path
) -> None:
    students = [{"model": "mlp", "hidden": [16]}, {"model": "mlp", "hidden": [8], "name": "smaller"}]
    sweep = Sweep.from_yaml(write_spec(tmp_path / "life.yaml", **ALONE, students=students), home=copy.home)
    with pytest.raises(
        UsageError, match=r"methods.kd, students, teachers\S* changed; continue under a new name with --fork NAME"
    ):
        sweep.run()
    before = stamps(copy)
    results = Sweep.forked(sweep.spec, "other", home=copy.home).run()
    assert stamps(copy) == before, "the sweep itself stays as it is"
    shared = weights_of(results.records).items() & alone.items()
    assert results.reused == len(shared) == 2
    for record in results.records:
        assert (results.sweep_home.folder / str(record.weights)).is_file()
