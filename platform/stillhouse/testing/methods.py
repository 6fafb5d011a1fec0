"""For authors of methods: the conformance suite, reference numbers to check a loss against, a step to call it with.

A method's own test checks its loss against numbers that do not come from its code; `check_method` checks what is promised of
every method, on real images and shipped models:

    from stillhouse.testing import check_method

    def test_it_keeps_what_is_promised_of_every_method() -> None:
        check_method(MyMethod())
"""

import contextlib
import functools
import itertools
import json
import pickle
import re
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stillhouse.data.datasets import ImageData, load_dataset
from stillhouse.data.views import Views
from stillhouse.distill.calls import CallableTeacher, InlineTeacher, ServedTeacher, pull_back, run_teacher
from stillhouse.distill.checkpoint import load_checkpoint
from stillhouse.distill.method import HyperParameter, Method, Setup, Stage, StageStart, Step, Unsuitable, Update
from stillhouse.distill.parallel import split_problem
from stillhouse.distill.sources import CachedKnowledge, InlineKnowledge, KnowledgeSource, compute_knowledge, is_named, layers_of
from stillhouse.distill.trainer import Trainer
from stillhouse.knowledge.kinds import Knowledge
from stillhouse.knowledge.store import KnowledgeStore
from stillhouse.knowledge.view import View
from stillhouse.models.architecture import Architecture, describe
from stillhouse.models.features import FeatureReader
from stillhouse.models.registry import build_model
from stillhouse.spec.training import Training

# Relative tolerance, and absolute tolerance as a share of the largest reference value, by precision.
_TOLERANCES = {torch.float64: (1e-9, 1e-12), torch.float32: (2e-5, 1e-6)}


def make_step(
    *,
    student_logits: Tensor | None,
    labels: Tensor | None = None,
    teacher: Mapping[str, Tensor] | None = None,
    **fields: Any,
) -> Step:
    """A step as the trainer makes it, with everything that a test does not care for filled in.

    Args:
        student_logits: [B, C], or None for a stage that ends before them; `labels` is needed then.
        labels: [B] int64; zeros by default.
        teacher: {name: [B, ...]} of what the method's `knowledge` names.
        fields: any other field of `Step`.
    """
    if labels is None:
        assert student_logits is not None, "without logits the labels say how large the batch is"
        labels = torch.zeros(len(student_logits), dtype=torch.int64)
    values: dict[str, Any] = {
        "images": torch.zeros(len(labels), 1, 8, 8),
        "labels": labels,
        "targets": labels,
        "indices": torch.arange(len(labels)),
        "student": nn.Identity(),
        "student_logits": student_logits,
        "student_features": {},
        "teacher": teacher or {},
        "modules": {},
        "stage": Stage(epochs=1),
        "epoch": 0,
        "progress": 0.0,
        "seed": 0,
    }
    return Step(**(values | fields))


class ReferenceCase:
    """Numbers of a published implementation: inputs, what it made of them, the gradients.

    Args:
        path: an .npz file with `in.*`, `hp.*`, `w.*`, `rnd.*` and, for both precisions, `out.*` and `grad.*`.
        dtype: the precision in which the case is run: float64 or float32.
    """

    def __init__(self, path: str | Path, dtype: torch.dtype) -> None:
        with np.load(path, allow_pickle=False) as arrays:
            numbers = {name: array for name, array in arrays.items() if array.dtype.kind != "U"}
        self._arrays = {name: torch.from_numpy(np.asarray(array)) for name, array in numbers.items()}
        self._dtype = dtype
        self._suffix = "f64" if dtype == torch.float64 else "f32"
        self._inputs: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        """The array `name` in the case's precision; one that has a reference gradient collects its gradient."""
        if name not in self._inputs:
            array = self._arrays[name].clone()
            array = array.to(self._dtype) if array.is_floating_point() else array
            self._inputs[name] = array.requires_grad_(f"grad.{name.removeprefix('in.')}.{self._suffix}" in self._arrays)
        return self._inputs[name]

    def number(self, name: str) -> float:
        """The hyper-parameter `hp.<name>`."""
        return float(self._arrays[f"hp.{name}"])

    def check(self, result: Tensor, name: str = "out.loss") -> None:
        """Compares `result` with the reference's `name`.

        Raises:
            AssertionError: they differ by more than rounding.
        """
        reference = self._arrays[f"{name}.{self._suffix}"]
        rtol, share = _TOLERANCES[self._dtype]
        torch.testing.assert_close(result.detach(), reference, rtol=rtol, atol=share * float(reference.abs().max()))

    def check_gradients(self, loss: Tensor, *names: str) -> None:
        """Compares the gradients of `loss` with respect to the named inputs (`s_logits`) with the reference's.

        Raises:
            AssertionError: they differ by more than rounding.
        """
        gradients = torch.autograd.grad(loss, [self[f"in.{name}"] for name in names], retain_graph=True)
        for name, gradient in zip(names, gradients, strict=True):
            self.check(gradient, f"grad.{name}")


