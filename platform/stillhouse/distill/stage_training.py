"""The training steps of one stage: from the indices of a batch to the update of the weights."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from stillhouse.compress.chain import Chain
from stillhouse.compress.operator import Moment
from stillhouse.data.hashing import derive_seed
from stillhouse.distill.batches import Batch, Indices, TrainingSplit, even_parts
from stillhouse.distill.calls import CallableTeacher
from stillhouse.distill.ddp import JointLoss, Workers
from stillhouse.distill.forward import ForwardPass
from stillhouse.distill.method import Helper, Method, Stage, Step, step_seed, sum_of_terms
from stillhouse.distill.networks import StudentFactory
from stillhouse.distill.optimiser import Optimisers
from stillhouse.distill.sources import KnowledgeSource
from stillhouse.distill.stages import training_of
from stillhouse.spec.training import Training
from stillhouse.tasks import Task

_FLOAT16_SCALE = 1024.0
"""A power of two, so that scaling rounds nothing. Gradients of one sample's loss are below 1 at the logits, and those that
reach the images are often below 6e-8, the smallest float16."""


@dataclass(frozen=True, kw_only=True)
class Ingredients:
    """What all stages of a training have in common; see `Trainer`.

    Attributes:
        new_student: built the student, and builds others for methods that train several.
        operators: what was applied to the students.
        layers: the student's layers that the method reads.
        num_views: the number of augmented views.
        epochs: length of the whole training, over all stages.
    """

    method: Method
    task: Task
    training: Training
    split: TrainingSplit
    num_views: int
    seed: int
    epochs: int
    student: nn.Module
    new_student: StudentFactory
    operators: Chain
    helpers: Mapping[str, Helper]
    layers: Sequence[str]
    teacher: KnowledgeSource | None
    callable_teacher: CallableTeacher | None
    workers: Workers
    device: str

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The helpers' modules, by name."""
        return {name: helper.module for name, helper in self.helpers.items()}


@dataclass(frozen=True)
class EpochPlace:
    """An epoch of the whole training, its number within its stage, and the view that it sees."""

    epoch: int
    stage_epoch: int
    view: int


