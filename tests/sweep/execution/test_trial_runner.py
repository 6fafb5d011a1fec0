"""One trial from its first step to its record, in this process."""

import dataclasses
import errno
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from stillhouse import methods
from stillhouse.data.datasets import ImageData
from stillhouse.data.views import Views
from stillhouse.distill.method import Method, Setup, Stage, Step
from stillhouse.distill.stage_training import StageTraining
from stillhouse.distill.trainer import Trainer
from stillhouse.errors import InfrastructureError, TrialError
from stillhouse.knowledge import logits
from stillhouse.models.registry import build_model
from stillhouse.models.weights import load_weights, weights_hash
from stillhouse.spec.records import StudentChoice, Trial
from stillhouse.spec.training import Training
from stillhouse.sweep.execution.students import student_key
from stillhouse.sweep.execution.trial_environment import TeacherScore, TrialEnvironment
from stillhouse.sweep.execution.trial_records import failure_reason
from stillhouse.sweep.execution.trial_runner import TrialRunner, run_to_end
from stillhouse.sweep.home.ledger import Ledger
from stillhouse.teachers.ticket import TeacherTicket

MakeTrial = Callable[..., Trial]


@pytest.fixture
def environment(tmp_path: Path, views: Views) -> TrialEnvironment:
    student = student_key(StudentChoice(name="", model="mlp", options={"hidden": [16]}))
    return TrialEnvironment(
        folder=str(tmp_path / "sweep"),
        views=views,
        training=Training(batch_size=40),
        latencies={student: {"latency_ms": 0.25}},
        checkpoint_interval_s=0.0,
    )


@pytest.fixture(scope="module")
def ticket(sealed_teacher: Callable[..., TeacherTicket]) -> TeacherTicket:
    return sealed_teacher("lenet")


def ledger_of(environment: TrialEnvironment) -> Ledger:
    return Ledger(Path(environment.folder) / "ledger")


def test_a_trial_ends_with_a_record_of_all_that_was_found(
    environment: TrialEnvironment, digits: ImageData, make_trial: MakeTrial
) -> None:
    record = run_to_end(make_trial("key1"), environment, digits)
    assert ledger_of(environment).read("key1") == record
    assert (record.status, record.reason, record.epochs_run) == ("finished", None, 2)
    student = build_model("mlp", num_classes=10, input_shape=(1, 8, 8), hidden=[16])
    load_weights(student, Path(environment.folder) / str(record.weights))
    assert weights_hash(student) == record.weights_hash
    student.eval()
    with torch.no_grad():
        right = student(digits.normalise(digits.test.images)).argmax(1) == digits.test.labels
    assert record.metrics["test_accuracy"] == pytest.approx(float(right.float().mean()))
    assert record.metrics["validation_accuracy"] == record.curve[-1]["validation_accuracy"]
    # (64 + 1) * 16 + (16 + 1) * 10 weights, and one multiply-accumulate for each that is no bias.
    assert record.metrics["parameters"] == record.metrics["trainable_parameters"] == 1210
    assert record.metrics["macs"] == 64 * 16 + 16 * 10
    assert record.metrics["latency_ms"] == 0.25
    assert record.metrics["train_seconds"] == pytest.approx(sum(entry["seconds"] for entry in record.curve))
    assert "compression_ratio" not in record.metrics
    assert record.code["version"]
    assert record.started <= record.finished


@pytest.mark.parametrize(("learning_rate", "collapsed"), [(1e-12, True), (0.1, False)])
def test_a_student_that_learned_nothing_is_marked_in_the_ledger(
    environment: TrialEnvironment, digits: ImageData, make_trial: MakeTrial, learning_rate: float, collapsed: bool
) -> None:
    """Of 40 validation images of ten equal classes, Wilson's interval of 8 right ones begins at 0.105."""
    training = Training(batch_size=40, learning_rate=learning_rate)
    record = run_to_end(make_trial("marked", epochs=6), dataclasses.replace(environment, training=training), digits)
    assert record.collapsed is collapsed
    assert collapsed is (record.metrics["validation_accuracy"] < 8 / 40)
    stored = ledger_of(environment).read("marked")
    assert stored is not None
    assert stored.collapsed is collapsed