_TRAINING = Training(batch_size=64, learning_rate=0.01)
_NUM_TRAINING, _NUM_VALIDATION = 256, 64
"""Whole batches of 64, so that every forward pass has one shape and gives one result, bit for bit."""


@functools.cache
def _digits() -> ImageData:
    return load_dataset("digits", validation=_NUM_VALIDATION, options={"limit": _NUM_TRAINING + _NUM_VALIDATION})


@functools.cache
def _teacher(model: str) -> nn.Module:
    """A teacher after two epochs of training, for all methods alike."""
    data = _digits()
    trainer = Trainer(
        new_student=functools.partial(_build, model),
        method=Method(),
        data=data,
        views=Views((), 1, data.input_shape, _NUM_TRAINING),
        training=_TRAINING,
        epochs=2,
    )
    trainer.fit()
    trainer.student.zero_grad()
    return trainer.student.eval().requires_grad_(False)


def _build(model: str) -> nn.Module:
    data = _digits()
    return build_model(model, num_classes=data.num_classes, input_shape=data.input_shape)


@dataclass(frozen=True)
class MethodTrial:
    """A method with the images, the teacher and the student that it is tried on.

    Attributes:
        method: with the hyper-parameters to try; its class is imported by name elsewhere, as on a worker.
        teacher: name of a shipped model.
        student: name of a shipped model that suits the method.
        epochs: at least one for each of the method's stages.
    """

    method: Method
    teacher: str = "resnet8"
    student: str = "lenet"
    epochs: int = 4

    @property
    def teacher_architecture(self) -> Architecture:
        return describe(_teacher(self.teacher), name=self.teacher, input_shape=_digits().input_shape)

    @property
    def student_architecture(self) -> Architecture:
        return describe(_build(self.student), name=self.student, input_shape=_digits().input_shape)

    def knowledge(self) -> dict[str, Knowledge]:
        return dict(self.method.knowledge(self.teacher_architecture, self.student_architecture))

    def trainer(
        self,
        *,
        policy: Sequence[Any] = ({"crop": {"padding": 1}},),
        cached_in: Path | None = None,
        callable_teacher: CallableTeacher | None = None,
    ) -> Trainer:
        """A trainer at its first epoch; the teacher is inline, or cached under a folder, or called as `callable_teacher`."""
        data = _digits()
        views = Views(tuple(policy), 2, data.input_shape, _NUM_TRAINING)
        knowledge = self.knowledge()
        source: KnowledgeSource | None = None
        if knowledge and cached_in is None:
            source = InlineKnowledge(_teacher(self.teacher), knowledge, data.train.labels)
        elif knowledge and cached_in is not None:
            source = CachedKnowledge(
                functools.partial(_sealed, KnowledgeStore(cached_in), _teacher(self.teacher), knowledge, views)
            )
        if self.method.calls_teacher and callable_teacher is None:
            callable_teacher = InlineTeacher(_teacher(self.teacher))
        return Trainer(
            new_student=functools.partial(_build, self.student),
            method=self.method,
            data=data,
            views=views,
            training=_TRAINING,
            epochs=self.epochs,
            seed=1,
            teacher=source,
            callable_teacher=callable_teacher,
            teacher_architecture=self.teacher_architecture,
            teacher_weights=_teacher(self.teacher).state_dict,
            student_name=self.student,
        )


