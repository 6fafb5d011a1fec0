"""A sweep interrupted, starved of disk, garbled, extended, retried and forked; one Ray for all, the driver in this process."""

import http.server
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from stillhouse.errors import InfrastructureError, Interrupted, UsageError
from stillhouse.spec.records import Trial, TrialRecord
from stillhouse.sweep.home import SweepHome
from stillhouse.sweep.life import stop_sweep
from stillhouse.sweep.progress import Progress
from stillhouse.sweep.results import Results
from stillhouse.sweep.state import StatusReader
from stillhouse.sweep.sweep import Sweep
from stillhouse.workers import environment_of_workers

pytestmark = [pytest.mark.ray, pytest.mark.slow]

EPOCHS, SAMPLES = 3, 320
SPEC: dict[str, Any] = {
    "name": "life",
    "dataset": {"name": "digits", "validation": 80, "options": {"limit": SAMPLES + 80}},
    "views": {"policy": [{"crop": {"padding": 1}}], "count": 2},
    "teachers": {"big": {"model": "lenet", "train": {"epochs": 3}}},
    "students": [{"model": "mlp", "hidden": [16]}],
    "methods": {"scratch": {}, "kd": {"temperature": 4.0}},
    "search": {"trials_per_method": 3, "max_epochs": EPOCHS},
    "max_concurrent_trials": 2,
}


