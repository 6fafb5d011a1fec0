"""One trial from its first step to its record in the ledger. It does not use Tune, so it also runs in a notebook."""

import contextlib
import shutil
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from stillhouse.compress.storage import nonzero_parameters, packed_state
from stillhouse.compress.students import begins_as_teacher, chain_of, describe_student, student_architecture
from stillhouse.data.datasets import ImageData
from stillhouse.device import check_device, free_memory, is_out_of_memory
from stillhouse.distill.ddp import ALONE, Workers
from stillhouse.distill.hyperparameters import make_method
from stillhouse.distill.interleaver import run_out
from stillhouse.distill.trainer import Trainer
from stillhouse.durable import Damaged
from stillhouse.errors import InfrastructureError
from stillhouse.models.architecture import Architecture
from stillhouse.models.blueprint import blueprint
from stillhouse.models.given_content import given_content
from stillhouse.models.size import measure_size
from stillhouse.models.weights import save_state, save_weights, state_bytes
from stillhouse.provenance import code_facts
from stillhouse.spec.collapse import no_better
from stillhouse.spec.records import Trial, TrialRecord
from stillhouse.sweep.execution.examination import examine
from stillhouse.sweep.execution.students import make_student, size_metrics, student_key
from stillhouse.sweep.execution.system_metrics import SystemSampler
from stillhouse.sweep.execution.trial_environment import TrialEnvironment
from stillhouse.sweep.execution.trial_records import failure_reason, store_record
from stillhouse.sweep.home.ledger import now
from stillhouse.teachers.trial_teacher import TrialTeacher, add_counters, join_sources, sum_counters, weights_here
from stillhouse.user_code import user_code


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
        # What earlier attempts used of the teachers, and what the other workers used in this one.
        self._used_before: dict[str, Any] = {}
        self._used_by_others: dict[str, Any] = {}
        self._workers = workers
        self._environment = environment
        self._data = data
        self._device = device
        self._started = now()
        self._system = SystemSampler(device)
        self._home = environment.own_home
        self._sweep = self._home.here(environment.folder)
        self._folder = self._sweep / "trials" / trial.key
        self._saved = time.monotonic()
        self._teachers: list[TrialTeacher] = []
        self._chain = chain_of(trial.student)
        self._conversion: dict[str, Any] | None = None
        self._kept_channels: Mapping[str, Sequence[int]] = {}
        self._source: Mapping[str, Tensor] | None = None
        # Now, not at the end: a file that the model's function reads may be replaced meanwhile.
        student = trial.student
        self._given = given_content(student.model, student.options, data.num_classes, data.input_shape)
        self._images_on_device = True
        self._home.pull(self._checkpoint)
        self._with_room_for(self._load)
        if not self._trainer.workers_agree():
            raise InfrastructureError(
                f"the workers of a trial read different checkpoints at {self._checkpoint}; "
                f"put the home on storage that all nodes share"
            )

    @property
    def finished(self) -> bool:
        return self._trainer.finished

    @property
    def curve(self) -> list[dict[str, Any]]:
        return self._trainer.curve

    @property
    def comparable(self) -> bool:
        """Whether the metric after the latest epoch predicts that of the trained student."""
        ran = {stage.name: stage.comparable for stage in self._trainer.stages}
        return not self.curve or ran.get(self.curve[-1]["stage"], True)

    def run_epoch(self) -> dict[str, Any]:
        """Runs one epoch and, when it is due, writes a checkpoint. Returns the entry of the curve.

        A trial that may use micro-batches and runs out of memory starts again with half as many samples at once, so that its
        result is that of the same trial with this `training.micro_batch`.

        Raises:
            TrialError: the loss is no longer finite.
            RuntimeError: memory ran out, and smaller micro-batches are not allowed or do not help.
        """
        return run_out(self.epoch_steps())

    def epoch_steps(self) -> Generator[None, None, dict[str, Any]]:
        """`run_epoch` in parts, as `Trainer.epoch_steps`."""
        while (entry := (yield from self._try_epoch())) is None:
            self._start_smaller()
        self._system.sample()
        if self._workers.size > 1:
            self._count_others()
        if not self.comparable:
            # Recorded in the curve, so that early stopping of a later run does not compare it either.
            entry["comparable"] = False
        due = time.monotonic() - self._saved >= self._environment.checkpoint_interval_s and self._workers.rank == 0
        if due and not self._trainer.finished:
            self.save()
        return entry

    def _try_epoch(self) -> Generator[None, None, dict[str, Any] | None]:
        """The entry of the epoch; None if memory ran out and a smaller micro-batch may help."""
        try:
            return (yield from self._trainer.epoch_steps())
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            allowed = self._environment.training.micro_batch == "auto" and self._workers.size == 1
            if not allowed or self._trainer.split_problem is not None or self._micro_batch == 1:
                raise
        return None

    def _start_smaller(self) -> None:
        smaller = self._micro_batch // 2
        self._drop_checkpoint()
        self._used_before = {}
        self._drop_trainer()
        self._with_room_for(partial(self._new_trainer, smaller))

    def _load(self) -> None:
        """Makes the trainer and continues where the checkpoint is, if there is one."""
        self._new_trainer()
        try:
            self._used_before = self._trainer.load(self._checkpoint)
        except FileNotFoundError:
            pass
        except Damaged:
            # A new trainer, since this one may be partially loaded. Losing the checkpoint costs only time.
            self._drop_trainer()
            self._new_trainer()

    def _new_trainer(self, micro_batch: int | None = None) -> None:
        self._trainer = self._make_trainer(micro_batch)

    def _with_room_for(self, make: Callable[[], None]) -> None:
        """Makes a trainer; if memory runs out, again with the images in the machine's memory, which changes no result."""
        try:
            make()
            return
        except RuntimeError as error:
            if not is_out_of_memory(error) or not self._images_on_device:
                raise
        # Not in the handler, where the error's frames hold what was made.
        self._images_on_device = False
        self._drop_trainer()
        make()

    def _drop_trainer(self) -> None:
        """Frees the memory of the trainer and of teachers in this process, before new ones are made."""
        vars(self).pop("_trainer", None)
        self._teachers = []
        free_memory()

    @property
    def _micro_batch(self) -> int:
        whole = min(self._environment.training.batch_size, len(self._data.train))
        return whole if self._trainer.micro_batch is None else self._trainer.micro_batch

    def _used(self) -> dict[str, Any]:
        """What the whole trial used of its teachers up to the last complete epoch; empty without a teacher."""
        if not self._teachers:
            return {}
        shares = (self._used_before, self._used_by_others, add_counters(self._teachers))
        return sum_counters([share for share in shares if share])

    def _count_others(self) -> None:
        """Adds up what the other workers used; a collective call of all workers."""
        if not self._teachers:
            return
        own = add_counters(self._teachers)
        names = [name for name in own if name != "way"]
        mine = torch.tensor([own[name] for name in names], device=self._device)
        others = (self._workers.sum(mine) - mine).tolist()
        self._used_by_others = {"way": own["way"], **dict(zip(names, others, strict=True))}

    def save(self) -> None:
        """Writes a checkpoint; a full disk costs the checkpoint, not the trial."""
        with contextlib.suppress(OSError):
            self._trainer.save(self._checkpoint, self._used())
            self._home.push(self._checkpoint)
        self._saved = time.monotonic()

    def finish(self) -> TrialRecord:
        """Evaluates on the test split, stores the student's weights, writes the record, removes the checkpoint."""
        task = self._trainer.task
        metric = task.metric
        validation = {name: value for name, value in self._trainer.curve[-1].items() if name == metric.column("validation")}
        if self._chain:
            self._trainer.finalise()
            validation = {name: self._trainer.evaluate(self._data.validation) for name in validation}
        student = self._trainer.classifier
        weights = Path("students") / f"{self.trial.key}.safetensors"
        stored = packed_state(self._chain, self._conversion or {}, self._trainer.student, student) if self._chain else None
        digest = self._store(student, stored, self._sweep / weights)
        value, evidence = examine(
            self._trainer.outputs, self._trainer.evaluate, self._data, task, self.trial, self._environment
        )
        metrics = {
            **size_metrics(measure_size(student, self._data.input_shape)),
            **self._operator_metrics(student, stored),
            **self._environment.latencies.get(student_key(self.trial.student), {}),
            **validation,
            metric.column("test"): value,
            "train_seconds": self._trainer.train_seconds,
            **evidence.numbers,
        }
        if self._environment.training.micro_batch == "auto" and self._trainer.micro_batch is not None:
            metrics["micro_batch"] = self._trainer.micro_batch
        if self._trainer.helper_bytes:
            metrics["helper_bytes"] = self._trainer.helper_bytes
        for name, peer in self._trainer.peers().items():
            metrics[f"{metric.column('test')}_{name}"] = self._trainer.evaluate(self._data.test, peer)
        metrics |= self._environment.against_teachers(metrics, self.trial, metric)
        # The mark chooses nothing, so without a validation split the test split decides it.
        column, judged = metric.column("test"), self._data.test
        if validation:
            column, judged = metric.column("validation"), self._data.validation
        collapsed = no_better(metrics[column], task.trivial_value(judged.labels), metric, len(judged))
        return self._write(
            "finished",
            metrics=metrics,
            weights=str(weights),
            weights_hash=digest,
            collapsed=collapsed,
            details=dict(evidence.details),
        )

    def _store(self, student: nn.Module, stored: Mapping[str, Tensor] | None, path: Path) -> str:
        """Writes the student's file; returns the hash of its tensors.

        Args:
            stored: its tensors, if operators packed them.
        """
        facts = {"trial": self.trial.key, "model": self.trial.student.model}
        digest = save_weights(student, path, facts) if stored is None else save_state(stored, path, facts)
        self._home.push(path)
        return digest

    def _operator_metrics(self, student: nn.Module, stored: Mapping[str, Tensor] | None) -> dict[str, float]:
        """What the operators left of the network; empty without operators."""
        if stored is None:
            return {}
        return {
            "size_bytes": state_bytes(stored),
            "nonzero_parameters": nonzero_parameters(student),
            "weight_bits": self._chain.weight_bits,
            "activation_bits": self._chain.activation_bits,
        }

    def fail(self, reason: str) -> TrialRecord:
        """Writes the record of a trial that failed."""
        return self._write("failed", reason=reason)

    def _write(self, status: str, **fields: Any) -> TrialRecord:
        teaching: dict[str, Any] = {}
        if self._teachers:
            teaching = {**self._used(), "wait_seconds": self._trainer.wait_seconds}
        record = TrialRecord.model_validate(
            {
                "trial": self.trial,
                "status": status,
                "epochs_run": self._trainer.epoch,
                "curve": self._trainer.curve,
                "teaching": teaching,
                "device": self._device,
                "code": code_facts(),
                "basis": self._environment.basis(self.trial, self._given),
                "conversion": self._conversion or {},
                "compression": self._chain.readable,
                "system": self._system.samples,
                "started": self._started,
                "finished": now(),
                **fields,
            }
        )
        store_record(record, self._environment)
        self._drop_checkpoint()
        return record

    def _drop_checkpoint(self) -> None:
        self._home.drop(self._checkpoint)
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _checkpoint(self) -> Path:
        return self._folder / "checkpoint"

    def _make_trainer(self, micro_batch: int | None = None) -> Trainer:
        trial, self._conversion = self.trial, None
        method = make_method(trial.method, trial.hyperparameters)
        tickets = [self._environment.tickets[name] for name in trial.teachers]
        facts = self._data.num_classes, self._data.input_shape
        architectures = [blueprint(each.definition.model, each.definition.options, *facts).architecture for each in tickets]
        student = student_architecture(trial.student, trial.teachers, *facts)
        self._teachers = []
        for ticket, architecture in zip(tickets, architectures, strict=True):
            prefix = f"{ticket.definition.name}/" if len(tickets) > 1 else ""
            needs = {f"{prefix}{name}": kind for name, kind in method.knowledge(architecture, student).items()}
            self._teachers.append(
                TrialTeacher(ticket, needs, labels=self._data.train.labels, calls=method.calls_teacher, device=self._device)
            )
        return Trainer(
            new_student=self._new_student,
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
            student_name=trial.student.model,
            describe_student=self._describe_student if begins_as_teacher(trial.student, trial.teachers) else None,
            device=self._device,
            workers=self._workers,
            micro_batch=micro_batch,
            images_on_device=self._images_on_device,
            operators=self._chain,
        )

    def _new_student(self) -> nn.Module:
        """A student before training: with its teacher's weights if it is derived, and with its operators applied."""
        student = self.trial.student
        if student.derived_from is not None and self._source is None:
            self._source = load_file(weights_here(self._environment.tickets[student.derived_from]))
        if student.start and self._source is None:
            self._source = self._environment.start_weights(student.name)
        converted = make_student(student, self._data, seed=self.trial.seed, source=self._source)
        if self._chain and self._conversion is None:
            # The trained one is the first; methods may make others.
            self._conversion = dict(converted.history)
            self._kept_channels = converted.kept_channels
        return converted.model

    def _describe_student(self, student: nn.Module) -> Architecture:
        model, shape = self.trial.student.model, self._data.input_shape
        return describe_student(student, self._kept_channels, name=model, input_shape=shape)


def run_to_end(trial: Trial, environment: TrialEnvironment, data: ImageData, *, device: str = "cpu") -> TrialRecord:
    """Runs a whole trial in this process; a trial that fails has its reason in the record."""
    runner = TrialRunner(trial, environment, data, device=device)
    try:
        while not runner.finished:
            with user_code():
                runner.run_epoch()
        return runner.finish()
    except InfrastructureError:
        raise
    except Exception as error:
        check_device()
        return runner.fail(failure_reason(error))
