"""The trainer: one student, one method, plain PyTorch. All randomness is a function of the seed and a counter."""

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from stillhouse.compress.chain import Chain
from stillhouse.compress.operator import Moment
from stillhouse.data.datasets import ImageData, Split
from stillhouse.data.hashing import derive_seed
from stillhouse.data.images import split_for
from stillhouse.data.views import Views
from stillhouse.distill.batches import Batch, Indices, TrainingSplit, even_parts
from stillhouse.distill.calls import CallableTeacher
from stillhouse.distill.checkpoint import load_checkpoint, save_checkpoint
from stillhouse.distill.ddp import ALONE, JointLoss, Workers, share_statistics, split_problem
from stillhouse.distill.evaluation import NoNumbersError, evaluate
from stillhouse.distill.forward import ForwardPass
from stillhouse.distill.method import Method, MethodError, Setup, Stage, StageStart, Step, step_seed, sum_of_terms
from stillhouse.distill.networks import StudentFactory, make_helpers, rng_devices
from stillhouse.distill.optimiser import Optimisers
from stillhouse.distill.sources import KnowledgeSource
from stillhouse.distill.stages import check_stages, training_of
from stillhouse.durable import Damaged
from stillhouse.errors import TrialError
from stillhouse.models.architecture import Architecture, describe
from stillhouse.spec.training import Training
from stillhouse.tasks import of

_CHECKPOINT_VERSION = 1
_FLOAT16_SCALE = 1024.0
"""A power of two, so that scaling rounds nothing. Gradients of one sample's loss are below 1 at the logits, and those that
reach the images are often below 6e-8, the smallest float16."""

Result = TypeVar("Result")


