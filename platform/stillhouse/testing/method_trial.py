"""What methods are checked on: small real images, a teacher that was trained for two epochs, and a student."""

import copy
import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stillhouse.data.datasets import ImageData, load_dataset
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
from stillhouse.models.registry import build_model
from stillhouse.spec.training import Training
from stillhouse.testing.tolerance import Tolerance, tolerance_on

TRAINING = Training(batch_size=64, learning_rate=0.01)
STUDENTS = ("lenet", "resnet8")
"""On which methods are checked: the first that suits a method."""
NUM_TRAINING, NUM_VALIDATION = 256, 64
"""Multiples of the batch size: every forward pass then has the same shape, and the same result bit for bit."""


@functools.cache
def digits() -> ImageData:
    """The images of all checks: handwritten digits of 8 x 8 pixels in 10 classes, part of scikit-learn."""
    return load_dataset("digits", validation=NUM_VALIDATION, options={"limit": NUM_TRAINING + NUM_VALIDATION})


def trained_teacher(model: str, device: str = "cpu") -> nn.Module:
    """A shipped model after two epochs of training on the CPU, frozen; the same weights for all methods and devices."""
    return _teacher_on(model, device)


@functools.cache
def _teacher_on(model: str, device: str) -> nn.Module:
    if device != "cpu":
        return copy.deepcopy(_teacher_on(model, "cpu")).to(device)
    data = digits()
    trainer = Trainer(
        new_student=functools.partial(build_student, model),
        method=Method(),
        data=data,
        views=Views((), 1, data.input_shape, NUM_TRAINING),
        training=TRAINING,
        epochs=2,
    )
    trainer.fit()
    trainer.student.zero_grad()
    return trainer.student.eval().requires_grad_(False)


def build_student(model: str) -> nn.Module:
    """A new model for the images of `digits`."""
    data = digits()
    return build_model(model, num_classes=data.num_classes, input_shape=data.input_shape)


@dataclass(frozen=True)
class MethodTrial:
    """One training with a method, on fixed images, from a fixed teacher.

    Attributes:
        method: an instance with the hyper-parameters to try; its class must be importable by name, as on a worker.
        teacher: name of a shipped model.
        other_teachers: names of further shipped models, for a method that learns from `every_teacher`.
        student: name of a shipped model that suits the method.
        epochs: at least one for each of the method's stages.
        device: of student, helpers and teacher.
    """

    method: Method
    teacher: str = "resnet8"
    student: str = "lenet"
    epochs: int = 4
    device: str = "cpu"
    other_teachers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len({*self.teachers}) < len(self.teachers):
            raise UsageError(f"the teachers must be different models, got {', '.join(self.teachers)}")

    @property
    def teachers(self) -> tuple[str, ...]:
        """The names of all teachers."""
        return (self.teacher, *self.other_teachers)

    @property
    def teacher_model(self) -> nn.Module:
        """The trained teacher on the trial's device."""
        return trained_teacher(self.teacher, self.device)

    @property
    def tolerance(self) -> Tolerance:
        """How far results may differ on the trial's device."""
        return tolerance_on(self.device)

    @property
    def teacher_architecture(self) -> Architecture:
        return _architecture_of(self.teacher)

    @property
    def student_architecture(self) -> Architecture:
        return describe(build_student(self.student), name=self.student, input_shape=digits().input_shape)

    def knowledge(self) -> dict[str, Knowledge]:
        """What the method needs from its teachers for this student, by the names that steps have."""
        return {name: kind for each in self.knowledge_by_teacher().values() for name, kind in each.items()}

    def knowledge_by_teacher(self) -> dict[str, dict[str, Knowledge]]:
        """What the method needs from each teacher; with several, names begin with the teacher's, as in a sweep."""
        needed = {}
        for teacher in self.teachers:
            prefix = f"{teacher}/" if self.other_teachers else ""
            found = knowledge_of(self.method, _architecture_of(teacher), self.student_architecture)
            needed[teacher] = {f"{prefix}{name}": kind for name, kind in found.items()}
        return needed

    def trainer(
        self,
        *,
        policy: Sequence[Any] = ({"crop": {"padding": 1}},),
        cached_in: Path | None = None,
        callable_teacher: CallableTeacher | None = None,
    ) -> Trainer:
        """A trainer before its first epoch.

        Args:
            policy: the augmentations of the views.
            cached_in: a folder for sealed views; None computes the teacher's knowledge inline.
            callable_teacher: for a method that calls the teacher; None calls it in the same process.
        """
        # It needs Ray, which the other parts of a check do not wait for.
        from stillhouse.teachers.trial_teacher import join_sources

        data = digits()
        views = Views(tuple(policy), 2, data.input_shape, NUM_TRAINING)
        sources = [
            self._source(teacher, knowledge, views, cached_in)
            for teacher, knowledge in self.knowledge_by_teacher().items()
            if knowledge
        ]
        if self.method.calls_teacher and callable_teacher is None:
            callable_teacher = InlineTeacher(self.teacher_model)
        return Trainer(
            new_student=functools.partial(build_student, self.student),
            method=self.method,
            data=data,
            views=views,
            training=TRAINING,
            epochs=self.epochs,
            seed=1,
            teacher=join_sources(sources),
            callable_teacher=callable_teacher,
            teacher_architecture=self.teacher_architecture,
            teacher_weights=trained_teacher(self.teacher).state_dict,
            student_name=self.student,
            device=self.device,
        )

    def _source(
        self, teacher: str, knowledge: Mapping[str, Knowledge], views: Views, cached_in: Path | None
    ) -> KnowledgeSource:
        model = trained_teacher(teacher, self.device)
        if cached_in is None:
            return InlineKnowledge(model, knowledge, digits().train.labels)
        store = KnowledgeStore(cached_in / teacher)
        return CachedKnowledge(functools.partial(_sealed, store, model, knowledge, views, self.device))