def test_what_a_method_kept_beside_the_student_is_reported_and_not_counted_as_student(
    environment: TrialEnvironment, digits: ImageData, make_trial: MakeTrial
) -> None:
    record = run_to_end(make_trial(method="mutual_learning"), environment, digits)
    assert record.metrics["parameters"] == 1210
    assert record.metrics["helper_bytes"] == 4 * 1210  # one peer of the same kind
    assert "helper_bytes" not in run_to_end(make_trial("plain"), environment, digits).metrics


def test_a_taught_trial_reads_sealed_views_and_is_compared_with_its_teacher(
    environment: TrialEnvironment, digits: ImageData, ticket: TeacherTicket, make_trial: MakeTrial
) -> None:
    environment = dataclasses.replace(
        environment, tickets={"big": ticket}, teachers={"big": TeacherScore(parameters=2420, test_value=0.75)}
    )
    record = run_to_end(make_trial(method="kd", teacher="big"), environment, digits)
    assert record.status == "finished", record.reason
    assert record.metrics["compression_ratio"] == 2.0
    assert record.metrics["accuracy_drop"] == pytest.approx(0.75 - record.metrics["test_accuracy"])
    assert record.teaching["way"] == "cached"
    assert record.teaching["samples_gathered"] == 2 * 160
    assert record.teaching["bytes_gathered"] == 2 * 160 * 10 * 4
    assert record.teaching["samples_forwarded"] == record.teaching["remote_calls"] == 0


def test_an_inline_teacher_forwards_every_sample_of_every_epoch(
    environment: TrialEnvironment, digits: ImageData, ticket: TeacherTicket, make_trial: MakeTrial
) -> None:
    inline = dataclasses.replace(ticket, modes={logits().id: "inline"})
    environment = dataclasses.replace(environment, tickets={"big": inline})
    record = run_to_end(make_trial(method="kd", teacher="big"), environment, digits)
    assert record.teaching["way"] == "inline"
    assert record.teaching["samples_forwarded"] == 2 * 160
    assert record.teaching["samples_gathered"] == 0


def test_what_was_taken_of_a_teacher_before_a_trial_was_killed_counts(
    environment: TrialEnvironment, digits: ImageData, ticket: TeacherTicket, make_trial: MakeTrial
) -> None:
    scores = {"big": TeacherScore(parameters=2420, test_value=0.75)}
    environment = dataclasses.replace(environment, tickets={"big": ticket}, teachers=scores)
    trial = make_trial(method="kd", teacher="big", epochs=4)
    killed = TrialRunner(trial, environment, digits)
    for _ in range(3):
        killed.run_epoch()
    again = TrialRunner(trial, environment, digits)
    again.run_epoch()
    teaching = again.finish().teaching
    assert teaching["samples_gathered"] == 4 * 160
    assert teaching["bytes_gathered"] == 4 * 160 * 10 * 4


def test_a_trial_that_was_killed_goes_on_at_its_checkpoint_and_ends_the_same(
    environment: TrialEnvironment, digits: ImageData, make_trial: MakeTrial, tmp_path: Path
) -> None:
    trial = make_trial(epochs=4)
    killed = TrialRunner(trial, environment, digits)
    for _ in range(3):
        killed.run_epoch()
    again = TrialRunner(trial, environment, digits)
    assert len(again.curve) == 3
    again.run_epoch()
    record = again.finish()
    undisturbed = run_to_end(trial, dataclasses.replace(environment, folder=str(tmp_path / "other")), digits)
    assert record.weights_hash == undisturbed.weights_hash
    assert [entry["epoch"] for entry in record.curve] == [1, 2, 3, 4]
    assert not (Path(environment.folder) / "trials" / trial.key).exists()


@pytest.mark.parametrize("content", [b"", b"garbled"])
def test_a_damaged_checkpoint_costs_time_alone(
    environment: TrialEnvironment, digits: ImageData, make_trial: MakeTrial, tmp_path: Path, content: bytes
) -> None:
    trial = make_trial()
    TrialRunner(trial, environment, digits).run_epoch()
    checkpoint = Path(environment.folder) / "trials" / trial.key / "checkpoint"
    checkpoint.write_bytes(content)
    record = run_to_end(trial, environment, digits)
    undisturbed = run_to_end(trial, dataclasses.replace(environment, folder=str(tmp_path / "other")), digits)
    assert record.weights_hash == undisturbed.weights_hash


