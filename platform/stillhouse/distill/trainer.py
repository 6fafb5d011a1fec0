"""The trainer: one student, one method, plain PyTorch. All randomness is a function of the seed and a counter."""

import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.compress.chain import Chain
from stillhouse.data.datasets import ImageData, Split
from stillhouse.data.hashing import derive_seed
from stillhouse.data.images import split_for
from stillhouse.data.views import Views
from stillhouse.device import is_out_of_memory
from stillhouse.distill.batch_statistics import recompute_statistics
from stillhouse.distill.batches import TrainingSplit
from stillhouse.distill.calls import CallableTeacher
from stillhouse.distill.checkpoint import load_checkpoint, save_checkpoint
from stillhouse.distill.ddp import ALONE, Workers, share_statistics, split_problem, sync_batchnorm_problem
from stillhouse.distill.evaluation import NoNumbersError, evaluate, has_finite_weights, split_outputs
from stillhouse.distill.hook_returns import classifiers_of, student_layers_of
from stillhouse.distill.interleaver import run_out
from stillhouse.distill.method import Helper, Method, MethodError, Setup, Stage, StageStart
from stillhouse.distill.networks import StudentFactory, make_helpers, rng_devices
from stillhouse.distill.sources import KnowledgeSource
from stillhouse.distill.stage_training import EpochPlace, Ingredients, StageTraining, in_several_parts
from stillhouse.distill.stages import check_stages
from stillhouse.durable import Damaged
from stillhouse.errors import TrialError
from stillhouse.models.architecture import Architecture, describe
from stillhouse.spec.training import Training
from stillhouse.tasks import SplitOutputs, of