def write_spec(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump(SPEC | changes))
    return path


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(
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


@pytest.fixture
def copy(undisturbed: Results, tmp_path: Path) -> SweepHome:
    """A home of its own that holds the undisturbed sweep."""
    shutil.copytree(undisturbed.home, tmp_path / "home")
    return SweepHome(tmp_path / "home", "life")


def weights_of(records: Any) -> dict[str, str | None]:
    return {record.trial.key: record.weights_hash for record in records}


def stamps(place: SweepHome) -> dict[str, tuple[int, int]]:
    """Inode and time of every record: writing one again changes both."""
    return {path.stem: (path.stat().st_ino, path.stat().st_mtime_ns) for path in place.ledger.folder.glob("*.record")}


@dataclass
class Events(Progress):
    """Counts what happens, and does `act` at the first event called `at`."""

    at: str = ""
    act: Callable[[], None] = lambda: None
    started: list[str] = field(default_factory=list)
    since: list[str] = field(default_factory=list)
    acted: bool = False

    def __post_init__(self) -> None:
        super().__init__("life", quiet=True)

    def teacher(self, name: str, text: str) -> None:
        if "epoch" in text:
            self._event("teacher")

    def trial_started(self, trial: Trial) -> None:
        super().trial_started(trial)
        self.started.append(trial.key)
        if self.acted:
            self.since.append(trial.key)

    def trial_epoch(self, key: str, epoch: int, accuracy: float) -> None:
        super().trial_epoch(key, epoch, accuracy)
        self._event("epoch")

    def _event(self, name: str) -> None:
        if name == self.at and not self.acted:
            self.acted = True
            self.act()


# Ended from outside


@dataclass
class Interruptions:
    """What three runs of one sweep left behind: ended in the teacher's training, in the trials, and not at all."""

    place: SweepHome
    teacher_checkpoints: int
    sentences: list[str]
    stopped: bool
    since: list[str]
    kept: dict[str, tuple[int, int]]
    checkpoints: set[str]
    under_way: set[str]
    report: bool
    status: dict[str, Any]
    results: Results


def interrupted(spec: Path, home: Path, events: Events) -> str:
    with pytest.raises(Interrupted) as caught:
        Sweep.from_yaml(spec, home=home, progress=events).run()
    return str(caught.value)


@pytest.fixture(scope="module")
def interruptions(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Interruptions:
    folder = tmp_path_factory.mktemp("interrupted")
    # Long enough that the request arrives in the middle.
    teacher = {"big": {"model": "lenet", "train": {"epochs": 400}}}
    spec, place = write_spec(folder / "life.yaml", teachers=teacher), SweepHome(folder / "home", "life")
    early = Events(at="teacher", act=lambda: os.kill(os.getpid(), signal.SIGTERM))
    sentences = [interrupted(spec, place.home, early)]
    checkpoints_of_teacher = len(list((place.home / "teachers").glob("*/checkpoint")))

    spec, place = write_spec(folder / "life.yaml"), SweepHome(folder / "second", "life")
    answers: list[bool] = []

    def ask() -> None:
        place.stop_request.parent.mkdir(exist_ok=True)
        asking = threading.Thread(
            target=lambda: answers.append(stop_sweep(place.home, "life", wait_s=60, tell=lambda _text: None))
        )
        asking.start()
        threads.append(asking)

    threads: list[threading.Thread] = []
    # Trials that can not end before the request is seen.
    long = write_spec(folder / "long.yaml", search={**SPEC["search"], "max_epochs": 2000})
    events = Events(at="epoch", act=ask)
    sentences.append(interrupted(long, place.home, events))
    for thread in threads:
        thread.join()
    checkpoints = {path.parent.name for path in (place.folder / "trials").glob("*/checkpoint")}
    kept, under_way, report = stamps(place), set(events.started), (place.report / "report.html").exists()
    status = StatusReader(place).read()
    place = SweepHome(folder / "third", "life")
    middle = Events(at="epoch", act=lambda: os.kill(os.getpid(), signal.SIGINT))
    sentences.append(interrupted(spec, place.home, middle))
    before = stamps(place)
    results = Sweep.named("life", home=place.home).run()
    assert {key: stamp for key, stamp in stamps(place).items() if key in before} == before
    return Interruptions(
        place, checkpoints_of_teacher, sentences, answers[0], [*events.since, *middle.since], kept, checkpoints, under_way,
        report, status, results,
    )  # fmt: skip


def test_whatever_ends_a_sweep_the_command_to_go_on_is_told(interruptions: Interruptions) -> None:
    for sentence in interruptions.sentences:
        assert sentence.startswith("interrupted; finished trials are kept. Go on with: stillhouse resume life --home ")


def test_a_teacher_in_training_writes_a_checkpoint(interruptions: Interruptions) -> None:
    assert interruptions.teacher_checkpoints == 1


def test_trials_under_way_write_checkpoints_and_no_other_one_starts(interruptions: Interruptions) -> None:
    assert interruptions.under_way
    assert interruptions.checkpoints == interruptions.under_way
    assert interruptions.since == []


def test_stop_waits_for_the_end_and_status_tells_of_it(interruptions: Interruptions) -> None:
    assert interruptions.stopped
    status = interruptions.status
    assert (status["state"], status["planned"], status["done"], status["running"]) == ("unfinished", 4, 0, [])


def test_an_interrupted_sweep_ends_as_an_undisturbed_one(interruptions: Interruptions, undisturbed: Results) -> None:
    assert weights_of(interruptions.results.records) == weights_of(undisturbed.records)
    (teacher,) = interruptions.results.facts.teachers
    (expected,) = undisturbed.facts.teachers
    assert teacher.samples_forwarded == expected.samples_forwarded
    assert teacher.samples_reused == expected.samples_reused
    assert StatusReader(interruptions.place).read()["state"] == "finished"


def test_a_request_while_tune_retries_a_trial_ends_the_sweep(undisturbed: Results, copy: SweepHome) -> None:
    shutil.rmtree(copy.ledger.folder)
    # Students can not be written, so that every attempt of a trial fails.
    shutil.rmtree(copy.folder / "students")
    (copy.folder / "students").write_text("")

    def interrupt_later() -> None:
        threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()

    events = Events(at="epoch", act=interrupt_later)
    with pytest.raises((Interrupted, InfrastructureError)) as caught:
        Sweep.named("life", home=copy.home, progress=events).run()
    assert isinstance(caught.value, Interrupted), caught.value
    (copy.folder / "students").unlink()
    assert weights_of(Sweep.named("life", home=copy.home).run().records) == weights_of(undisturbed.records)


# The disk


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Callable[[str], None]]:
    """A file system of its own at `folder`; gives what makes it larger."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")

    def grow(size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True)

    try:
        yield grow
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill_up(folder: Path, leave: int) -> None:
    """Takes all of the disk but about `leave` bytes."""
    room = shutil.disk_usage(folder).free - leave
    (folder / "ballast").write_bytes(b"0" * max(0, room))


@pytest.mark.parametrize("moment", ["before the teacher is trained", "in the middle of the trials"])
def test_a_full_disk_ends_the_sweep_soon_and_costs_nothing_finished(undisturbed: Results, tmp_path: Path, moment: str) -> None:
    spec = write_spec(tmp_path / "life.yaml", tracking={"uri": f"sqlite:///{tmp_path}/tracking.db"})
    with small_disk(tmp_path / "home", "12m") as grow:
        place = SweepHome(tmp_path / "home", "life")
        if moment.startswith("before"):
            events = Events()
            fill_up(place.home, 64 << 10)
        else:
            events = Events(at="epoch", act=lambda: fill_up(place.home, 0))
        with pytest.raises(InfrastructureError) as caught:
            Sweep.from_yaml(spec, home=place.home, progress=events).run()
        sentence = str(caught.value)
        assert "o space left on device" in sentence or "no room for" in sentence
        assert sentence.endswith(f"and go on with: stillhouse resume life --home {place.home}")
        assert "\n" not in sentence
        assert len(events.started) == len(set(events.started)), "no trial is tried again in vain"
        before = stamps(place)
        grow("64m")
        results = Sweep.from_yaml(spec, home=place.home).run()
        assert {key: stamps(place)[key] for key in before} == before
        assert weights_of(results.records) == weights_of(undisturbed.records)


# Garbled files


def garble(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [garble, truncate])
def test_whatever_file_is_damaged_the_sweep_ends_as_an_undisturbed_one(
    undisturbed: Results, copy: SweepHome, damage: Callable[[Path], None]
) -> None:
    damage(copy.folder / "facts")
    again = [record.trial.key for record in undisturbed.records if record.trial.method == "kd"]
    damage(copy.ledger.folder / f"{again[0]}.record")
    copy.ledger.remove(again[1])
    checkpoint = copy.folder / "trials" / again[1] / "checkpoint"
    checkpoint.parent.mkdir(parents=True)
    shutil.copyfile(copy.ledger.folder / f"{again[0]}.record", checkpoint)
    views = sorted(path for path in (copy.home / "knowledge").iterdir() if path.is_dir())
    damage(views[0] / "manifest")
    damage(next(views[1].glob("*.arrow")))
    (weights,) = (copy.home / "teachers").glob("*/weights.safetensors")
    damage(weights)
    before = stamps(copy)
    results = Sweep.named("life", home=copy.home).run()
    assert weights_of(results.records) == weights_of(undisturbed.records)
    changed = {key for key, stamp in stamps(copy).items() if before.get(key) != stamp}
    assert changed == set(again[:2]), "and nothing that is whole runs again"


def test_a_damaged_spec_is_one_sentence(copy: SweepHome) -> None:
    truncate(copy.folder / "spec.json")
    with pytest.raises(UsageError, match=r"spec.json is damaged") as caught:
        Sweep.named("life", home=copy.home)
    assert "\n" not in str(caught.value)


# The tracking server


class _Failing(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(500)

    do_POST = do_GET  # noqa: N815

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
    undisturbed: Results, copy: SweepHome, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stillhouse.tracking.tracker.START_TIMEOUT_S", 1.0)
    monkeypatch.setattr("stillhouse.tracking.tracker.CLOSE_TIMEOUT_S", 0.5)
    monkeypatch.setattr("stillhouse.sweep.sweep._TRACKING_TIMEOUT_S", 1.0)
    gone = [record.trial.key for record in undisturbed.records if record.trial.method == "scratch"]
    for key in gone:
        copy.ledger.remove(key)
    before = stamps(copy)
    with bad_server(kind) as address:
        spec = write_spec(tmp_path / "life.yaml", tracking={"uri": address})
        results = Sweep.from_yaml(spec, home=copy.home).run()
    assert weights_of(results.records) == weights_of(undisturbed.records)
    assert {key: stamps(copy)[key] for key in before} == before


# Longer, again, under another name


def test_an_extended_sweep_keeps_what_it_has(undisturbed: Results, copy: SweepHome, tmp_path: Path) -> None:
    before = stamps(copy)
    results = Sweep.extended("life", 5, home=copy.home).run()
    assert {key: stamps(copy)[key] for key in before} == before
    assert results.planned > undisturbed.planned
    longer = write_spec(tmp_path / "life.yaml", search={**SPEC["search"], "trials_per_method": 5})
    assert {trial.key for trial in Sweep.from_yaml(longer, home=tmp_path / "other").plan().trials} == set(stamps(copy))
    again = Sweep.named("life", home=copy.home).run()
    assert (again.planned, again.reused) == (results.planned, results.planned)


def test_failed_trials_run_again_and_their_records_lie_aside(
    undisturbed: Results, copy: SweepHome, make_record: Callable[..., TrialRecord]
) -> None:
    record = undisturbed.records[0]
    copy.ledger.write(record.model_copy(update={"status": "failed", "reason": "out of luck", "weights_hash": None}))
    results = Sweep.named("life", home=copy.home).run()
    assert [failed.reason for failed in results.failed] == ["out of luck"], "a resume leaves them as they are"
    results = Sweep.named("life", home=copy.home).run(again=["failed"])
    assert weights_of(results.records) == weights_of(undisturbed.records)
    (aside,) = (copy.ledger.folder / "aside").iterdir()
    assert "out of luck" in aside.read_text()


def test_a_trial_that_was_stopped_early_runs_to_its_end_where_no_scheduler_stops_trials(
    undisturbed: Results, copy: SweepHome
) -> None:
    record = undisturbed.records[0]
    copy.ledger.write(record.model_copy(update={"status": "stopped", "weights_hash": None}))
    results = Sweep.named("life", home=copy.home).run()
    assert {each.status for each in results.records} == {"finished"}
    assert weights_of(results.records) == weights_of(undisturbed.records)


def test_a_fork_takes_over_what_its_spec_shares_with_the_sweep(undisturbed: Results, copy: SweepHome, tmp_path: Path) -> None:
    students = [{"model": "mlp", "hidden": [16]}, {"model": "mlp", "hidden": [8], "name": "smaller"}]
    sweep = Sweep.from_yaml(write_spec(tmp_path / "life.yaml", students=students), home=copy.home)
    with pytest.raises(UsageError, match=r"students changed; go on under a new name with --fork NAME"):
        sweep.run()
    before = stamps(copy)
    results = Sweep.forked(sweep.spec, "other", home=copy.home).run()
    assert stamps(copy) == before, "the sweep itself stays as it is"
    shared = weights_of(results.records).items() & weights_of(undisturbed.records).items()
    assert results.reused == len(shared) == 3, "the control and two draws of kd with the first student"
    for record in results.records:
        assert (results.place.folder / str(record.weights)).is_file()
        assert record.trial.student.name in ("mlp", "smaller")