def _architecture_of(teacher: str) -> Architecture:
    return describe(trained_teacher(teacher), name=teacher, input_shape=digits().input_shape)


def suiting_trial(method: Method, **fields: Any) -> MethodTrial:
    """A trial with the first of `STUDENTS` that suits the method; the other fields are those of `MethodTrial`."""
    for student in STUDENTS:
        trial = MethodTrial(method, student=student, **fields)
        try:
            trial.knowledge()
            student_layers_of(method, trial.teacher_architecture, trial.student_architecture)
        except Unsuitable:
            continue
        return trial
    raise AssertionError(f"none of {', '.join(STUDENTS)} suits {type(method).__name__}; name the student that does")


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
    reader: FeatureReader, knowledge: Mapping[str, Knowledge], images: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    """The knowledge of all images, in batches of the size that trials use."""
    parts = zip(torch.split(images, TRAINING.batch_size), torch.split(labels, TRAINING.batch_size), strict=True)
    batches = [compute_knowledge(reader, knowledge, *part) for part in parts]
    return {name: torch.cat([batch[name] for batch in batches]) for name in knowledge}


def _sealed(
    store: KnowledgeStore,
    teacher: nn.Module,
    knowledge: Mapping[str, Knowledge],
    views: Views,
    device: str,
    view: int,
    names: Collection[str] | None = None,
    _reading: object = None,
) -> dict[str, View]:
    """Opens the sealed views of the named knowledge (None: all); computes and seals those that are missing."""
    data = digits()
    needed = {name: kind for name, kind in knowledge.items() if is_named(name, names)}
    identities = {name: {"knowledge": kind.identity(), "view": view} for name, kind in needed.items()}
    missing = {name: knowledge[name] for name, identity in identities.items() if not store.is_sealed(identity)}
    if missing:
        images = data.normalise(views.augment(data.train.images.to(device), torch.arange(NUM_TRAINING, device=device), view))
        with FeatureReader(teacher, layers_of(missing)) as reader:
            computed = compute_in_batches(reader, missing, images, data.train.labels)
        for name, rows in computed.items():
            if store.is_sealed(identities[name]):
                continue  # another name has the same knowledge
            with store.writer(identities[name], rows=len(rows), shape=rows.shape[1:], dtype="float32") as writer:
                writer.put(np.arange(len(rows)), rows.cpu().numpy())
                writer.commit()
                writer.seal()
    return {name: store.open(identity) for name, identity in identities.items()}
