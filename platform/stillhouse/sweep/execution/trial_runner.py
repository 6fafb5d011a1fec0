"""One trial from its first step to its record in the ledger. Knows nothing of Tune, so it runs in a test or a notebook."""

import contextlib
import gc
import shutil
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from stillhouse.data.datasets import ImageData
from stillhouse.data.views import Views
from stillhouse.distill.hyperparameters import make_method
from stillhouse.distill.parallel import ALONE, Workers, split_problem
from stillhouse.distill.trainer import Trainer
from stillhouse.durable import Damaged
from stillhouse.errors import InfrastructureError, TrialError
from stillhouse.home_access.node_home import HomeAddress, NodeHome, node_home
from stillhouse.knowledge.code import named_version
from stillhouse.models.architecture import Architecture
from stillhouse.models.blueprint import blueprint
from stillhouse.models.registry import build_model
from stillhouse.models.size import ModelSize, measure_size
from stillhouse.models.weights import save_weights
from stillhouse.provenance import code_facts
from stillhouse.spec.records import StudentChoice, Trial, TrialRecord
from stillhouse.spec.training import Training
from stillhouse.sweep.home.ledger import Ledger
from stillhouse.teachers.client import TrialTeacher, add_counters, join_sources, sum_counters, weights_here
from stillhouse.teachers.definition import TeacherTicket

CHECKPOINT_INTERVAL_S = 5.0


@dataclass(frozen=True, kw_only=True)
class TeacherScore:
    """What a student is compared with."""

    parameters: int
    test_accuracy: float


@dataclass(frozen=True, kw_only=True)
class TrialEnvironment:
    """What all trials of a sweep share. Plain data, sent to each worker once.

    Attributes:
        folder: the sweep's absolute folder.
        home: in which it lies; None where every process sees the folder.
        latencies: what `latency` measured, by `student_key`.
        checkpoint_interval_s: the least time between two checkpoints of a trial.
        threads: of each worker of a trial.
        workers: how many processes train each student.
        gpu_share: of one GPU, that each of them holds; 0 for none.
    """

    folder: str
    views: Views
    training: Training
    tickets: Mapping[str, TeacherTicket] = field(default_factory=dict)
    teachers: Mapping[str, TeacherScore] = field(default_factory=dict)
    latencies: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    threads: int = 1
    workers: int = 1
    gpu_share: float = 0.0
    import_paths: tuple[str, ...] = ()
    method_folders: tuple[str, ...] = ()
    checkpoint_interval_s: float = CHECKPOINT_INTERVAL_S
    home: HomeAddress | None = None

    @property
    def own_home(self) -> NodeHome:
        """The home as this process has it."""
        return node_home(self.home or HomeAddress(path=self.folder))