def check_method(method: Method, *, teacher: str = "resnet8", student: str = "lenet", epochs: int = 4) -> None:
    """Runs every check of `CHECKS`.

    Args:
        method: an instance with the hyper-parameters to try.
        teacher: name of a shipped model.
        student: name of a shipped model that suits the method.
        epochs: at least one for each of the method's stages.

    Raises:
        AssertionError: the method breaks a promise; the message says which.
    """
    trial = MethodTrial(method, teacher, student, epochs)
    for check in CHECKS.values():
        check(trial)


def check_card(trial: MethodTrial) -> None:
    """The card has a title and says what is implemented; a paper's number is given and stands in the file's docstring."""
    card = type(trial.method).card
    assert card is not Method.card, "a method needs a card of its own"
    assert card.title, "card.title must say which paper, or what the method is"
    assert card.equations, "card.equations must say what the file implements"
    if card.arxiv is not None:
        assert re.fullmatch(r"\d{4}\.\d{4,5}", card.arxiv), f"card.arxiv must look like 1503.02531, got {card.arxiv!r}"
        document = sys.modules[type(trial.method).__module__].__doc__ or ""
        assert card.arxiv in document, f"the file's docstring must name arXiv {card.arxiv}"


def check_hyperparameters(trial: MethodTrial) -> None:
    """Defaults and priors keep their rules, values that break one are refused by name, all of it is plain data."""
    cls = type(trial.method)
    defaults = cls.defaults()
    json.dumps(defaults)
    assert cls(**defaults) == cls(), "the defaults must make the method that no arguments make"
    for name, rule in cls.hyperparameters().items():
        for value in rule.prior.ends() if rule.prior is not None else ():
            assert rule.broken_by(value) is None, f"the prior of {name} reaches {value!r}, which {rule.broken_by(value)}"
        for value in [rule.prior.at(quantile) for quantile in (0.0, 0.5, 0.999)] if rule.prior is not None else []:
            cls(**{name: value})
        for value in _values_that_break(rule):
            refusal = _refusal(cls, {name: value})
            assert refusal is not None, f"{name}={value!r} breaks its rule and is not refused"
            assert name in refusal, f"the error for {name}={value!r} must name it: {refusal}"


def check_pickles(trial: MethodTrial) -> None:
    """Method and knowledge reach a worker as they left: equal after pickling, with an identity of plain data."""
    assert pickle.loads(pickle.dumps(trial.method)) == trial.method  # noqa: S301
    knowledge = trial.knowledge()
    assert pickle.loads(pickle.dumps(knowledge)) == knowledge  # noqa: S301
    for kind in knowledge.values():
        json.dumps(kind.identity())


def check_knowledge_of_a_sample_depends_on_it_alone(trial: MethodTrial) -> None:
    """One finite row per sample, the same whichever samples share its batch: what a sealed view rests on."""
    knowledge, data = trial.knowledge(), _digits()
    images, labels = data.normalise(data.train.images[:128]), data.train.labels[:128]
    shuffled = torch.randperm(128, generator=torch.Generator().manual_seed(0))
    with FeatureReader(_teacher(trial.teacher), layers_of(knowledge)) as reader:
        in_order = _computed(reader, knowledge, images, labels)
        mixed = _computed(reader, knowledge, images[shuffled], labels[shuffled])
    for name, rows in in_order.items():
        assert len(rows) == len(images), f"knowledge '{name}' must have one row per sample, got {tuple(rows.shape)}"
        assert bool(rows.isfinite().all()), f"knowledge '{name}' is not finite"
        size = float(rows.abs().max())
        torch.testing.assert_close(
            mixed[name], rows[shuffled], rtol=1e-4, atol=1e-5 * size, msg=f"'{name}' depends on the batch"
        )


def check_losses_and_gradients_are_finite(trial: MethodTrial) -> None:
    """Through all stages, with whole and with mixed labels; what the trainer hands over is not written to."""
    for policy in ((), ("mixup",)):
        MethodTrial(_Watched(inner=trial.method), trial.teacher, trial.student, trial.epochs).trainer(policy=policy).fit()