_CHECKPOINT_VERSION = 1


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
        describe_student: the layers of the student as a method may know them; by default, what its own network tells.
        workers: the processes that train this student together, each with a trainer of equal arguments but its own rank.
        micro_batch: the largest number of samples of a forward pass; the gradients of a batch are their sum. By default that
            of `training`.
        operators: those that `new_student` applied to the students; they act around each step, and in `finalise`.
        images_on_device: whether images may be copied to a GPU; if not, each batch is.

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
        describe_student: Callable[[nn.Module], Architecture] | None = None,
        device: str = "cpu",
        workers: Workers = ALONE,
        micro_batch: int | None = None,
        operators: Chain | None = None,
        images_on_device: bool = True,
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
        self._workers = workers
        self.micro_batch = training.micro_batch if micro_batch is None and training.micro_batch != "auto" else micro_batch
        self._memory_format = torch.channels_last if training.channels_last else torch.contiguous_format
        self.split = TrainingSplit(
            data,
            views,
            seed=seed,
            batch_size=training.batch_size,
            device=device,
            memory_format=self._memory_format,
            resident=images_on_device,
        )
        self._validation = data.validation if device == "cpu" else split_for(data.validation, device, resident=images_on_device)
        self._new_student = StudentFactory(new_student, seed=seed, device=device, memory_format=self._memory_format)
        self.student = self._new_student()
        describe_student = describe_student or partial(describe, name=student_name, input_shape=data.input_shape)
        architecture = describe_student(self.student)
        layers = student_layers_of(method, teacher_architecture, architecture)
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
        self._current: StageTraining | None = None
        self._ingredients = Ingredients(
            method=method,
            task=self.task,
            training=training,
            split=self.split,
            num_views=views.count,
            seed=seed,
            epochs=epochs,
            student=self.student,
            new_student=self._new_student,
            operators=self.operators,
            helpers=self._make_helpers(),
            layers=layers,
            teacher=teacher,
            callable_teacher=callable_teacher,
            workers=workers,
            device=device,
        )
        self._modules = self._ingredients.modules
        self._name_classifiers()

    def _name_classifiers(self) -> None:
        helpers = self._ingredients.helpers
        self._classifiers = classifiers_of(self.method, self.student, self._modules)
        self._classifiers |= {name: helper.module for name, helper in helpers.items() if helper.evaluate}

    @property
    def split_problem(self) -> str | None:
        """Why this student cannot be trained on a part of each batch; None when it can."""
        return split_problem(self.method, self.task, self.operators)

    def _make_helpers(self) -> dict[str, Helper]:
        in_parts = in_several_parts(self._workers, self.micro_batch)
        if in_parts and (problem := self.split_problem):
            raise MethodError(f"{problem}: set training.micro_batch to null and trial_resources.workers to 1")
        if unsuited := self.method.recipe_problem(self._training):
            raise MethodError(unsuited)
        by_torch = self._training.sync_batchnorm
        if by_torch and (problem := sync_batchnorm_problem(self.method)):
            raise MethodError(f"{problem}: set training.sync_batchnorm to false")
        share_statistics(self.student, self._workers, by_torch=by_torch)
        return make_helpers(
            self.method,
            self.task,
            self._setup,
            seed=self._seed,
            device=self.device,
            workers=self._workers,
            memory_format=self._memory_format,
            sync_batchnorm=by_torch,
        )

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
        current = self._current if self._current and self._current.index == stage_index else self._enter_stage(stage_index)
        view = int(self._views.order(self._seed)[self.epoch % self._views.count])
        if (teacher := current.teacher) is not None:
            waited = teacher.wait_seconds
            teacher.begin_epoch(view, current.stage.knowledge, (self._seed, self.epoch))
        current.set_mode(training=True)
        means, rate = yield from self._train_epoch(current, EpochPlace(self.epoch, stage_epoch, view))
        if teacher is not None:
            self.wait_seconds += teacher.wait_seconds - waited
        entry = self._entry(current.stage, means, rate)
        if self._training.batchnorm_statistics == "recomputed" and not current.stage.data_free:
            self._recompute_statistics()
        entry |= self._validated(current.stage, rate)
        self.epoch += 1
        entry["seconds"] = time.perf_counter() - started - self._suspended_s
        self.train_seconds += entry["seconds"]
        self.curve.append(entry)
        return entry

    def _train_epoch(self, current: StageTraining, at: EpochPlace) -> Generator[None, None, tuple[dict[str, float], float]]:
        """Trains on every batch of the epoch; returns each loss term's mean over the samples and the last rate."""
        totals: dict[str, Tensor] = {}
        samples = 0
        rate = 0.0
        # The random numbers that a student draws itself must differ between workers.
        own = (self._workers.rank,) if self._workers.rank else ()
        with torch.random.fork_rng(devices=rng_devices(self.device)), current.read_ahead(at):
            torch.manual_seed(derive_seed(self._seed, "epoch", at.epoch, *own))
            for number, indices in enumerate(current.batches(at)):
                rate = current.optimisers.set_step(at.stage_epoch * current.steps_per_epoch + number)
                terms = current.train_on(indices, at, number)
                samples += len(indices)
                for name, term in terms.items():
                    weighted = term.detach() * len(indices)
                    totals[name] = totals[name] + weighted if name in totals else weighted
                suspended = time.perf_counter()
                yield
                self._suspended_s += time.perf_counter() - suspended
        summed = self._workers.sum(torch.stack(list(totals.values())))
        return {name: float(total) / samples for name, total in zip(totals, summed, strict=True)}, rate

    def _recompute_statistics(self) -> None:
        batch_size = self._training.batch_size
        recompute_statistics(
            self._classifiers,
            self._data,
            self.split.images,
            seed=self._seed,
            batch_size=batch_size if self.micro_batch is None else max(2, min(batch_size, self.micro_batch)),
            device=self.device,
            memory_format=self._memory_format,
            workers=self._workers,
        )

    def finalise(self) -> None:
        """Brings the trained students into the form in which they are judged and stored; training cannot go on then."""
        for student in self._new_student.built:
            self.operators.finalise(student)
        if self._current is not None:
            self._current.close()
        self._name_classifiers()

    def evaluate(self, split: Split, model: nn.Module | None = None) -> float:
        """The task's metric of what counts as the student, or of `model`, on the split's images as they are."""
        model = self.classifier if model is None else model
        return evaluate(model, self._data, split, self.device, self._memory_format)

    def outputs(self, split: Split) -> SplitOutputs:
        """What the student, or what counts as it, returns for the split's images as they are."""
        return split_outputs(self.classifier, self._data, split, self.device, self._memory_format)

    def gradients_by_parts(self, stage_index: int, ends: Sequence[int]) -> dict[str, Tensor]:
        """The summed gradients of the parts [ends[i], ends[i+1]) of the first rows of a batch, for tests.

        Networks are in evaluation mode, so that neither BatchNorm nor dropout makes a batch differ from its parts.
        """
        for index in range(stage_index + 1):
            current = self._enter_stage(index)
        return current.gradients_by_parts(ends, view=int(self._views.order(self._seed)[0]))

    def _validated(self, stage: Stage, rate: float) -> dict[str, float]:
        """The metric on the validation split, by column, of the student and of the helpers that are evaluated; none without it.

        Each worker evaluates its share.

        Raises:
            TrialError: the epoch's last step spoiled the weights, after its loss was finite.
        """
        column = self.task.metric.column("validation")
        values = {}
        for name, model in self._classifiers.items():
            if not has_finite_weights(model):
                raise self._diverged(stage, rate, f"the weights of '{name}' are not finite")
            if not len(self._validation):
                continue
            try:
                values[column if name == "student" else f"{column}_{name}"] = evaluate(
                    model, self._data, self._validation, self.device, self._memory_format, workers=self._workers
                )
            except NoNumbersError as error:
                raise self._diverged(stage, rate, f"'{name}': {error}") from error
        return values

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
                "stages": [[stage.name, stage.epochs] for stage in self.stages],
                "epoch": self.epoch,
                "stage": -1 if self._current is None else self._current.index,
                "students_made": self._new_student.num_built,
                "student": self.student.state_dict(),
                "helpers": {name: module.state_dict() for name, module in self._modules.items()},
                "optimisers": None if self._current is None else self._current.optimisers.state_dict(),
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
        ours = [_CHECKPOINT_VERSION, self.epochs, self._seed, [[stage.name, stage.epochs] for stage in self.stages]]
        theirs = [state.get(key) for key in ("version", "epochs", "seed", "stages")]
        if theirs != ours:
            raise Damaged(f"{path} belongs to another training: version, epochs, seed, stages are {theirs}, not {ours}")
        try:
            self.student.load_state_dict(state["student"])
            for name, module in self._modules.items():
                module.load_state_dict(state["helpers"][name])
            if self._training.micro_batch == "auto":
                self.micro_batch = state.get("micro_batch")
            if state["stage"] >= 0:
                self._prepare_stage(state["stage"]).optimisers.load_state_dict(state["optimisers"])
            self.epoch = state["epoch"]
            self.curve = state["curve"]
            self.train_seconds = state["train_seconds"]
            self.wait_seconds = state["wait_seconds"]
            self._new_student.num_built = state["students_made"]
            return dict(state.get("notes", {}))
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            if isinstance(error, torch.AcceleratorError) or is_out_of_memory(error):
                # The device's failure, not the file's: the checkpoint is still good.
                raise
            raise Damaged(f"{path} does not fit this training: {error}") from error

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

    def _enter_stage(self, index: int) -> StageTraining:
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
        return self._prepare_stage(index)

    def _prepare_stage(self, index: int) -> StageTraining:
        if self._current is not None:
            self._current.close()
        self._current = StageTraining(self._ingredients, self.stages[index], index, self.micro_batch)
        return self._current


def _no_weights() -> Mapping[str, Tensor]:
    raise MethodError("reuses a part of the teacher, but this trainer has no teacher_weights")