class Trainer:
    """Trains one student with one method, an epoch at a time.

    Two runs with equal arguments end with bitwise equal weights on the same CPU, even if one of them was saved, killed and
    loaded in between.

    Args:
        new_student: builds the student; called under the trial's seed, and again by methods that train several.
        method: defines the loss; `Method()` is plain supervised training.
        views: the augmented views; epoch e sees view `order(seed)[e mod count]`.
        epochs: length of the whole training, over all stages of the method.
        teacher: the source of the knowledge that the method needs; None for methods that need none.
        callable_teacher: the teacher as a function, for methods that call it.
        teacher_architecture: the layers and shapes that the method may know of the teacher.
        teacher_weights: returns the teacher's weights by name; called only by methods that reuse a part of the teacher.
        student_name: the name used in messages.
        workers: the processes that train this student together, each with a trainer of equal arguments but its own rank.
        micro_batch: the largest number of samples of a forward pass; the gradients of a batch are their sum. By default that
            of `training`.
        operators: those that `new_student` applied to the students; they act around each step, and in `finalise`.

    Raises:
        MethodError: the method cannot work with this teacher or student.
    """

    def __init__(
        self,
        *,
        new_student: Callable[[], nn.Module],
        method: Method,
        data: ImageData,
        views: Views,
        training: Training,
        epochs: int,
        seed: int = 0,
        teacher: KnowledgeSource | None = None,
        callable_teacher: CallableTeacher | None = None,
        teacher_architecture: Architecture | None = None,
        teacher_weights: Callable[[], Mapping[str, Tensor]] | None = None,
        student_name: str = "student",
        device: str = "cpu",
        workers: Workers = ALONE,
        micro_batch: int | None = None,
        operators: Chain | None = None,
    ) -> None:
        self.method = method
        self.operators = operators or Chain()
        self.device = device
        self.epoch = 0
        self.curve: list[dict[str, Any]] = []
        self.train_seconds = 0.0
        self.wait_seconds = 0.0
        self._suspended_s = 0.0
        self.task = of(data)
        self._data = data
        self._views = views
        self._training = training
        self._seed = seed
        self._teacher = teacher
        self._callable_teacher = callable_teacher
        self._workers = workers
        self.micro_batch = training.micro_batch if micro_batch is None and training.micro_batch != "auto" else micro_batch
        self._memory_format = torch.channels_last if training.channels_last else torch.contiguous_format
        self.split = TrainingSplit(
            data, views, seed=seed, batch_size=training.batch_size, device=device, memory_format=self._memory_format
        )
        self._validation = data.validation if device == "cpu" else split_for(data.validation, device)
        self._new_student = StudentFactory(new_student, seed=seed, device=device, memory_format=self._memory_format)
        self.student = self._new_student()
        architecture = describe(self.student, name=student_name, input_shape=data.input_shape)
        self._layers = list(method.student_layers(teacher_architecture, architecture))
        self._setup = Setup(
            teacher=teacher_architecture,
            student=architecture,
            new_student=self._new_student,
            num_samples=len(self.split),
            labels=data.train.labels,
            epochs=epochs,
            teacher_weights=teacher_weights or _no_weights,
        )
        self.stages: Sequence[Stage] = check_stages(method, self._setup)
        self._stage_index = -1
        self._optimisers: Optimisers | None = None
        self._forward: ForwardPass | None = None
        self._joint_loss: JointLoss | None = None
        self._adopt_method()

    def _adopt_method(self) -> None:
        """Makes the method's helpers, and names what is evaluated."""
        if self._in_parts and (problem := split_problem(self.method)):
            raise MethodError(f"{problem}: set training.micro_batch to null and trial_resources.workers to 1")
        share_statistics(self.student, self._workers)
        self._helpers = make_helpers(
            self.method,
            self._setup,
            seed=self._seed,
            device=self.device,
            workers=self._workers,
            memory_format=self._memory_format,
        )
        self._modules = {name: helper.module for name, helper in self._helpers.items()}
        self._name_classifiers()

    def _name_classifiers(self) -> None:
        self._classifiers = dict(self.method.classifiers(self.student, self._modules))
        self._classifiers |= {name: helper.module for name, helper in self._helpers.items() if helper.evaluate}

    @property
    def epochs(self) -> int:
        return self._setup.epochs

    @property
    def classifier(self) -> nn.Module:
        """The result of the training: the student, with the helpers that its method cannot do without."""
        return self._classifiers["student"]

    @property
    def finished(self) -> bool:
        return self.epoch >= self.epochs

    @property
    def stage(self) -> Stage:
        """The stage of the next epoch; the last one when training is over."""
        return self.stages[self._stage_at(min(self.epoch, self.epochs - 1))[0]]

    def fit(self) -> list[dict[str, Any]]:
        """Runs all remaining epochs; returns the curve."""
        while not self.finished:
            self.run_epoch()
        return self.curve

    def run_epoch(self) -> dict[str, Any]:
        """One pass over the training split in the epoch's view, then the task's metric on the validation split.

        Returns:
            The curve's entry: `epoch` from 1, `stage`, `train_loss`, each loss term, `learning_rate`, the metric's validation
            column such as `validation_accuracy` (and `validation_accuracy_<helper>`), `seconds`.

        Raises:
            TrialError: the loss, the student's weights or its outputs are no longer finite.
        """
        return run_out(self.epoch_steps())

    def epoch_steps(self) -> Generator[None, None, dict[str, Any]]:
        """`run_epoch` in parts: stops after every step, so that several trainers may take turns in one thread.

        In between the caller must leave this thread's state of PyTorch's random numbers as it was. The time between two parts
        is not counted as the training's.
        """
        assert not self.finished, "training is over"
        started, self._suspended_s = time.perf_counter(), 0.0
        stage_index, stage_epoch = self._stage_at(self.epoch)
        if stage_index != self._stage_index:
            self._enter_stage(stage_index)
        optimisers = self._optimisers
        assert optimisers is not None
        stage = self.stages[stage_index]
        view = int(self._views.order(self._seed)[self.epoch % self._views.count])
        if (teacher := self._teacher_of(stage)) is not None:
            waited = teacher.wait_seconds
            teacher.begin_epoch(view, stage.knowledge, (self._seed, self.epoch))
        self._set_mode(training=True)
        means, rate = yield from self._train_epoch(stage, stage_epoch, view, optimisers)
        if teacher is not None:
            self.wait_seconds += teacher.wait_seconds - waited
        entry = self._entry(stage, means, rate)
        entry |= self._validated(stage, rate)
        self.epoch += 1
        entry["seconds"] = time.perf_counter() - started - self._suspended_s
        self.train_seconds += entry["seconds"]
        self.curve.append(entry)
        return entry

    def _train_epoch(
        self, stage: Stage, stage_epoch: int, view: int, optimisers: Optimisers
    ) -> Generator[None, None, tuple[dict[str, float], float]]:
        """Trains on every batch of the epoch; returns each loss term's mean over the samples and the last rate."""
        totals: dict[str, Tensor] = {}
        samples = 0
        rate = 0.0
        # The random numbers that a student draws itself must differ between workers.
        own = (self._workers.rank,) if self._workers.rank else ()
        with torch.random.fork_rng(devices=rng_devices(self.device)), self._read_ahead(view, stage):
            torch.manual_seed(derive_seed(self._seed, "epoch", self.epoch, *own))
            for number, indices in enumerate(self.split.batches(self.epoch)):
                rate = optimisers.set_step(stage_epoch * self.split.batches_per_epoch + number)
                with self._operators_around(number):
                    terms = self._train_on(indices, view, stage, number, optimisers)
                samples += len(indices)
                for name, term in terms.items():
                    weighted = term.detach() * len(indices)
                    totals[name] = totals[name] + weighted if name in totals else weighted
                suspended = time.perf_counter()
                yield
                self._suspended_s += time.perf_counter() - suspended
        summed = self._workers.sum(torch.stack(list(totals.values())))
        return {name: float(total) / samples for name, total in zip(totals, summed, strict=True)}, rate

    def finalise(self) -> None:
        """Brings the trained students into the form in which they are judged and stored; training cannot go on then."""
        for student in self._new_student.built:
            self.operators.finalise(student)
        if self._forward is not None:
            self._forward.close()
            self._forward = None
        self._name_classifiers()

    def evaluate(self, split: Split, model: nn.Module | None = None) -> float:
        """The task's metric of what counts as the student, or of `model`, on the split's images as they are."""
        model = self.classifier if model is None else model
        return evaluate(model, self._data, split, self.device, self._memory_format)

    def gradients_by_parts(self, stage_index: int, ends: Sequence[int]) -> dict[str, Tensor]:
        """The summed gradients of the parts [ends[i], ends[i+1]) of the first rows of a batch, for tests.

        Networks are in evaluation mode, so that neither BatchNorm nor dropout makes a batch differ from its parts.
        """
        for index in range(stage_index + 1):
            self._enter_stage(index)
        self._set_mode(training=False)
        stage, batch = self.stages[stage_index], next(self.split.batches(0))[: ends[-1]]
        view = int(self._views.order(self._seed)[0])
        if (teacher := self._teacher_of(stage)) is not None:
            teacher.begin_epoch(view, stage.knowledge, (self._seed, 0))
        for start, end in pairwise(ends):
            step = self._make_step(batch[start:end], view, stage, 0, part=(start, len(batch)))
            sum_of_terms(self.method.loss(step)).mul((end - start) / len(batch)).backward()
        return {
            f"{name}.{weight}": parameter.grad
            for name, module in {"student": self.student, **self._modules}.items()
            for weight, parameter in module.named_parameters()
            if parameter.grad is not None
        }

    def _validated(self, stage: Stage, rate: float) -> dict[str, float]:
        """The metric on the validation split, by column, of the student and of the helpers that are evaluated.

        Raises:
            TrialError: the epoch's last step spoiled the weights, after its loss was finite.
        """
        column = self.task.metric.column("validation")
        values = {}
        for name, model in self._classifiers.items():
            if not _has_finite_weights(model):
                raise self._diverged(stage, rate, f"the weights of '{name}' are not finite")
            try:
                values[column if name == "student" else f"{column}_{name}"] = self._validate(model)
            except NoNumbersError as error:
                raise self._diverged(stage, rate, f"'{name}': {error}") from error
        return values

    def _validate(self, model: nn.Module) -> float:
        """As `evaluate` on the validation split; each worker evaluates its share."""
        return evaluate(model, self._data, self._validation, self.device, self._memory_format, workers=self._workers)

    def workers_agree(self) -> bool:
        """Whether all workers are at the same epoch; all of them must call this."""
        return self._workers.agree_on(self.epoch, self.device)

    def peers(self) -> dict[str, nn.Module]:
        """The models that are evaluated beside the student, by name."""
        return {name: model for name, model in self._classifiers.items() if name != "student"}

    @property
    def helper_bytes(self) -> int:
        """Bytes of the helpers' weights and buffers, which the method holds beside the student; without optimisers' states."""
        return sum(tensor.nbytes for module in self._modules.values() for tensor in module.state_dict().values())

    def save(self, path: Path, notes: Mapping[str, Any] | None = None) -> None:
        """Writes all that the rest of the training depends on, between two epochs, and the caller's `notes`."""
        save_checkpoint(
            path,
            {
                "version": _CHECKPOINT_VERSION,
                "epochs": self.epochs,
                "seed": self._seed,
                "stages": self._stage_plan(),
                "epoch": self.epoch,
                "stage": self._stage_index,
                "students_made": self._new_student.num_built,
                "student": self.student.state_dict(),
                "helpers": {name: module.state_dict() for name, module in self._modules.items()},
                "optimisers": None if self._optimisers is None else self._optimisers.state_dict(),
                "curve": self.curve,
                "train_seconds": self.train_seconds,
                "wait_seconds": self.wait_seconds,
                "micro_batch": self.micro_batch,
                "notes": dict(notes or {}),
            },
        )

    def load(self, path: Path) -> dict[str, Any]:
        """Continues where `save` stopped; returns its notes.

        Raises:
            FileNotFoundError: there is no checkpoint.
            Damaged: it is not a complete checkpoint of this training; the trainer must not be used then.
        """
        state = load_checkpoint(path)
        ours = [_CHECKPOINT_VERSION, self.epochs, self._seed, self._stage_plan()]
        theirs = [state.get(key) for key in ("version", "epochs", "seed", "stages")]
        if theirs != ours:
            raise Damaged(f"{path} belongs to another training: version, epochs, seed, stages are {theirs}, not {ours}")
        try:
            self.student.load_state_dict(state["student"])
            for name, module in self._modules.items():
                module.load_state_dict(state["helpers"][name])
            if state["stage"] >= 0:
                self._prepare_stage(state["stage"])
                assert self._optimisers is not None
                self._optimisers.load_state_dict(state["optimisers"])
            self.epoch = state["epoch"]
            self.curve = state["curve"]
            self.train_seconds = state["train_seconds"]
            self.wait_seconds = state["wait_seconds"]
            self._new_student.num_built = state["students_made"]
            if self._training.micro_batch == "auto":
                self.micro_batch = state.get("micro_batch")
            return dict(state.get("notes", {}))
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            # The device's failure, not the file's: the checkpoint is still good.
            raise
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            raise Damaged(f"{path} does not fit this training: {error}") from error

    def _stage_plan(self) -> list[list[Any]]:
        return [[stage.name, stage.epochs] for stage in self.stages]

    @property
    def _in_parts(self) -> bool:
        return self._workers.size > 1 or self.micro_batch is not None

    def _parts(self, batch: Indices) -> list[tuple[int, int]]:
        """(first, last + 1) places of this worker's micro-batches."""
        return even_parts(*self._workers.slice_of(batch), self.micro_batch)

    @contextmanager
    def _read_ahead(self, view: int, stage: Stage) -> Iterator[None]:
        """While the context is open, images and knowledge are read in the background in the order of the epoch."""
        if stage.data_free:
            yield
            return
        batches = self.split.batches(self.epoch)
        parts = [batch[start:end] for batch in batches for start, end in self._parts(batch)]
        teacher = self._teacher_of(stage)
        indices = (torch.from_numpy(part) for part in parts)
        with self.split.read_ahead(parts, view), nullcontext() if teacher is None else teacher.reading(indices, self.device):
            yield

    @contextmanager
    def _operators_around(self, number: int) -> Iterator[None]:
        """The hooks of the operators before and after batch `number` of the epoch, for every student of the trial."""
        if not self.operators.needs_hooks:
            yield
            return
        step = self.epoch * self.split.batches_per_epoch + number
        moment = Moment(progress=step / (self.epochs * self.split.batches_per_epoch), epoch=self.epoch, step=step)
        for student in self._new_student.built:
            self.operators.before_step(student, moment)
        yield
        for student in self._new_student.built:
            self.operators.after_step(student, moment)

    def _train_on(self, indices: Indices, view: int, stage: Stage, number: int, optimisers: Optimisers) -> dict[str, Tensor]:
        """One training step on a batch; returns the terms to log, or this worker's share of them."""
        if not self._in_parts:
            return self.method.step(self._make_step(indices, view, stage, number), optimisers)
        assert self._joint_loss is not None
        logged: dict[str, Tensor] = {}
        parts = self._parts(indices)
        optimisers.clear()
        for start, end in parts:
            make = partial(self._make_step, indices[start:end], view, stage, number, part=(start, len(indices)))
            share = (end - start) / len(indices)
            with self._joint_loss.accumulating(more=end < parts[-1][1]):
                terms = self._joint_loss(partial(self._loss_of, make))
                # DDP takes the mean over the workers, whose shares of the batch may differ by a sample.
                optimisers.accumulate(torch.stack(list(terms.values())).sum() * (share * self._workers.size))
            for name, term in terms.items():
                logged[name] = logged.get(name, 0) + term.detach() * share
        optimisers.apply()
        return logged

    def _loss_of(self, make_step: Callable[[], Step]) -> dict[str, Tensor]:
        return self.method.loss(make_step())

    def _make_step(
        self, indices: Indices, view: int, stage: Stage, number: int, *, part: tuple[int, int] | None = None
    ) -> Step:
        knowledge: dict[str, Tensor] = {}
        outputs: dict[str, Tensor] = {}
        features: dict[str, Tensor] = {}
        if stage.data_free:
            batch = self.split.unread(indices)
        else:
            batch = self.split.read(indices, view)
            if (teacher := self._teacher_of(stage)) is not None:
                knowledge = teacher.gather(torch.from_numpy(indices), batch.images)
            if self.method.differentiates_images:
                batch = replace(batch, images=batch.images.detach().requires_grad_())
            assert self._forward is not None
            outputs, features = self._forward(batch.images)
        return self._step_of(batch, stage, number, outputs, features, knowledge, part)

    def _step_of(
        self,
        batch: Batch,
        stage: Stage,
        number: int,
        outputs: Mapping[str, Tensor],
        features: Mapping[str, Tensor],
        knowledge: Mapping[str, Tensor],
        part: tuple[int, int] | None,
    ) -> Step:
        """The step of the epoch's batch `number`, with the outputs of student and teacher."""
        per_epoch = self.split.batches_per_epoch
        global_step = self.epoch * per_epoch + number
        return Step(
            images=batch.images,
            labels=batch.labels,
            targets=batch.targets,
            indices=batch.indices,
            student=self.student,
            outputs=outputs,
            student_features=features,
            teacher=knowledge,
            modules=self._modules,
            stage=stage,
            epoch=self.epoch,
            progress=global_step / (self.epochs * per_epoch),
            stage_progress=(self._stage_at(self.epoch)[1] + number / per_epoch) / stage.epochs,
            seed=step_seed(self._seed, global_step),
            callable_teacher=self._callable_teacher,
            part=part,
            num_views=self._views.count,
            task=self.task,
            gradient_scale=_FLOAT16_SCALE if self._training.mixed_precision == "float16" else 1.0,
        )

    def _teacher_of(self, stage: Stage) -> KnowledgeSource | None:
        """The source of the knowledge that the stage needs; None when it needs none."""
        return None if stage.knowledge == () or stage.data_free else self._teacher

    def _entry(self, stage: Stage, means: Mapping[str, float], rate: float) -> dict[str, Any]:
        """The beginning of the epoch's entry in the curve.

        Raises:
            TrialError: the loss is not finite.
        """
        loss = sum(means.values())
        if not math.isfinite(loss):
            culprits = ", ".join(f"{name} is {mean}" for name, mean in means.items() if not math.isfinite(mean))
            raise self._diverged(stage, rate, culprits)
        return {"epoch": self.epoch + 1, "stage": stage.name, "train_loss": loss, **means, "learning_rate": rate}

    def _diverged(self, stage: Stage, rate: float, what: str) -> TrialError:
        clip = "" if self._training.gradient_clip else "set training.gradient_clip, "
        return TrialError(
            f"diverged in epoch {self.epoch + 1} of {self.epochs} (stage '{stage.name}'): {what}; "
            f"{clip}lower training.learning_rate (the last was {rate:.3g}) or the method's loss weights"
        )

    def _stage_at(self, epoch: int) -> tuple[int, int]:
        """The number of the stage, and the epoch within it."""
        for index, stage in enumerate(self.stages):
            if epoch < stage.epochs:
                return index, epoch
            epoch -= stage.epochs
        raise AssertionError("the epoch is after the last stage")

    def _enter_stage(self, index: int) -> None:
        with torch.random.fork_rng(devices=rng_devices(self.device)):
            torch.manual_seed(derive_seed(self._seed, "stage", index))
            self.method.begin_stage(
                StageStart(
                    stage=self.stages[index],
                    index=index,
                    student=self.student,
                    modules=self._modules,
                    new_student=self._new_student,
                )
            )
        self._prepare_stage(index)

    def _prepare_stage(self, index: int) -> None:
        stage = self.stages[index]
        if self._forward is not None:
            self._forward.close()
        self._forward = ForwardPass(
            self.student,
            self.task,
            self._training,
            self._layers,
            until=stage.until,
            twice=self.method.differentiates_images,
            device=self.device,
        )
        groups: dict[str, nn.Module] = {"student": self.student}
        recipes = {"student": training_of(stage, self._training)}
        for name, helper in self._helpers.items():
            if helper.trainable:
                groups[name] = helper.module
                own = Training.model_validate(self._training.model_dump() | dict(helper.training))
                recipes[name] = training_of(stage, own)
        self._optimisers = Optimisers(
            groups,
            recipes,
            steps_per_epoch=self.split.batches_per_epoch,
            total_steps=stage.epochs * self.split.batches_per_epoch,
            device=self.device,
        )
        self._joint_loss = JointLoss(groups.values(), self._workers) if self._in_parts else None
        self._stage_index = index

    def _set_mode(self, *, training: bool) -> None:
        self.student.train(training)
        for helper in self._helpers.values():
            helper.module.train(training and helper.trainable)


def _has_finite_weights(model: nn.Module) -> bool:
    finite = [weight.detach().isfinite().all() for weight in model.parameters()]
    return not finite or bool(torch.stack(finite).all())


def run_out(parts: Generator[None, None, Result]) -> Result:
    """Runs all parts of a computation at once; returns its result."""
    while True:
        try:
            next(parts)
        except StopIteration as end:
            result: Result = end.value
            return result


def _no_weights() -> Mapping[str, Tensor]:
    raise MethodError("reuses a part of the teacher, but this trainer has no teacher_weights")