def check_a_batch_is_the_mean_of_its_parts_or_is_needed_whole(trial: MethodTrial) -> None:
    """A method that does not say `needs_whole_batch` gives the same gradients by parts of a batch, which workers may share."""
    if split_problem(trial.method) is not None:
        return
    for stage in range(len(trial.trainer().stages)):
        whole, parted = (trial.trainer().gradients_by_parts(stage, ends) for ends in ((0, 32), (0, 12, 32)))
        _assert_close_gradients(whole, parted)


def _assert_close_gradients(whole: Mapping[str, Tensor], parted: Mapping[str, Tensor]) -> None:
    for name, gradient in whole.items():
        size = float(gradient.abs().max())
        torch.testing.assert_close(
            parted[name],
            gradient,
            rtol=1e-3,
            atol=1e-4 * size + 1e-7,
            msg=f"'{name}' has another gradient by parts: "
            "the method relates the samples of a batch, and must say so by needs_whole_batch",
        )


def check_the_teacher_stays_untouched(trial: MethodTrial) -> None:
    """Weights, buffers and mode of the teacher are the same after a training, and it has collected no gradient."""
    teacher = _teacher(trial.teacher)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    trial.trainer().fit()
    assert not any(module.training for module in teacher.modules()), "the teacher has left evaluation mode"
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[name]), f"the teacher's {name} has changed"
    assert all(parameter.grad is None for parameter in teacher.parameters()), "gradients have reached the teacher"


def check_helpers_are_not_part_of_the_student(trial: MethodTrial) -> None:
    """After a training the student has the parameters of a fresh one, and shares none with a helper."""
    trainer = trial.trainer()
    trainer.fit()
    fresh = {name: tensor.shape for name, tensor in _build(trial.student).state_dict().items()}
    trained = {name: tensor.shape for name, tensor in trainer.student.state_dict().items()}
    assert trained == fresh, f"the student has other weights than a fresh one: {sorted(trained.keys() ^ fresh.keys())}"
    setup = Setup(
        teacher=trial.teacher_architecture,
        student=trial.student_architecture,
        new_student=functools.partial(_build, trial.student),
        num_samples=_NUM_TRAINING,
        epochs=trial.epochs,
    )
    first, second = trial.method.modules(setup), trial.method.modules(setup)
    for name, helper in first.items():
        assert name != "student", "a helper may not be called 'student'"
        shared = {id(weight) for weight in helper.module.parameters()} & {id(w) for w in second[name].module.parameters()}
        assert not shared, f"helper '{name}' must be made anew for each trial"


def check_a_resumed_training_ends_with_the_same_weights(trial: MethodTrial) -> None:
    """Bit for bit: student, helpers and optimisers of a training that was saved and loaded after every epoch."""
    with tempfile.TemporaryDirectory() as folder:
        straight, broken = Path(folder) / "straight", Path(folder) / "broken"
        trainer = trial.trainer()
        trainer.fit()
        trainer.save(straight)
        trainer = trial.trainer()
        while not trainer.finished:
            trainer.run_epoch()
            trainer.save(broken)
            trainer = trial.trainer()
            trainer.load(broken)
        states = load_checkpoint(straight), load_checkpoint(broken)
    for part in ("student", "helpers", "optimisers"):
        _assert_same(states[0][part], states[1][part], part)


def check_inline_and_cached_knowledge_train_the_same_student(trial: MethodTrial) -> None:
    """Bit for bit: a student taught from sealed views and one whose teacher runs beside it."""
    if not trial.knowledge():
        return
    with tempfile.TemporaryDirectory() as folder:
        inline, cached = trial.trainer(), trial.trainer(cached_in=Path(folder))
        inline.fit()
        cached.fit()
    _assert_same(inline.student.state_dict(), cached.student.state_dict(), "student")


def check_inline_and_served_calls_train_the_same_student(trial: MethodTrial) -> None:
    """Bit for bit: a student whose method calls a teacher beside it, and one that sends its inputs and gradients away."""
    if not trial.method.calls_teacher:
        return
    inline = trial.trainer()
    served = trial.trainer(callable_teacher=ServedTeacher(_ElsewhereModel(_teacher(trial.teacher))))
    inline.fit()
    served.fit()
    _assert_same(inline.student.state_dict(), served.student.state_dict(), "student")


