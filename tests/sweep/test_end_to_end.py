"""Whole sweeps on a real cluster: undisturbed, run again, and with everything killed that can be."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import ray
import torch
import yaml
from typer.testing import CliRunner

from stillhouse import methods
from stillhouse.cli import app
from stillhouse.knowledge.store import KnowledgeStore
from stillhouse.spec.records import Trial, TrialRecord
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.sweep.progress import Progress
from stillhouse.sweep.results.results import Results
from stillhouse.sweep.sweep import Sweep
from stillhouse.teachers.inventory import describe_kind
from stillhouse.teachers.view_opener import REPEAT_S
from stillhouse.workers import environment_of_workers

pytestmark = [pytest.mark.ray, pytest.mark.slow]

TRAIN, VIEWS, EPOCHS = 320, 2, 2
SPEC: dict[str, Any] = {
    "name": "tiny",
    "dataset": {"name": "digits", "validation": 80, "options": {"limit": TRAIN + 80}},
    "views": {"policy": [{"crop": {"padding": 1}}], "count": VIEWS},
    "teachers": {"big": {"model": "lenet", "train": {"epochs": 2}}},
    "students": [{"model": "mlp", "hidden": [16]}, "lenet"],
    "methods": {"scratch": {}, "kd": {"temperature": 4.0}, "fitnets": {}},
    "search": {"trials_per_method": 4, "max_epochs": EPOCHS},
    # Ten steps: with the default rate some students would still be at chance, and those have no place on a front.
    "training": {"optimizer": "adamw", "learning_rate": 0.01},
    # Two a time as on two cores, so that a teacher has room on any machine.
    "max_concurrent_trials": 2,
}
TAUGHT = 8  # four trials of each of two methods that ask a teacher


def write_spec(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump(SPEC | changes))
    return path


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for every sweep that is driven from this process."""
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


@dataclass
class Undisturbed:
    """A sweep that nothing happened to."""

    spec: Path
    home: Path
    results: Results