class StageTraining:
    """Trains one stage: owns the student's forward passes and the optimisers, which begin anew with each stage.

    Args:
        index: number of the stage among the method's stages.
        micro_batch: the largest number of samples of a forward pass; None computes each worker's share of a batch at once.
    """

    def __init__(self, ingredients: Ingredients, stage: Stage, index: int, micro_batch: int | None) -> None:
        self.stage = stage
        self.index = index
        self._given = ingredients
        self._modules = ingredients.modules
        self._micro_batch = micro_batch
        training, student = ingredients.training, ingredients.student
        self._forward = ForwardPass(
            student,
            ingredients.task,
            training,
            ingredients.layers,
            until=stage.until,
            twice=ingredients.method.differentiates_images,
            device=ingredients.device,
        )
        groups: dict[str, nn.Module] = {"student": student}
        recipes = {"student": training_of(stage, training)}
        for name, helper in ingredients.helpers.items():
            if helper.trainable:
                groups[name] = helper.module
                # The recipe of a teacher has its length and seed too, which are none of a helper's settings.
                common = training.model_dump(include=set(Training.model_fields))
                own = Training.model_validate(common | dict(helper.training))
                recipes[name] = training_of(stage, own)
        self.optimisers = Optimisers(
            groups,
            recipes,
            steps_per_epoch=self.steps_per_epoch,
            total_steps=stage.epochs * self.steps_per_epoch,
            device=ingredients.device,
        )
        in_parts = in_several_parts(ingredients.workers, micro_batch)
        self._joint_loss = JointLoss(groups.values(), ingredients.workers) if in_parts else None

    def close(self) -> None:
        """Removes the hooks from the student."""
        self._forward.close()

    @property
    def teacher(self) -> KnowledgeSource | None:
        """The source of the knowledge that the stage needs; None when it needs none."""
        return None if self.stage.knowledge == () or self.stage.data_free else self._given.teacher

    @property
    def steps_per_epoch(self) -> int:
        """How many batches `batches` gives."""
        return self.stage.steps_per_epoch or self._given.split.batches_per_epoch

    def batches(self, at: EpochPlace) -> Iterator[Indices]:
        """The samples of each step of an epoch; in a stage with steps of its own only their number means anything."""
        if self.stage.steps_per_epoch is None:
            return self._given.split.batches(at.epoch)
        return itertools.repeat(np.arange(self._given.training.batch_size), self.stage.steps_per_epoch)

    @contextmanager
    def read_ahead(self, at: EpochPlace) -> Iterator[None]:
        """While the context is open, images and knowledge are read in the background in the order of the epoch."""
        if self.stage.data_free:
            yield
            return
        split, teacher = self._given.split, self.teacher
        parts = [batch[start:end] for batch in split.batches(at.epoch) for start, end in self._parts(batch)]
        indices = (torch.from_numpy(part) for part in parts)
        reading = nullcontext() if teacher is None else teacher.reading(indices, self._given.device)
        with split.read_ahead(parts, at.view), reading:
            yield

    def train_on(self, indices: Indices, at: EpochPlace, number: int) -> dict[str, Tensor]:
        """One training step on the epoch's batch `number`; returns the terms to log, or this worker's share of them."""
        with self._operators_around(at, number):
            return self._step_on(indices, at, number)

    @contextmanager
    def _operators_around(self, at: EpochPlace, number: int) -> Iterator[None]:
        """The hooks of the operators before and after batch `number` of the epoch, for every student of the trial."""
        operators, per_epoch = self._given.operators, self.steps_per_epoch
        if not operators.needs_hooks:
            yield
            return
        step = at.epoch * per_epoch + number
        moment = Moment(
            progress=step / (self._given.epochs * per_epoch),
            epoch=at.epoch,
            step=step,
            full_precision=self.stage.full_precision,
        )
        for student in self._given.new_student.built:
            operators.before_step(student, moment)
        yield
        for student in self._given.new_student.built:
            operators.after_step(student, moment)

    def _step_on(self, indices: Indices, at: EpochPlace, number: int) -> dict[str, Tensor]:
        method, workers = self._given.method, self._given.workers
        if self._joint_loss is None:
            step = self.make_step(indices, at, number)
            return self._train_task_helpers(step) | method.step(step, self.optimisers)
        logged: dict[str, Tensor] = {}
        parts = self._parts(indices)
        self.optimisers.clear()
        for start, end in parts:
            make = partial(self.make_step, indices[start:end], at, number, part=(start, len(indices)))
            share = (end - start) / len(indices)
            with self._joint_loss.accumulating(more=end < parts[-1][1]):
                terms = self._joint_loss(partial(self._loss_of, make))
                # DDP takes the mean over the workers, whose shares of the batch may differ by a sample.
                self.optimisers.accumulate(torch.stack(list(terms.values())).sum() * (share * workers.size))
            for name, term in terms.items():
                logged[name] = logged.get(name, 0) + term.detach() * share
        self.optimisers.apply()
        return logged

    def _train_task_helpers(self, step: Step) -> dict[str, Tensor]:
        """One step of each helper that the task's loss needs; returns their terms to log."""
        if not self._given.method.uses_supervised_loss:
            return {}
        terms = dict(self._given.task.helper_terms(step))
        for name, loss in terms.items():
            self.optimisers.minimise(loss, name)
        return terms

    def make_step(self, indices: Indices, at: EpochPlace, number: int, *, part: tuple[int, int] | None = None) -> Step:
        """The step of the epoch's batch `number`, with the outputs of student and teacher.

        Args:
            part: the place of the first of the indices in the whole batch, and that batch's size; None for a whole batch.
        """
        knowledge: dict[str, Tensor] = {}
        outputs: dict[str, Tensor] = {}
        features: dict[str, Tensor] = {}
        if self.stage.data_free:
            batch = self._given.split.unread(indices)
        else:
            batch = self._given.split.read(indices, at.view)
            if (teacher := self.teacher) is not None:
                knowledge = teacher.gather(torch.from_numpy(indices), batch.images)
            if self._given.method.differentiates_images:
                batch = replace(batch, images=batch.images.detach().requires_grad_())
            outputs, features = self._forward(batch.images)
        return self._step_of(batch, at, number, outputs, features, knowledge, part)

    def gradients_by_parts(self, ends: Sequence[int], *, view: int) -> dict[str, Tensor]:
        """The summed gradients of the parts [ends[i], ends[i+1]) of the first rows of the first batch; see the trainer's."""
        self.set_mode(training=False)
        # Layers that treat a batch as a whole are in evaluation mode; the network itself returns what training needs.
        self._given.student.training = True
        batch = next(self._given.split.batches(0))[: ends[-1]]
        at = EpochPlace(epoch=0, stage_epoch=0, view=view)
        if (teacher := self.teacher) is not None:
            teacher.begin_epoch(view, self.stage.knowledge, (self._given.seed, 0))
        for start, end in pairwise(ends):
            step = self.make_step(batch[start:end], at, 0, part=(start, len(batch)))
            sum_of_terms(self._given.method.loss(step)).mul((end - start) / len(batch)).backward()
        return {
            f"{name}.{weight}": parameter.grad
            for name, module in {"student": self._given.student, **self._modules}.items()
            for weight, parameter in module.named_parameters()
            if parameter.grad is not None
        }

    def set_mode(self, *, training: bool) -> None:
        """Sets student and helpers to training or evaluation mode; helpers that are not trained stay in evaluation mode."""
        self._given.student.train(training)
        for helper in self._given.helpers.values():
            helper.module.train(training and helper.trainable)

    def _parts(self, batch: Indices) -> list[tuple[int, int]]:
        """(first, last + 1) places of this worker's micro-batches."""
        return even_parts(*self._given.workers.slice_of(batch), self._micro_batch)

    def _loss_of(self, make_step: Callable[[], Step]) -> dict[str, Tensor]:
        return self._given.method.loss(make_step())

    def _step_of(
        self,
        batch: Batch,
        at: EpochPlace,
        number: int,
        outputs: Mapping[str, Tensor],
        features: Mapping[str, Tensor],
        knowledge: Mapping[str, Tensor],
        part: tuple[int, int] | None,
    ) -> Step:
        given, per_epoch = self._given, self.steps_per_epoch
        global_step = at.epoch * per_epoch + number
        return Step(
            images=batch.images,
            labels=batch.labels,
            targets=batch.targets,
            indices=batch.indices,
            student=given.student,
            outputs=outputs,
            student_features=features,
            teacher=knowledge,
            modules=self._modules,
            stage=self.stage,
            epoch=at.epoch,
            progress=global_step / (given.epochs * per_epoch),
            stage_progress=(at.stage_epoch + number / per_epoch) / self.stage.epochs,
            seed=self._seed_of(at, number, global_step),
            callable_teacher=given.callable_teacher,
            part=part,
            num_views=given.num_views,
            task=given.task,
            gradient_scale=_FLOAT16_SCALE if given.training.mixed_precision == "float16" else 1.0,
            precision=given.training.mixed_precision if given.training.mixed_passes == "all" else "off",
        )

    def _seed_of(self, at: EpochPlace, number: int, global_step: int) -> int:
        if self.stage.steps_per_epoch is None:
            return step_seed(self._given.seed, global_step)
        # The numbers of steps of stages whose epochs differ in length would overlap.
        return derive_seed(self._given.seed, "step", at.epoch, number)


def in_several_parts(workers: Workers, micro_batch: int | None) -> bool:
    """Whether a batch is computed in parts, by several workers or by micro-batches."""
    return workers.size > 1 or micro_batch is not None