def check_a_data_free_training_reads_no_image(trial: MethodTrial) -> None:
    """Whatever the training images and labels are, a method whose stages are all data-free ends with the same student."""
    one, other = trial.trainer(), trial.trainer()
    if not all(stage.data_free for stage in one.stages):
        return
    # Not through the data set, whose validation images decide what a student is measured by.
    other._images = 255 - other._images
    other._labels = (other._labels + 1) % _digits().num_classes
    one.fit()
    other.fit()
    _assert_same(one.student.state_dict(), other.student.state_dict(), "student")


def check_a_student_without_feature_maps_works_or_does_not_suit(trial: MethodTrial) -> None:
    """A multilayer perceptron is trained, or the method says that it is `Unsuitable`."""
    with contextlib.suppress(Unsuitable):
        MethodTrial(_Watched(inner=trial.method), trial.teacher, "mlp", trial.epochs).trainer(policy=()).fit()


Check = Callable[[MethodTrial], None]
CHECKS: dict[str, Check] = {
    check.__name__.removeprefix("check_"): check
    for check in (
        check_card,
        check_hyperparameters,
        check_pickles,
        check_knowledge_of_a_sample_depends_on_it_alone,
        check_losses_and_gradients_are_finite,
        check_a_batch_is_the_mean_of_its_parts_or_is_needed_whole,
        check_the_teacher_stays_untouched,
        check_helpers_are_not_part_of_the_student,
        check_a_resumed_training_ends_with_the_same_weights,
        check_inline_and_cached_knowledge_train_the_same_student,
        check_inline_and_served_calls_train_the_same_student,
        check_a_data_free_training_reads_no_image,
        check_a_student_without_feature_maps_works_or_does_not_suit,
    )
}
"""What is promised of every method, by name; tests may be parametrised over it."""


@dataclass(frozen=True, kw_only=True)
class _Watched(Method):
    """A method whose every step is watched; trains as the one inside does."""

    inner: Method

    def knowledge(self, teacher: Architecture, student: Architecture) -> Mapping[str, Knowledge]:
        return self.inner.knowledge(teacher, student)

    def student_layers(self, teacher: Architecture | None, student: Architecture) -> Sequence[str]:
        return self.inner.student_layers(teacher, student)

    @property
    def calls_teacher(self) -> bool:  # type: ignore[override]
        return self.inner.calls_teacher

    @property
    def differentiates_images(self) -> bool:
        return self.inner.differentiates_images

    def stages(self, setup: Setup) -> Sequence[Stage]:
        return self.inner.stages(setup)

    def modules(self, setup: Setup) -> Mapping[str, Any]:
        return self.inner.modules(setup)

    def classifiers(self, student: nn.Module, modules: Mapping[str, nn.Module]) -> Mapping[str, nn.Module]:
        return self.inner.classifiers(student, modules)

    def begin_stage(self, start: StageStart) -> None:
        self.inner.begin_stage(start)

    def loss(self, step: Step) -> dict[str, Tensor]:
        return self.inner.loss(step)

    def step(self, step: Step, update: Update) -> dict[str, Tensor]:
        given = {"images": step.images, "labels": step.labels, "targets": step.targets, **step.teacher}
        before = {name: tensor.clone() for name, tensor in given.items()}
        watched = _WatchedUpdate(step, update)
        terms = self.inner.step(step, watched)
        assert watched.updates, "a step must minimise something"
        assert terms, "a step must return terms to log"
        for name, term in terms.items():
            assert term.ndim == 0, f"term '{name}' must be a scalar, got shape {tuple(term.shape)}"
            assert bool(term.isfinite()), f"term '{name}' is {term.item()} in stage '{step.stage.name}'"
        for name, tensor in given.items():
            assert torch.equal(tensor, before[name]), f"the method has written to '{name}'"
        return terms