def test_a_checkpoint_is_written_when_it_is_time_and_not_at_the_end(
    environment: TrialEnvironment, digits: ImageData, make_trial: MakeTrial
) -> None:
    patient = TrialRunner(make_trial("patient"), dataclasses.replace(environment, checkpoint_interval_s=1e9), digits)
    eager = TrialRunner(make_trial("eager"), environment, digits)
    folder = Path(environment.folder) / "trials"
    for runner in (patient, eager):
        runner.run_epoch()
    assert not (folder / "patient").exists()
    assert (folder / "eager" / "checkpoint").exists()
    written = (folder / "eager" / "checkpoint").stat().st_mtime_ns
    eager.run_epoch()
    assert (folder / "eager" / "checkpoint").stat().st_mtime_ns == written


def full(_descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_costs_the_checkpoint_and_not_the_trial(
    environment: TrialEnvironment, digits: ImageData, make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = TrialRunner(make_trial(), environment, digits)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        runner.run_epoch()
    runner.run_epoch()
    assert runner.finish().status == "finished"


def test_a_full_disk_at_the_end_leaves_no_record_and_the_trial_may_end_again(
    environment: TrialEnvironment, digits: ImageData, make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = TrialRunner(make_trial(), environment, digits)
    while not runner.finished:
        runner.run_epoch()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises((OSError, InfrastructureError)):
            runner.finish()
    assert ledger_of(environment).read("a") is None
    assert run_to_end(make_trial(), environment, digits).status == "finished"


class Raising(Method):
    """Raises in its second epoch."""

    error: Exception = ArithmeticError("no loss")

    def loss(self, step: Step) -> dict[str, Tensor]:
        if step.epoch == 1:
            raise self.error
        return super().loss(step)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ArithmeticError("no loss"), r"ArithmeticError: no loss \(test_trial_runner.py:\d+\)"),
        (RuntimeError("shapes differ\nat line 3\n"), r"RuntimeError: shapes differ \(test_trial_runner.py:\d+\)"),
        (KeyError(), r"KeyError \(test_trial_runner.py:\d+\)"),
        (
            torch.OutOfMemoryError("CUDA out of memory.\nTried"),
            r"out of memory: CUDA out of memory; lower training.batch_size, .* or give each trial a larger trial_resources.gpu",
        ),
        (MemoryError(), r"out of memory: no free memory; lower training.batch_size, set training.micro_batch to auto"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_trial_that_raises_has_its_reason_in_one_sentence(
    environment: TrialEnvironment,
    digits: ImageData,
    make_trial: MakeTrial,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    reason: str,
) -> None:
    monkeypatch.setattr(methods, "find", lambda _name: type("Failing", (Raising,), {"error": error}))
    record = run_to_end(make_trial(), environment, digits)
    assert (record.status, record.epochs_run, len(record.curve)) == ("failed", 1, 1)
    assert record.reason is not None
    assert re.fullmatch(reason, record.reason), record.reason
    assert record.metrics == {}
    assert ledger_of(environment).read("a") == record


def test_an_error_of_the_gpu_is_no_failure_of_the_trial(
    environment: TrialEnvironment, digits: ImageData, make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an illegal access of any process code, all later calls of CUDA fail: nothing is known about the trial."""

    def poisoned() -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(methods, "find", lambda _name: type("Failing", (Raising,), {"error": RuntimeError("device-side")}))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", poisoned)
    with pytest.raises(InfrastructureError, match="the GPU failed in this process"):
        run_to_end(make_trial(), environment, digits)
    assert ledger_of(environment).read("a") is None


def test_a_library_without_memory_makes_a_trial_start_smaller(
    environment: TrialEnvironment, digits: ImageData, make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cuBLAS and cuDNN allocate apart from PyTorch and report it by a status name."""
    make_step = StageTraining.make_step

    def limited(current: StageTraining, indices: Any, *arguments: Any, **options: Any) -> Step:
        if len(indices) > 20:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        return make_step(current, indices, *arguments, **options)

    monkeypatch.setattr(StageTraining, "make_step", limited)
    recipe = Training(batch_size=40, micro_batch="auto")
    record = run_to_end(make_trial(), dataclasses.replace(environment, training=recipe), digits)
    assert (record.status, record.metrics.get("micro_batch")) == ("finished", 20)


class _NoRoom:
    """A GPU on which a trainer fits only while the images are elsewhere."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, part: str, *, always: bool = False) -> None:
        self.tried: list[bool] = []
        original = getattr(Trainer, part)

        def limited(trainer: Trainer, *arguments: Any, **options: Any) -> Any:
            if part == "__init__":
                self.tried.append(options["images_on_device"])
            if always or len(self.tried) == 1:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return original(trainer, *arguments, **options)

        monkeypatch.setattr(Trainer, part, limited)
        if part != "__init__":
            made = Trainer.__init__

            def noted(trainer: Trainer, *arguments: Any, **options: Any) -> None:
                self.tried.append(options["images_on_device"])
                made(trainer, *arguments, **options)

            monkeypatch.setattr(Trainer, "__init__", noted)


@pytest.mark.parametrize("part", ["__init__", "load"])
@pytest.mark.parametrize("micro_batch", [None, "auto"])
def test_a_trial_that_finds_no_memory_before_its_first_step_runs_with_its_images_elsewhere(
    environment: TrialEnvironment,
    digits: ImageData,
    make_trial: MakeTrial,
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    micro_batch: Literal["auto"] | None,
) -> None:
    environment = dataclasses.replace(environment, training=Training(batch_size=40, micro_batch=micro_batch))
    expected = run_to_end(make_trial("usual"), environment, digits)
    no_room = _NoRoom(monkeypatch, part)
    record = run_to_end(make_trial("short"), environment, digits)
    assert no_room.tried == [True, False]
    assert (record.status, record.weights_hash) == ("finished", expected.weights_hash)


def test_a_trial_that_finds_no_memory_even_then_raises_it_once(
    environment: TrialEnvironment, digits: ImageData, make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_room = _NoRoom(monkeypatch, "__init__", always=True)
    with pytest.raises(torch.OutOfMemoryError):
        TrialRunner(make_trial(), environment, digits)
    assert no_room.tried == [True, False]


def test_a_trial_that_diverges_says_so(environment: TrialEnvironment, digits: ImageData, make_trial: MakeTrial) -> None:
    recipe = Training(batch_size=40, learning_rate=1e18, schedule="constant")
    record = run_to_end(make_trial(epochs=9), dataclasses.replace(environment, training=recipe), digits)
    assert record.status == "failed"
    assert str(record.reason).startswith("diverged in epoch")


def test_a_trial_does_not_read_the_test_split_before_its_end(
    environment: TrialEnvironment, digits: ImageData, make_trial: MakeTrial
) -> None:
    arrays, facts = digits.to_arrays()
    held = {name: array for name, array in arrays.items() if not name.startswith("test")}
    fresh = ImageData.from_arrays(held, facts, read_test=lambda: (arrays["test_images"], arrays["test_labels"]))
    runner = TrialRunner(make_trial(), environment, fresh)
    while not runner.finished:
        runner.run_epoch()
    assert fresh.test_reads == 0
    runner.finish()
    assert fresh.test_reads == 1


def test_a_stage_that_says_nothing_of_the_end_is_not_comparable(
    environment: TrialEnvironment,
    digits: ImageData,
    ticket: TeacherTicket,
    make_trial: MakeTrial,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Staged(Method):
        def stages(self, setup: Setup) -> Sequence[Stage]:
            return [Stage(name="hint", epochs=1, comparable=False), Stage(name="main", epochs=1)]

    monkeypatch.setattr(methods, "find", lambda _name: Staged)
    runner = TrialRunner(make_trial(), environment, digits)
    comparable = []
    while not runner.finished:
        runner.run_epoch()
        comparable.append(runner.comparable)
    assert comparable == [False, True]


def test_equal_architectures_share_a_latency_whatever_their_label() -> None:
    one = StudentChoice(name="a", model="mlp", options={"width": 0.5, "hidden": [16]})
    other = StudentChoice(name="b", model="mlp", options={"hidden": [16], "width": 0.5})
    assert student_key(one) == student_key(other)
    assert student_key(one) != student_key(one.model_copy(update={"options": {"width": 0.25, "hidden": [16]}}))


def test_a_trials_own_error_is_its_reason_word_for_word() -> None:
    assert failure_reason(TrialError("diverged")) == "diverged"


def test_trials_use_the_trainer_that_notebooks_use(
    environment: TrialEnvironment, digits: ImageData, views: Views, make_trial: MakeTrial
) -> None:
    record = run_to_end(make_trial(seed=3), environment, digits)
    trainer = Trainer(
        new_student=lambda: build_model("mlp", num_classes=10, input_shape=(1, 8, 8), hidden=[16]),
        method=methods.find("scratch")(),
        data=digits,
        views=views,
        training=environment.training,
        epochs=2,
        seed=3,
    )
    trainer.fit()
    assert weights_hash(trainer.student) == record.weights_hash