class TrialRunner:
    """Runs one trial: builds, resumes, trains, evaluates once on the test split, writes the record.

    Where several workers train the student each has a runner; checkpoints and the record are written by that of worker 0.

    Raises:
        InfrastructureError: the teacher is gone or the disk is full; the trial may run again.
    """

    def __init__(
        self, trial: Trial, environment: TrialEnvironment, data: ImageData, *, device: str = "cpu", workers: Workers = ALONE
    ) -> None:
        self.trial = trial
        # What earlier attempts took of the teachers, and what the other workers did in this one.
        self._taken_before: dict[str, Any] = {}
        self._taken_by_others: dict[str, Any] = {}
        self._workers = workers
        self._environment = environment
        self._data = data
        self._device = device
        self._started = now()
        self._home = environment.own_home
        self._sweep = self._home.here(environment.folder)
        self._folder = self._sweep / "trials" / trial.key
        self._saved = time.monotonic()
        self._teachers: list[TrialTeacher] = []
        self._trainer = self._make_trainer()
        self._home.pull(self._checkpoint)
        try:
            self._taken_before = self._trainer.load(self._checkpoint)
        except FileNotFoundError:
            pass
        except Damaged:
            # A fresh trainer: a half-loaded one is not usable, and the checkpoint is no loss but time.
            self._trainer = self._make_trainer()
        if not self._trainer.workers_agree():
            raise InfrastructureError(
                f"the workers of a trial read different checkpoints at {self._checkpoint}; "
                f"keep the sweep on storage that all nodes see"
            )

    @property
    def finished(self) -> bool:
        return self._trainer.finished

    @property
    def curve(self) -> list[dict[str, Any]]:
        return self._trainer.curve

    @property
    def comparable(self) -> bool:
        """Whether the accuracy of the epoch just run says anything about the student's end."""
        ran = {stage.name: stage.comparable for stage in self._trainer.stages}
        return not self.curve or ran.get(self.curve[-1]["stage"], True)

    def run_epoch(self) -> dict[str, Any]:
        """One epoch and, when it is time, a checkpoint. Returns the curve's entry.

        A trial that may use micro-batches and runs out of memory starts again with half as many samples at once, so that its
        result is that of the same trial with this `training.micro_batch`.

        Raises:
            TrialError: the loss is no longer finite.
            OutOfMemoryError: and smaller micro-batches are not allowed, or do not help.
        """
        while (entry := self._try_epoch()) is None:
            self._start_smaller()
        if self._workers.size > 1:
            self._count_others()
        if not self.comparable:
            # The entry stands in the curve: early stopping of a later run must not compare it either.
            entry["comparable"] = False
        due = time.monotonic() - self._saved >= self._environment.checkpoint_interval_s and self._workers.rank == 0
        if due and not self._trainer.finished:
            self.save()
        return entry

    def _try_epoch(self) -> dict[str, Any] | None:
        """The epoch's entry; None when memory ran out and there is a smaller micro-batch to try."""
        try:
            return self._trainer.run_epoch()
        except torch.OutOfMemoryError:
            allowed = self._environment.training.micro_batch == "auto" and self._workers.size == 1
            if not allowed or split_problem(self._trainer.method) is not None or self._micro_batch == 1:
                raise
        return None

    def _start_smaller(self) -> None:
        smaller = self._micro_batch // 2
        self._drop_checkpoint()
        self._taken_before = {}
        # What the old one holds must be free before the new one is made.
        del self._trainer
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._trainer = self._make_trainer(smaller)

    @property
    def _micro_batch(self) -> int:
        whole = min(self._environment.training.batch_size, len(self._data.train))
        return whole if self._trainer.micro_batch is None else self._trainer.micro_batch

    def _taken(self) -> dict[str, Any]:
        """What the whole trial took of the teachers up to its last whole epoch; nothing without one."""
        if not self._teachers:
            return {}
        shares = (self._taken_before, self._taken_by_others, add_counters(self._teachers))
        return sum_counters([share for share in shares if share])

    def _count_others(self) -> None:
        """All workers must come here together."""
        if not self._teachers:
            return
        own = add_counters(self._teachers)
        names = [name for name in own if name != "way"]
        mine = torch.tensor([own[name] for name in names], device=self._device)
        others = (self._workers.sum(mine) - mine).tolist()
        self._taken_by_others = {"way": own["way"], **dict(zip(names, others, strict=True))}

    def save(self) -> None:
        """Writes a checkpoint; a full disk costs the checkpoint, not the trial."""
        with contextlib.suppress(OSError):
            self._trainer.save(self._checkpoint, self._taken())
            self._home.push(self._checkpoint)
        self._saved = time.monotonic()

    def finish(self) -> TrialRecord:
        """Reads the test split, stores the student's weights, writes the record, drops the checkpoint."""
        student = self._trainer.classifier
        metrics = {
            **size_metrics(measure_size(student, self._data.input_shape)),
            **self._environment.latencies.get(student_key(self.trial.student), {}),
            "validation_accuracy": self._trainer.curve[-1]["validation_accuracy"],
            "test_accuracy": self._trainer.evaluate(self._data.test),
            "train_seconds": self._trainer.train_seconds,
        }
        if self._environment.training.micro_batch == "auto" and self._trainer.micro_batch is not None:
            metrics["micro_batch"] = self._trainer.micro_batch
        if self._trainer.helper_bytes:
            metrics["helper_bytes"] = self._trainer.helper_bytes
        for name, peer in self._trainer.peers().items():
            metrics[f"test_accuracy_{name}"] = self._trainer.evaluate(self._data.test, peer)
        scores = [self._environment.teachers[name] for name in self.trial.teachers]
        if scores:
            score = max(scores, key=lambda each: each.test_accuracy)
            metrics["compression_ratio"] = score.parameters / metrics["parameters"]
            metrics["accuracy_drop"] = score.test_accuracy - metrics["test_accuracy"]
        weights = Path("students") / f"{self.trial.key}.safetensors"
        digest = save_weights(
            student,
            self._sweep / weights,
            {"trial": self.trial.key, "model": self.trial.student.model},
        )
        self._home.push(self._sweep / weights)
        return self._write("finished", metrics=metrics, weights=str(weights), weights_hash=digest)

    def fail(self, reason: str) -> TrialRecord:
        """Writes the record of a trial that can not go on."""
        return self._write("failed", reason=reason)

    def _write(self, status: str, **fields: Any) -> TrialRecord:
        teaching: dict[str, Any] = {}
        if self._teachers:
            teaching = {**self._taken(), "wait_seconds": self._trainer.wait_seconds}
        record = TrialRecord.model_validate(
            {
                "trial": self.trial,
                "status": status,
                "epochs_run": self._trainer.epoch,
                "curve": self._trainer.curve,
                "teaching": teaching,
                "device": self._device,
                "code": code_facts(),
                "started": self._started,
                "finished": now(),
                **fields,
            }
        )
        _keep_record(record, self._environment)
        self._drop_checkpoint()
        return record

    def _drop_checkpoint(self) -> None:
        self._home.drop(self._checkpoint)
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _checkpoint(self) -> Path:
        return self._folder / "checkpoint"

    def _make_trainer(self, micro_batch: int | None = None) -> Trainer:
        trial = self.trial
        method = make_method(trial.method, trial.hyperparameters)
        tickets = [self._environment.tickets[name] for name in trial.teachers]
        architectures = [self._describe(each.definition.model, each.definition.options) for each in tickets]
        student = self._describe(trial.student.model, trial.student.options)
        self._teachers = []
        for ticket, architecture in zip(tickets, architectures, strict=True):
            prefix = f"{ticket.definition.name}/" if len(tickets) > 1 else ""
            asked = {f"{prefix}{name}": kind for name, kind in method.knowledge(architecture, student).items()}
            self._teachers.append(
                TrialTeacher(ticket, asked, labels=self._data.train.labels, calls=method.calls_teacher, device=self._device)
            )
        return Trainer(
            new_student=lambda: build_student(trial.student, self._data),
            method=method,
            data=self._data,
            views=self._environment.views,
            training=self._environment.training,
            epochs=trial.epochs,
            seed=trial.seed,
            teacher=join_sources([teacher.source for teacher in self._teachers if teacher.source is not None]),
            callable_teacher=self._teachers[0].callable if self._teachers else None,
            teacher_architecture=architectures[0] if architectures else None,
            teacher_weights=(lambda: load_file(weights_here(tickets[0]))) if tickets else None,
            student_name=trial.student.name,
            device=self._device,
            workers=self._workers,
            micro_batch=micro_batch,
        )

    def _describe(self, model: str, options: Mapping[str, Any]) -> Architecture:
        return blueprint(model, options, self._data.num_classes, self._data.input_shape).architecture