class _ElsewhereModel:
    """A teacher as in another process: it gets copies, keeps nothing, and computes every gradient from the start."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def forward(self, images: Tensor, layers: Sequence[str], *, differentiable: bool) -> tuple[None, Sequence[Tensor]]:
        with torch.no_grad():
            return None, run_teacher(self._model, images.clone(), layers)

    def pull_back(self, token: Any, images: Tensor, layers: Sequence[str], gradients: Sequence[Tensor]) -> Tensor:
        with torch.enable_grad():
            copy = images.detach().clone().requires_grad_()
            return pull_back(run_teacher(self._model, copy, layers), copy, gradients)


class _WatchedUpdate:
    """Hands losses on, and looks at them and at the gradients they leave."""

    def __init__(self, step: Step, update: Update) -> None:
        self._networks = {"student": step.student, **step.modules}
        self._stage = step.stage.name
        self._update = update
        self.updates = 0

    def minimise(self, loss: Tensor, *groups: str) -> None:
        assert loss.ndim == 0, f"a loss must be a scalar, got shape {tuple(loss.shape)}"
        assert bool(loss.isfinite()), f"the loss is {loss.item()} in stage '{self._stage}'"
        self._update.minimise(loss, *groups)
        self.updates += 1
        for group in groups or self._networks:
            gradients = {name: p.grad for name, p in self._networks[group].named_parameters() if p.grad is not None}
            assert gradients or not groups, f"the loss for '{group}' does not depend on it, in stage '{self._stage}'"
            for name, gradient in gradients.items():
                assert bool(gradient.isfinite().all()), (
                    f"the gradient of {group}.{name} is not finite, in stage '{self._stage}'"
                )


def _refusal(cls: type[Method], hyperparameters: Mapping[str, Any]) -> str | None:
    try:
        cls(**hyperparameters)
    except ValueError as error:
        return str(error)
    return None


def _values_that_break(rule: HyperParameter) -> list[Any]:
    """A value just outside each bound of the rule."""
    bounds = (rule.above, rule.below)
    outside = [bound for bound in bounds if bound is not None]
    outside += [rule.minimum - 1] if rule.minimum is not None else []
    outside += [rule.maximum + 1] if rule.maximum is not None else []
    return [*outside, *(["no such choice"] if rule.choices is not None else [])]


def _computed(reader: FeatureReader, knowledge: Mapping[str, Knowledge], images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The knowledge of all images, in batches of the size that trials use."""
    parts = zip(torch.split(images, _TRAINING.batch_size), torch.split(labels, _TRAINING.batch_size), strict=True)
    batches = [compute_knowledge(reader, knowledge, *part) for part in parts]
    return {name: torch.cat([batch[name] for batch in batches]) for name in knowledge}


def _sealed(
    store: KnowledgeStore,
    teacher: nn.Module,
    knowledge: Mapping[str, Knowledge],
    views: Views,
    view: int,
    names: Collection[str] | None = None,
    _reading: object = None,
) -> dict[str, View]:
    """Opens a view's knowledge of the given names (None: all), filling what is not there."""
    data = _digits()
    asked = {name: kind for name, kind in knowledge.items() if is_named(name, names)}
    identities = {name: {"knowledge": kind.identity(), "view": view} for name, kind in asked.items()}
    missing = {name: knowledge[name] for name, identity in identities.items() if not store.is_sealed(identity)}
    if missing:
        images = data.normalise(views.augment(data.train.images, torch.arange(_NUM_TRAINING), view))
        with FeatureReader(teacher, layers_of(missing)) as reader:
            computed = _computed(reader, missing, images, data.train.labels)
        for name, rows in computed.items():
            if store.is_sealed(identities[name]):
                continue  # under another name
            with store.writer(identities[name], rows=len(rows), shape=rows.shape[1:], dtype="float32") as writer:
                writer.put(np.arange(len(rows)), rows.numpy())
                writer.commit()
                writer.seal()
    return {name: store.open(identity) for name, identity in identities.items()}


def _assert_same(one: Any, other: Any, where: str) -> None:
    """Nested plain data and tensors, equal bit for bit."""
    if isinstance(one, Tensor):
        assert torch.equal(one, other), f"{where} differs by up to {float((one - other).abs().max()):.3g}"
    elif isinstance(one, Mapping):
        assert one.keys() == other.keys(), f"{where} has other entries: {sorted(map(str, one.keys() ^ other.keys()))}"
        for key in one:
            _assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        for number, (left, right) in enumerate(itertools.zip_longest(one, other)):
            _assert_same(left, right, f"{where}.{number}")
    else:
        assert one == other, f"{where} is {other!r} instead of {one!r}"