@pytest.fixture(scope="module")
def undisturbed(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    spec = write_spec(folder / "tiny.yaml")
    return Undisturbed(spec, folder / "home", Sweep.from_yaml(spec, home=folder / "home").run())


def weights_of(records: Any) -> dict[str, str | None]:
    return {record.trial.key: record.weights_hash for record in records}


def stamps(sweep_home: SweepHome) -> dict[str, tuple[int, int]]:
    """Inode and time of every record: writing one again changes both."""
    return {path.stem: (path.stat().st_ino, path.stat().st_mtime_ns) for path in sweep_home.ledger.folder.glob("*.record")}


# Nothing happens


def test_every_planned_trial_finishes_with_its_weights_and_its_record(undisturbed: Undisturbed) -> None:
    results = undisturbed.results
    assert len(results.records) == results.planned == 10
    assert {record.status for record in results.records} == {"finished"}
    for record in results.records:
        assert (results.sweep_home.folder / str(record.weights)).is_file()
        assert [entry["epoch"] for entry in record.curve] == [1, 2]
        assert {"test_accuracy", "parameters", "size_bytes", "macs", "latency_ms"} <= record.metrics.keys()
        assert record.code["package_path"]
    assert not any((results.sweep_home.folder / "trials").glob("*")), "checkpoints of finished trials are dropped"


def test_a_finished_sweep_gets_the_accuracy_on_degraded_images_without_training(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    shutil.copytree(undisturbed.home, tmp_path / "home")
    spec = write_spec(tmp_path / "tiny.yaml", report={"robustness": True})
    results = Sweep.from_yaml(spec, home=tmp_path / "home").run()
    assert results.reused == results.planned
    assert weights_of(results.records) == weights_of(undisturbed.results.records)
    rows = results.to_json()["pareto"]
    assert rows
    assert all(0 <= row[name] <= 1 for row in rows for name in ("robustness_noise", "robustness_blur", "robustness_jpeg"))
    assert "Does it survive poor images?" in results.report(tmp_path / "out").page.read_text(encoding="utf-8")


def test_the_teacher_forwards_each_view_once_for_all_trials_and_kinds(undisturbed: Undisturbed) -> None:
    (teacher,) = undisturbed.results.facts.teachers
    assert teacher.way == "cached"
    # Why, with what was measured.
    assert re.search(
        r"logits cached: 40 B per sample: [\d.]+ µs to read back, [\d.]+ µs to compute; 2 views take", teacher.reason
    )
    assert teacher.samples_forwarded == VIEWS * TRAIN
    assert teacher.samples_reused == TAUGHT * EPOCHS * TRAIN
    for record in undisturbed.results.records:
        if record.trial.teacher:
            assert record.teaching["samples_forwarded"] == 0
            # Of five batches each; only who waited for one for seconds looked whether the teacher had died.
            assert record.teaching["remote_calls"] <= EPOCHS + record.teaching["wait_seconds"] / REPEAT_S


def test_the_document_has_the_keys_that_scripts_rely_on(undisturbed: Undisturbed) -> None:
    document = json.loads(json.dumps(undisturbed.results.to_json(), allow_nan=False))
    assert set(document) == {
        *("sweep", "home", "status", "trials", "teachers", "collapsed", "pareto", "gains", "report", "tracking", "seconds"),
    }
    assert {(gain["control"], gain["method"]) for gain in document["gains"]} == {("scratch", "kd"), ("scratch", "fitnets")}
    assert document["trials"] == {"planned": 10, "finished": 10, "failed": 0, "reused": 0}
    assert set(document["teachers"][0]) == {
        *("name", "accuracy", "test_split_interval", "way", "samples_forwarded", "samples_reused"),
    }
    assert set(document["pareto"][0]) == {
        *("trial", "method", "student", "seed", "seeds", "parameters", "size_bytes", "macs", "latency_ms"),
        *("latency_batch64_ms", "images_per_second", "peak_memory_bytes", "peak_memory_batch64_bytes"),
        *("program_latency_ms", "program_latency_batch64_ms", "onnx_latency_ms", "onnx_latency_batch64_ms"),
        *("validation_accuracy", "test_accuracy", "test_split_interval"),
        *("teacher_agreement", "teacher_kl", "teacher_mistakes_repeated", "nll", "ece", "ece_scaled", "worst_class_accuracy"),
    }
    assert all(Path(document["report"][name]).is_file() for name in ("page", "table", "figure"))
    assert set(document["tracking"]) == {"uri", "experiment", "run_id"}


def test_a_finished_sweep_takes_up_the_control_with_untrained_teachers(undisturbed: Undisturbed, tmp_path: Path) -> None:
    shutil.copytree(undisturbed.home, tmp_path / "home")
    spec = write_spec(tmp_path / "tiny.yaml", controls=["scratch", "random_teacher"])
    before = {record.trial.key for record in undisturbed.results.records}
    results = Sweep.from_yaml(spec, home=tmp_path / "home").run()
    added = [record for record in results.records if record.trial.key not in before]
    assert {record.trial.key for record in results.records} - {record.trial.key for record in added} == before
    assert sorted((record.trial.method, record.trial.student.name, record.trial.teacher) for record in added) == [
        (method, student, "big.untrained") for method in ("fitnets", "kd") for student in ("lenet", "mlp")
    ]
    assert {(record.status, record.trial.phase) for record in added} == {("finished", "control")}
    trained, untrained = results.facts.teachers
    assert (untrained.name, untrained.train_seconds, untrained.trained_now) == ("big.untrained", 0.0, False)
    assert untrained.key != trained.key
    # Its views are filled once, when the first of its trials opens them, and shared by all four.
    assert (untrained.samples_filled, untrained.samples_reused) == (VIEWS * TRAIN, 4 * EPOCHS * TRAIN)
    over = [gain for gain in results.to_json()["gains"] if gain["control"] == "random_teacher"]
    assert {gain["method"] for gain in over} == {"fitnets", "kd"}


def test_the_table_has_one_row_per_trial_and_the_promised_columns(undisturbed: Undisturbed) -> None:
    table = undisturbed.results.table()
    assert len(table) == 10
    assert {
        *("trial", "method", "student", "teacher", "seed", "parameters", "size_bytes", "macs", "latency_ms"),
        *("validation_accuracy", "test_accuracy", "temperature", "hint_weight"),
    } <= set(table.columns)


def test_every_student_is_examined_on_the_test_split(undisturbed: Undisturbed) -> None:
    """The control too, against the sweep's teacher; agreement and accuracy of each bound each other."""
    results = undisturbed.results
    measured = results.table()[[measure.name for measure in results.facts.measures]]
    assert measured.drop(columns="teacher_mistakes_repeated").notna().all(axis=None)
    (teacher,) = results.facts.teachers
    for record in results.records:
        assert teacher.test_accuracy is not None
        apart = 1 - record.metrics["teacher_agreement"]
        assert abs(record.metrics["test_accuracy"] - teacher.test_accuracy) <= apart + 1e-9
        assert record.metrics["worst_class_accuracy"] <= record.metrics["test_accuracy"]
        samples, right = record.details["class_samples"], record.details["class_right"]
        assert sum(right) / sum(samples) == pytest.approx(record.metrics["test_accuracy"])
    predictions = pd.read_parquet(results.sweep_home.report / "predictions.parquet")
    hit = predictions["logits"].map(lambda row: int(row.argmax())) == predictions["target"]
    for key, value in hit.groupby(predictions["trial"]).mean().items():
        (record,) = [each for each in results.records if each.trial.key == key]
        assert value == pytest.approx(record.metrics["test_accuracy"])
    kept = {path.stem for path in (results.sweep_home.folder / "outputs").iterdir()}
    assert kept == set(predictions["trial"])


def test_all_trials_stand_in_mlflow_under_the_sweep(undisturbed: Undisturbed) -> None:
    from stillhouse.tracking.locations import locate
    from stillhouse.tracking.store import open_client

    tracking = undisturbed.results.tracking
    client = open_client(locate(tracking["uri"], undisturbed.home))
    experiment = client.get_experiment_by_name(str(tracking["experiment"]))
    runs = client.search_runs([experiment.experiment_id])
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == tracking["run_id"]]
    assert len(children) == 10
    assert len(runs) == 11


def test_the_students_of_the_front_are_kept_in_mlflow_with_their_weights(undisturbed: Undisturbed) -> None:
    from stillhouse.tracking.locations import locate
    from stillhouse.tracking.store import open_client

    tracking = undisturbed.results.tracking
    client = open_client(locate(tracking["uri"], undisturbed.home))
    experiment = client.get_experiment_by_name(str(tracking["experiment"]))
    students = [each for each in client.search_logged_models([experiment.experiment_id]) if each.model_type == "student"]
    stored = [each for each in students if each.tags.get("mlflow.model.isExternal") != "true"]
    assert sorted(each.tags["trial_key"] for each in stored) == sorted(undisturbed.results.pareto()["trial"])


def test_a_second_run_trains_nothing_forwards_nothing_and_needs_no_cluster(
    undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def no_cluster(*_arguments: Any, **_options: Any) -> None:
        raise AssertionError("a cluster was started")

    monkeypatch.setattr("stillhouse.sweep.cluster.cluster.Cluster", no_cluster)
    before = stamps(undisturbed.results.sweep_home)
    again = Sweep.from_yaml(undisturbed.spec, home=undisturbed.home).run()
    assert stamps(again.sweep_home) == before
    document = again.to_json()
    assert document["trials"] == {"planned": 10, "finished": 10, "failed": 0, "reused": 10}
    assert document["teachers"][0]["samples_forwarded"] == document["teachers"][0]["samples_reused"] == 0
    assert document["pareto"] == undisturbed.results.to_json()["pareto"]
    shown = CliRunner().invoke(app, ["retry", "tiny", "--failed", "--stopped", "--home", str(undisturbed.home)])
    assert shown.exit_code == 0
    assert "no trial is failed or stopped: only what is missing runs" in capfd.readouterr().err
    assert stamps(again.sweep_home) == before


def test_another_sweep_of_the_same_teacher_finds_it_and_all_it_knows(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """Beside another teacher, who has to learn and to fill; some trials follow one of them, some both."""
    changes = {
        "name": "later",
        "teachers": SPEC["teachers"] | {"small": {"model": "mlp", "train": {"epochs": 1}}},
        "students": [{"model": "mlp", "hidden": [8]}],
        "methods": {"scratch": {}, "kd": {}, "ensemble": {}},
    }
    results = Sweep.from_yaml(write_spec(tmp_path / "later.yaml", **changes), home=undisturbed.home).run()
    assert {record.status for record in results.records} == {"finished"}
    teachers = {teacher.name: teacher for teacher in results.facts.teachers}
    assert {name: teacher.trained_now for name, teacher in teachers.items()} == {"big": False, "small": True}
    assert teachers["big"].key == undisturbed.results.facts.teachers[0].key
    assert teachers["big"].samples_forwarded == 0
    assert teachers["small"].samples_forwarded == VIEWS * TRAIN
    taught = [tuple(record.trial.teachers) for record in results.records]
    for name, teacher in teachers.items():
        assert teacher.samples_reused == EPOCHS * TRAIN * sum(name in names for names in taught)
    assert set(taught) == {(), ("big",), ("small",), ("big", "small")}
    warm = [record.teaching["remote_calls"] for record in results.records if record.trial.teachers == ("big",)]
    assert warm == [0] * len(warm)


def test_students_are_the_same_bit_for_bit_whichever_way_their_knowledge_comes(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    shutil.copytree(undisturbed.home / "teachers", tmp_path / "home" / "teachers")
    search = SPEC["search"] | {"trials_per_method": 2}
    knowledge = {"way": "inline", "ways": {"logits": "served"}}
    results = Sweep.from_yaml(
        write_spec(tmp_path / "tiny.yaml", search=search, knowledge=knowledge), home=tmp_path / "home"
    ).run()
    # The first two trials of each method, and their controls.
    assert len(results.records) == 6
    assert weights_of(results.records).items() <= weights_of(undisturbed.results.records).items()
    ways = {record.trial.method: record.teaching["way"] for record in results.records if record.trial.teachers}
    assert ways["kd"] == "served"
    assert ways["fitnets"].endswith("inline")
    (teacher,) = results.facts.teachers
    assert (teacher.way, teacher.samples_reused) == ("inline+served", 0)
    assert teacher.samples_forwarded == 4 * EPOCHS * TRAIN


def test_views_that_the_teacher_does_not_reproduce_are_reported_and_removed(
    undisturbed: Undisturbed, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    home, store = tmp_path / "home", KnowledgeStore(tmp_path / "home" / "knowledge")
    shutil.copytree(undisturbed.home, home)
    sound = CliRunner().invoke(app, ["teachers", "verify", "tiny", "--home", str(home), "--json"])
    assert sound.exit_code == 0, sound.stderr
    found = json.loads(sound.stdout)
    assert (found["compared"] > TRAIN, found["differences"]) == (True, [])

    weights_hash = undisturbed.results.facts.teachers[0].key
    (identity,) = [
        identity
        for identity in (entry["identity"] for entry in store.entries())
        if (identity["teacher"]["weights"], identity["view"]) == (weights_hash, 1)
        and describe_kind(identity["knowledge"]) == "logits"
    ]
    rows = store.open(identity).gather(torch.arange(TRAIN)).numpy()
    store.remove(store.key(identity))
    with store.writer(identity, rows=TRAIN, shape=rows.shape[1:], dtype="float32") as writer:
        writer.put(np.arange(TRAIN), rows + 1)
        writer.commit()
        writer.seal()
    checked = CliRunner().invoke(app, ["sweep", str(undisturbed.spec), "--verify", "--home", str(home)])
    assert checked.exit_code == 3
    shown = capfd.readouterr().err + checked.stderr
    assert re.search(r"teacher big: logits of view 1 differs by up to 1 \(sample \d+\); it will be computed again", shown)
    assert not store.is_sealed(identity)


# The trials do not wait for the teacher

HELD = '''
"""A teacher that stands still in the middle of its view until a trial has taken its first step."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from stillhouse.distill.method import Card, Method, hyperparameter
from stillhouse.knowledge import reduced

STEPPED = Path(__file__).with_name("stepped")
given = [0]


def held(logits):
    """The logits; from the 800th on they come after a trial's first step."""
    given[0] += len(logits)
    deadline = time.monotonic() + 120
    while given[0] > 800 and not STEPPED.exists():
        assert time.monotonic() < deadline, "no trial began before the view was complete"
        time.sleep(0.01)
    return logits


@dataclass(frozen=True, kw_only=True)
class Held(Method):
    """Matches logits."""

    card: ClassVar[Card] = Card(title="Held", equations="none")
    loss_weight: float = hyperparameter(1.0)

    def knowledge(self, teacher, student):
        return {"logits": reduced(held)}

    def loss(self, step):
        STEPPED.touch()
        gaps = (step.logits - step.teacher["logits"]).square().mean()
        return {**super().loss(step), "gaps": self.loss_weight * gaps}
'''


def test_the_first_trial_trains_before_the_first_view_is_complete(
    undisturbed: Undisturbed, users_methods: Path, tmp_path: Path
) -> None:
    """Whatever the time it takes: a trial that waited for the whole view would wait for a teacher that waits for its step."""
    (users_methods / "held.py").write_text(HELD)
    train = 1200  # 512 of them at a time, after the 130 with which the teacher's speed is measured
    changes = {
        "name": "held",
        "dataset": {"name": "digits", "validation": 80, "options": {"limit": train + 80}},
        "views": {"policy": [], "count": 1},
        "teachers": {"big": {"model": "lenet", "train": {"epochs": 1}}},
        "students": [{"model": "mlp", "hidden": [16]}],
        "methods": {"held": {"loss_weight": 1.0}},
        "search": {"max_epochs": 1, "trials_per_method": 1},
        "knowledge": {"way": "cached"},
        "method_paths": [str(users_methods)],
    }
    results = Sweep.from_yaml(write_spec(tmp_path / "held.yaml", **changes), home=undisturbed.home).run()
    assert {record.status for record in results.records} == {"finished"}
    (teacher,) = results.facts.teachers
    assert (teacher.way, teacher.samples_forwarded, teacher.samples_reused) == ("cached", train, train)
    (record,) = [record for record in results.records if record.trial.teachers]
    # Of nineteen batches; its one epoch began with a view that was sure not to be complete.
    assert 1 <= record.teaching["remote_calls"] <= 1 + record.teaching["wait_seconds"] / REPEAT_S


# Processes die


def descendants(root: int) -> dict[int, str]:
    """Command lines of all processes below `root`, by process id."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found: dict[int, str] = {}
    for process in parents:
        ancestor = process
        while ancestor > 1 and ancestor != root:
            ancestor = parents.get(ancestor, 0)
        if ancestor == root and process != root:
            try:
                found[process] = Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
    return found


def kill_worker(name: str) -> int:
    """Kills a worker of this process's cluster that runs `name`; gives how many there were."""
    workers = [process for process, command in descendants(os.getpid()).items() if command.startswith(f"ray::{name}")]
    if workers:
        os.kill(workers[0], signal.SIGKILL)
    return len(workers)


@dataclass
class Killer(Progress):
    """Kills the teacher while it is trained and again when trials start, and the worker of a trial under way."""

    killed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__("tiny", quiet=True)

    def teacher(self, name: str, text: str) -> None:
        if "training" in text:
            self._once("teacher in training", "TeacherActor")

    def trial_started(self, trial: Trial) -> None:
        super().trial_started(trial)
        self._once("teacher", "TeacherActor")

    def trial_epoch(self, key: str, epoch: int, accuracy: float | None) -> None:
        super().trial_epoch(key, epoch, accuracy)
        if epoch == 1:
            self._once("trial", "DistillTrial")

    def _once(self, what: str, worker: str) -> None:
        if what not in self.killed and kill_worker(worker):
            self.killed.append(what)


def test_a_sweep_whose_teacher_and_trials_are_killed_ends_as_an_undisturbed_one(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    killer = Killer()
    results = Sweep.from_yaml(undisturbed.spec, home=tmp_path / "home", progress=killer).run()
    assert killer.killed == ["teacher in training", "teacher", "trial"]
    assert weights_of(results.records) == weights_of(undisturbed.results.records)
    assert {record.status for record in results.records} == {"finished"}


# Trials fail

FAILING = '''
"""A method that fails in its second epoch."""

from dataclasses import dataclass
from typing import ClassVar

from stillhouse.distill.method import Card, Method, hyperparameter


@dataclass(frozen=True, kw_only=True)
class Failing(Method):
    """Raises."""

    card: ClassVar[Card] = Card(title="Failing", equations="none")
    loss_weight: float = hyperparameter(1.0)

    def loss(self, step):
        if step.epoch == 1:
            raise ArithmeticError(f"no loss for the weight {self.loss_weight:g}")
        return super().loss(step)
'''


@pytest.fixture
def users_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "failing.py").write_text(FAILING)
    monkeypatch.setattr(methods, "__path__", list(methods.__path__))
    yield folder
    forget_methods("failing", "held")


def forget_methods(*names: str) -> None:
    """As a new process does, which reads their files."""
    methods.find.cache_clear()
    for name in names:
        sys.modules.pop(f"stillhouse.methods.{name}", None)


def test_a_trial_that_raises_fails_alone_with_its_reason_in_the_ledger(
    undisturbed: Undisturbed, users_methods: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    changes = {
        "name": "failing",
        "teachers": {},
        "methods": {"scratch": {}, "failing": {"loss_weight": 3.0}},
        "students": [{"model": "mlp", "hidden": [16]}],
        "search": {"max_epochs": EPOCHS, "trials_per_method": 1},
        "method_paths": [str(users_methods)],
    }
    spec = write_spec(tmp_path / "tiny.yaml", **changes)
    answer = CliRunner().invoke(app, ["sweep", str(spec), "--home", str(undisturbed.home), "--json"])
    assert answer.exit_code == 3, answer.stderr
    document = json.loads(answer.stdout)
    assert document["status"] == "failures"
    assert document["trials"] == {"planned": 2, "finished": 1, "failed": 1, "reused": 0}
    records = {record.trial.method: record for record in SweepHome(undisturbed.home, "failing").read_records()}
    assert records["scratch"].status == "finished"
    failed = records["failing"]
    assert failed.status == "failed"
    assert failed.reason == "ArithmeticError: no loss for the weight 3 (failing.py:19)"
    assert len(failed.curve) == failed.epochs_run == 1
    assert failed.reason in capfd.readouterr().err

    # A method that is mended is another one: its trials run again, and no other's.
    (users_methods / "failing.py").write_text(FAILING.replace("step.epoch == 1", "step.epoch == 1000"))
    forget_methods("failing")
    answer = CliRunner().invoke(app, ["sweep", str(spec), "--home", str(undisturbed.home), "--json"])
    assert answer.exit_code == 0, answer.stderr
    assert json.loads(answer.stdout)["trials"] == {"planned": 2, "finished": 2, "failed": 0, "reused": 1}
    sweep_home = SweepHome(undisturbed.home, "failing")
    mended = {record.trial.method: record.trial.key for record in sweep_home.read_records()}
    assert mended["scratch"] == records["scratch"].trial.key
    assert mended["failing"] != failed.trial.key
    (aside,) = (sweep_home.ledger.folder / "aside").iterdir()
    assert aside.name.startswith(failed.trial.key)
    assert "the code of 1 trials has changed since they ran (failing on mlp); they run again" in capfd.readouterr().err


# The driver dies


def start(spec: Path, home: Path) -> "subprocess.Popen[str]":
    """The command line in a process group of its own, as a shell starts it."""
    import stillhouse

    package = Path(stillhouse.__file__).parents[1]
    return subprocess.Popen(
        [sys.executable, "-m", "stillhouse.cli", "sweep", str(spec), "--home", str(home), "--json"],
        env={**os.environ, "PYTHONPATH": str(package)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_until(true: Callable[[], bool], process: "subprocess.Popen[str]", seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, f"the sweep ended early: {process.communicate()[1]}"
        assert time.monotonic() < deadline, "the sweep takes too long"
        time.sleep(0.01)


@dataclass
class Troubled:
    """A sweep that was interrupted, damaged, killed and ended at last; and what was seen on the way."""

    sweep_home: SweepHome
    interrupted: tuple[int, str, str]
    kept: dict[str, tuple[int, int]]
    garbled: str
    second_driver: tuple[int, str, str]
    kept_by_the_killed: dict[str, tuple[int, int]]
    survivors: list[str]
    last: tuple[int, str, str]
    records: dict[str, TrialRecord]
    stamps: dict[str, tuple[int, int]]


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> Troubled:
    folder = tmp_path_factory.mktemp("trou bled")
    # One trial a time, and nobody listens to the tracking: each of the three drivers starts a worker less and no store.
    changes: dict[str, Any] = {"max_concurrent_trials": 1, "tracking": {"uri": "http://127.0.0.1:9"}}
    spec, sweep_home = write_spec(folder / "tiny.yaml", **changes), SweepHome(folder / "home", "tiny")

    def records() -> int:
        return len(list(sweep_home.ledger.folder.glob("*.record")))

    process = start(spec, sweep_home.home)
    wait_until((sweep_home.folder / "spec.json").exists, process)
    answer = CliRunner().invoke(app, ["sweep", str(spec), "--home", str(sweep_home.home), "--json"])
    second_driver = answer.exit_code, answer.stdout, answer.stderr
    wait_until(lambda: records() >= 1, process)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    interrupted = process.returncode, output, errors
    kept = stamps(sweep_home)

    garbled = min(kept)
    path = sweep_home.ledger.folder / f"{garbled}.record"
    path.write_bytes(path.read_bytes()[:-9])
    process = start(spec, sweep_home.home)
    wait_until(lambda: records() > len(kept), process)
    below = descendants(process.pid)
    process.kill()
    process.communicate()
    kept_by_the_killed = {key: stamp for key, stamp in stamps(sweep_home).items() if key != garbled}
    # Ray's own agents look for their parent now and then only.
    workers = {child: command for child, command in below.items() if not command.startswith(AGENTS)}
    deadline = time.monotonic() + 30
    while (survivors := [workers[child] for child in workers if is_running(child)]) and time.monotonic() < deadline:
        time.sleep(0.1)

    process = start(spec, sweep_home.home)
    output, errors = process.communicate(timeout=240)
    last = process.returncode, output, errors
    return Troubled(
        sweep_home, interrupted, kept, garbled, second_driver, kept_by_the_killed, survivors, last,
        sweep_home.ledger.read_all()[0], stamps(sweep_home),
    )  # fmt: skip


AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_ctrl_c_ends_with_130_and_the_command_to_go_on(troubled: Troubled) -> None:
    code, output, errors = troubled.interrupted
    assert code == 130
    assert output == ""
    command = f"stillhouse resume tiny --home {shlex.quote(str(troubled.sweep_home.home))}"
    assert errors.rstrip().endswith(f"interrupted; finished trials are stored. Continue with: {command}")
    assert "Traceback" not in errors


def test_a_sweep_in_the_middle_was_hit(troubled: Troubled) -> None:
    """What the tests below rest on: trials were finished and others were not, each time."""
    assert 1 <= len(troubled.kept) < 10
    assert len(troubled.kept) <= len(troubled.kept_by_the_killed) < 9


def test_a_second_driver_is_refused_in_one_sentence(troubled: Troubled) -> None:
    code, output, errors = troubled.second_driver
    assert code == 4
    assert output == ""
    assert errors.count("\n") == 1
    assert "another process already runs sweep 'tiny'" in errors


def test_a_killed_driver_takes_its_cluster_with_it(troubled: Troubled) -> None:
    assert troubled.survivors == []


def test_no_finished_trial_is_run_again(troubled: Troubled) -> None:
    before = troubled.kept | troubled.kept_by_the_killed
    del before[troubled.garbled]
    assert {key: troubled.stamps[key] for key in before} == before


def test_a_trial_with_a_garbled_record_is_run_again(troubled: Troubled) -> None:
    assert troubled.stamps[troubled.garbled] != troubled.kept[troubled.garbled]
    assert troubled.records[troubled.garbled].status == "finished"


def test_the_same_command_ends_the_sweep_and_says_what_it_reused(troubled: Troubled) -> None:
    code, output, errors = troubled.last
    assert code == 0, errors
    document = json.loads(output)
    assert document["trials"] | {"reused": None} == {"planned": 10, "finished": 10, "failed": 0, "reused": None}
    assert document["trials"]["reused"] >= len(troubled.kept_by_the_killed)


def test_a_troubled_sweep_has_the_results_of_an_undisturbed_one(troubled: Troubled, undisturbed: Undisturbed) -> None:
    assert weights_of(troubled.records.values()) == weights_of(undisturbed.results.records)
    for record in undisturbed.results.records:
        metrics = {name: record.metrics[name] for name in ("validation_accuracy", "test_accuracy", "parameters")}
        assert troubled.records[record.trial.key].metrics.items() >= metrics.items()


def test_what_was_forwarded_is_counted_over_all_runs_of_the_sweep(troubled: Troubled) -> None:
    """The log of filled shards outlives a killed driver, so nothing is counted twice and nothing is lost."""
    from stillhouse.knowledge.fill_log import count_fills

    facts = troubled.sweep_home.read_facts()
    assert facts is not None
    (teacher,) = facts.teachers
    assert teacher.trained_now, "by one of the runs"
    assert count_fills(troubled.sweep_home.home / "knowledge", teacher.key)["samples"] == VIEWS * TRAIN
    assert teacher.samples_forwarded == VIEWS * TRAIN
