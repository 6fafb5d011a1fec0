"""One training with a method on the ground of its task, from a teacher that was trained for two epochs."""

import copy
import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stillhouse import tasks
from stillhouse.data.images import ImageData
from stillhouse.data.views import Views
from stillhouse.distill.calls import CallableTeacher, InlineTeacher, Procedure, pull_back, run_procedure, run_teacher
from stillhouse.distill.hook_returns import knowledge_of, student_layers_of
from stillhouse.distill.method import Method, Unsuitable
from stillhouse.distill.sources import CachedKnowledge, InlineKnowledge, KnowledgeSource, compute_knowledge, is_named, layers_of
from stillhouse.distill.trainer import Trainer
from stillhouse.errors import UsageError
from stillhouse.knowledge.kinds import Knowledge
from stillhouse.knowledge.store import KnowledgeStore
from stillhouse.knowledge.view import View
from stillhouse.models.architecture import Architecture, describe
from stillhouse.models.features import FeatureReader
from stillhouse.spec.training import Training
from stillhouse.testing import grounds
from stillhouse.testing.grounds import Ground
from stillhouse.testing.tolerance import Tolerance, tolerance_on

GROUND = grounds.of_task(tasks.default())
TRAINING, digits = GROUND.training, GROUND.load
"""Of the default task, as is `build_student`."""
NUM_TRAINING = 256
"""Samples of the training split of `digits`."""


def trained_teacher(model: str, device: str = "cpu", ground: Ground = GROUND) -> nn.Module:
    """A shipped model after two epochs of training on the CPU, frozen; the same weights for all methods and devices."""
    return _teacher_on(model, device, ground)


@functools.cache
def _teacher_on(model: str, device: str, ground: Ground) -> nn.Module:
    if device != "cpu":
        return copy.deepcopy(_teacher_on(model, "cpu", ground)).to(device)
    data = ground.load()
    trainer = Trainer(
        new_student=functools.partial(ground.build, model),
        method=Method(),
        data=data,
        views=Views((), 1, data.input_shape, len(data.train)),
        training=ground.training,
        epochs=2,
    )
    trainer.fit()
    trainer.student.zero_grad()
    return trainer.student.eval().requires_grad_(False)


def build_student(model: str) -> nn.Module:
    """A new model for the images of `digits`."""
    return GROUND.build(model)


@dataclass(frozen=True)
class MethodTrial:
    """One training with a method, on fixed images, from a fixed teacher.

    Attributes:
        method: an instance with the hyper-parameters to try; its class must be importable by name, as on a worker.
        teacher: name of a shipped model; empty for that of the ground.
        other_teachers: names of further shipped models, for a method that learns from `every_teacher`.
        student: name of a shipped model that suits the method; empty for the first of the ground.
        epochs: at least one for each of the method's stages.
        device: of student, helpers and teacher.
        ground: of the task that the method serves, unless given.
    """

    method: Method
    teacher: str = ""
    student: str = ""
    epochs: int = 4
    device: str = "cpu"
    other_teachers: tuple[str, ...] = ()
    ground: Ground = field(default=None, repr=False)  # type: ignore[assignment]  # set below

    def __post_init__(self) -> None:
        ground = self.ground or grounds.of_method(self.method)
        for name, value in (("ground", ground), ("teacher", ground.teacher), ("student", ground.students[0])):
            if not getattr(self, name):
                object.__setattr__(self, name, value)
        if len({*self.teachers}) < len(self.teachers):
            raise UsageError(f"the teachers must be different models, got {', '.join(self.teachers)}")

    @property
    def data(self) -> ImageData:
        """The ground's data set."""
        return self.ground.load()

    @property
    def teachers(self) -> tuple[str, ...]:
        """The names of all teachers."""
        return (self.teacher, *self.other_teachers)

    @property
    def teacher_model(self) -> nn.Module:
        """The trained teacher on the trial's device."""
        return trained_teacher(self.teacher, self.device, self.ground)

    @property
    def tolerance(self) -> Tolerance:
        """How far results may differ on the trial's device."""
        return tolerance_on(self.device)

    @property
    def teacher_architecture(self) -> Architecture:
        return self._architecture_of(self.teacher)

    @property
    def student_architecture(self) -> Architecture:
        return describe(self.ground.build(self.student), name=self.student, input_shape=self.data.input_shape)

    def knowledge(self) -> dict[str, Knowledge]:
        """What the method needs from its teachers for this student, by the names that steps have."""
        return {name: kind for each in self.knowledge_by_teacher().values() for name, kind in each.items()}

    def knowledge_by_teacher(self) -> dict[str, dict[str, Knowledge]]:
        """What the method needs from each teacher; with several, names begin with the teacher's, as in a sweep."""
        needed = {}
        for teacher in self.teachers:
            prefix = f"{teacher}/" if self.other_teachers else ""
            found = knowledge_of(self.method, self._architecture_of(teacher), self.student_architecture)
            needed[teacher] = {f"{prefix}{name}": kind for name, kind in found.items()}
        return needed

    def trainer(
        self,
        *,
        policy: Sequence[Any] | None = None,
        cached_in: Path | None = None,
        callable_teacher: CallableTeacher | None = None,
        training: Training | None = None,
    ) -> Trainer:
        """A trainer before its first epoch.

        Args:
            policy: the augmentations of the views; None for those of the ground.
            cached_in: a folder for sealed views; None computes the teacher's knowledge inline.
            callable_teacher: for a method that calls the teacher; None calls it in the same process.
            training: the recipe; None for that of the ground.
        """
        # It needs Ray, which the other parts of a check do not wait for.
        from stillhouse.teachers.trial_teacher import join_sources

        data = self.data
        chosen = self.ground.policy if policy is None else tuple(policy)
        views = Views(chosen, 2, data.input_shape, len(data.train))
        sources = [
            self._source(teacher, knowledge, views, cached_in)
            for teacher, knowledge in self.knowledge_by_teacher().items()
            if knowledge
        ]
        if self.method.calls_teacher and callable_teacher is None:
            callable_teacher = InlineTeacher(self.teacher_model)
        return Trainer(
            new_student=functools.partial(self.ground.build, self.student),
            method=self.method,
            data=data,
            views=views,
            training=training or self.ground.training,
            epochs=self.epochs,
            seed=1,
            teacher=join_sources(sources),
            callable_teacher=callable_teacher,
            teacher_architecture=self.teacher_architecture,
            teacher_weights=trained_teacher(self.teacher, ground=self.ground).state_dict,
            student_name=self.student,
            device=self.device,
        )

    def _source(
        self, teacher: str, knowledge: Mapping[str, Knowledge], views: Views, cached_in: Path | None
    ) -> KnowledgeSource:
        if cached_in is None:
            model = trained_teacher(teacher, self.device, self.ground)
            return InlineKnowledge(model, knowledge, self.data.train.labels, tasks.of(self.data))
        store = KnowledgeStore(cached_in / teacher)
        return CachedKnowledge(functools.partial(_sealed, store, self, teacher, knowledge, views))

    def _architecture_of(self, teacher: str) -> Architecture:
        model = trained_teacher(teacher, ground=self.ground)
        return describe(model, name=teacher, input_shape=self.data.input_shape)