def run_to_end(trial: Trial, environment: TrialEnvironment, data: ImageData, *, device: str = "cpu") -> TrialRecord:
    """Runs a whole trial in this process; a trial that fails has its reason in the record."""
    runner = TrialRunner(trial, environment, data, device=device)
    try:
        while not runner.finished:
            runner.run_epoch()
        return runner.finish()
    except InfrastructureError:
        raise
    except Exception as error:
        return runner.fail(failure_reason(error))


def failed_record(trial: Trial, environment: TrialEnvironment, error: BaseException, *, device: str) -> TrialRecord:
    """Writes the record of a trial that failed before it had a runner."""
    record = TrialRecord(
        trial=trial,
        status="failed",
        reason=failure_reason(error),
        device=device,
        code=code_facts(),
        started=now(),
        finished=now(),
    )
    _keep_record(record, environment)
    return record


def existing_record(trial: Trial, environment: TrialEnvironment) -> TrialRecord | None:
    """The trial's record, if it has one already: a worker may die before it could say that it was done."""
    home = environment.own_home
    ledger = Ledger(home.here(environment.folder) / "ledger")
    home.pull(ledger.path(trial.key))
    return ledger.read(trial.key)


def _keep_record(record: TrialRecord, environment: TrialEnvironment) -> None:
    home = environment.own_home
    ledger = Ledger(home.here(environment.folder) / "ledger")
    ledger.write(record)
    home.push(ledger.path(record.trial.key))


def failure_reason(error: BaseException) -> str:
    """One sentence for the ledger: what happened, where in the code, and what to do about it where that is known."""
    if isinstance(error, TrialError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        said = str(error).splitlines()[0].rstrip(".") if str(error) else "no more"
        share = ", or give each trial a larger trial_resources.gpu" if isinstance(error, torch.OutOfMemoryError) else ""
        return f"out of memory: {said}; lower training.batch_size, set training.micro_batch to auto{share}"
    frame = traceback.extract_tb(error.__traceback__)[-1] if error.__traceback__ else None
    where = f" ({Path(frame.filename).name}:{frame.lineno})" if frame else ""
    said = next((f": {line.strip()}" for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}{said}{where}"


def build_student(student: StudentChoice, data: ImageData) -> nn.Module:
    return build_model(student.model, num_classes=data.num_classes, input_shape=data.input_shape, **student.options)


def student_key(student: StudentChoice) -> str:
    """Equal for equal architectures, whatever their label; the text of a user's own model counts."""
    options = ",".join(f"{name}={student.options[name]!r}" for name in sorted(student.options))
    version = named_version(student.model)
    return f"{student.model}({options})" + (f"#{version}" if version else "")


def size_metrics(size: ModelSize) -> dict[str, float]:
    return {
        "parameters": size.parameters,
        "trainable_parameters": size.trainable_parameters,
        "size_bytes": size.size_bytes,
        "macs": size.macs,
    }


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