def suiting_trial(method: Method, **fields: Any) -> MethodTrial:
    """A trial with the first student of its ground that suits the method; the other fields are those of `MethodTrial`."""
    students = grounds.of_method(method).students
    for student in students:
        trial = MethodTrial(method, student=student, **fields)
        try:
            trial.knowledge()
            student_layers_of(method, trial.teacher_architecture, trial.student_architecture)
        except Unsuitable:
            continue
        return trial
    raise AssertionError(f"none of {', '.join(students)} suits {type(method).__name__}; name the student that does")


class RemoteModel:
    """Behaves as a teacher in another process: receives copies, stores nothing, repeats the forward pass for each gradient."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def forward(self, images: Tensor, layers: Sequence[str], *, differentiable: bool) -> tuple[None, Sequence[Tensor]]:
        with torch.no_grad():
            return None, run_teacher(self._model, images.clone(), layers)

    def pull_back(self, token: Any, images: Tensor, layers: Sequence[str], gradients: Sequence[Tensor]) -> Tensor:
        with torch.enable_grad():
            copy = images.detach().clone().requires_grad_()
            return pull_back(run_teacher(self._model, copy, layers), copy, gradients)

    def run(self, procedure: Procedure, tensors: Sequence[Tensor], options: Mapping[str, Any]) -> Sequence[Tensor]:
        return run_procedure(self._model, procedure, [tensor.clone() for tensor in tensors], options)


def compute_in_batches(
    reader: FeatureReader, knowledge: Mapping[str, Knowledge], images: Tensor, labels: Tensor, ground: Ground = GROUND
) -> dict[str, Tensor]:
    """The knowledge of all images, in batches of the size that trials use."""
    size = ground.training.batch_size
    task = tasks.of(ground.load())
    parts = zip(torch.split(images, size), torch.split(labels, size), strict=True)
    batches = [compute_knowledge(reader, knowledge, *part, task=task) for part in parts]
    return {name: torch.cat([batch[name] for batch in batches]) for name in knowledge}


def _sealed(
    store: KnowledgeStore,
    trial: MethodTrial,
    teacher: str,
    knowledge: Mapping[str, Knowledge],
    views: Views,
    view: int,
    names: Collection[str] | None = None,
    _reading: object = None,
) -> dict[str, View]:
    """Opens the sealed views of the named knowledge (None: all); computes and seals those that are missing."""
    data = trial.data
    needed = {name: kind for name, kind in knowledge.items() if is_named(name, names)}
    identities = {name: {"knowledge": kind.identity(), "view": view} for name, kind in needed.items()}
    missing = {name: knowledge[name] for name, identity in identities.items() if not store.is_sealed(identity)}
    if missing:
        places = torch.arange(len(data.train), device=trial.device)
        images = tasks.of(data).inputs(data, views, data.train.images.to(trial.device), places, view)
        with FeatureReader(trained_teacher(teacher, trial.device, trial.ground), layers_of(missing)) as reader:
            computed = compute_in_batches(reader, missing, images, data.train.labels, trial.ground)
        for name, rows in computed.items():
            if store.is_sealed(identities[name]):
                continue  # another name has the same knowledge
            with store.writer(identities[name], rows=len(rows), shape=rows.shape[1:], dtype="float32") as writer:
                writer.put(np.arange(len(rows)), rows.cpu().numpy())
                writer.commit()
                writer.seal()
    return {name: store.open(identity) for name, identity in identities.items()}
