"""The conformance suite for methods: what every method must satisfy, checked on real images and shipped models.

    from stillhouse.testing import check_method

    def test_my_method_passes_every_check() -> None:
        check_method(MyMethod())

The test of a method adds what only that method must satisfy: its loss, compared with numbers that do not come from its code.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import pickle
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse import tasks
from stillhouse.distill.calls import ServedTeacher
from stillhouse.distill.checkpoint import load_checkpoint
from stillhouse.distill.ddp import split_problem
from stillhouse.distill.hook_returns import helpers_of
from stillhouse.distill.method import ANY_TASK, Method, Setup, Unsuitable
from stillhouse.distill.sources import layers_of
from stillhouse.errors import UsageError
from stillhouse.knowledge.kinds import Knowledge
from stillhouse.models.features import FeatureReader
from stillhouse.testing.checks import check_configured, run_checks, train_resumed
from stillhouse.testing.method_trial import (
    MethodTrial,
    RemoteModel,
    compute_in_batches,
    suiting_trial,
    trained_teacher,
)
from stillhouse.testing.tolerance import Tolerance
from stillhouse.testing.watched_method import UnlabelledMethod, WatchedMethod
from stillhouse.text_table import log_line


def check_method(
    method: Method,
    *,
    teacher: str | Sequence[str] = "",
    student: str | None = None,
    epochs: int = 4,
    device: str = "cpu",
    progress: bool = False,
) -> None:
    """Runs every check of `CHECKS`; takes a few seconds.

    What is equal bit for bit on a CPU may differ by the tolerances of `stillhouse.testing.tolerance` on another device.

    Args:
        method: an instance with the hyper-parameters to try.
        teacher: name of a shipped model; several different ones for a method that learns from `every_teacher`. By default that
            of the ground of the method's task, resnet8 for classification.
        student: name of a shipped model that suits the method; by default the first of the ground's that does, of lenet and
            resnet8 for classification.
        epochs: at least one for each of the method's stages.
        device: of student, helpers and teacher, such as `cuda`.
        progress: whether each check is named on stderr when it begins.

    Raises:
        UsageError: several teachers for a method that learns from one.
        WrongReturnError: a hook returns something of another type than its contract.
        AssertionError: the method fails a check. The message lists every failed check, what it requires and what was found.
            Any other exception of the method is raised as it is, with a note that names the check.
    """
    first, *others = [teacher] if isinstance(teacher, str) else teacher
    if others and not method.every_teacher:
        raise UsageError(f"{type(method).__name__} learns from one teacher; several need a method with every_teacher = True")
    fields: dict[str, Any] = {"teacher": first, "other_teachers": tuple(others), "epochs": epochs, "device": device}
    trial = suiting_trial(method, **fields) if student is None else MethodTrial(method, student=student, **fields)
    tell = partial(print, file=sys.stderr, flush=True) if progress else _silent
    run_checks(CHECKS, trial, type(method).__name__, lambda text: tell(log_line(text)))


def _silent(_text: str) -> None:
    """Shows nothing."""


def check_card(trial: MethodTrial) -> None:
    """The card has a title and names the implemented equations; the file's docstring names the card's arXiv number."""
    card = type(trial.method).card
    assert card is not Method.card, "a method must define its own `card`, it has the one of the base class"
    assert card.title, "card.title must be the title of the paper, or say what the method is; it is empty"
    assert card.equations, "card.equations must say what the file implements; it is empty"
    if card.arxiv is not None:
        assert re.fullmatch(r"\d{4}\.\d{4,5}", card.arxiv), f"card.arxiv must be a number like 1503.02531, got {card.arxiv!r}"
        document = sys.modules[type(trial.method).__module__].__doc__ or ""
        assert card.arxiv in document, f"the file's docstring must name arXiv {card.arxiv}, as the card does"


def check_hyperparameters(trial: MethodTrial) -> None:
    """Defaults and priors follow the rules; the constructor rejects other values and names them; all values are plain data."""
    check_configured(type(trial.method))


def check_pickles(trial: MethodTrial) -> None:
    """Method and knowledge equal their pickled copies, which workers receive; the identity of knowledge is plain data."""
    copied = pickle.loads(pickle.dumps(trial.method))  # noqa: S301
    assert copied == trial.method, f"a pickled copy of the method differs: {copied!r}"
    knowledge = trial.knowledge()
    for name, kind in pickle.loads(pickle.dumps(knowledge)).items():  # noqa: S301
        assert kind == knowledge[name], f"a pickled copy of knowledge '{name}' differs: {kind!r}"
    for kind in knowledge.values():
        json.dumps(kind.identity())


def check_a_method_for_any_task_reads_no_labels(trial: MethodTrial) -> None:
    """If `tasks` has `ANY_TASK`, the method reads neither the teacher's logits, nor labels outside the supervised loss."""
    if not trial.method.serves(ANY_TASK):
        return
    for name, kind in trial.knowledge().items():
        assert kind.layers, f"knowledge '{name}' is not a layer's output, so not every task has it"
    plain = trial.trainer()
    unlabelled = dataclasses.replace(trial, method=UnlabelledMethod(inner=trial.method)).trainer()
    plain.fit()
    unlabelled.fit()
    what = "without step.labels and step.targets: student"
    _assert_same(plain.student.state_dict(), unlabelled.student.state_dict(), what, trial.tolerance)


def check_knowledge_of_a_sample_depends_on_it_alone(trial: MethodTrial) -> None:
    """Each sample has one finite row, which does not depend on the other samples of its batch, so that it can be cached."""
    data = trial.data
    images = tasks.of(data).first_inputs(data, data.train, min(128, len(data.train)), trial.device)
    for teacher, knowledge in trial.knowledge_by_teacher().items():
        _check_rows(trial, trained_teacher(teacher, trial.device, trial.ground), knowledge, images)


def _check_rows(trial: MethodTrial, teacher: nn.Module, knowledge: Mapping[str, Knowledge], images: Tensor) -> None:
    count = len(images)
    labels = trial.data.train.labels[:count].to(trial.device)
    shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(0)).to(trial.device)
    with FeatureReader(teacher, layers_of(knowledge)) as reader:
        in_order = compute_in_batches(reader, knowledge, images, labels, trial.ground)
        mixed = compute_in_batches(reader, knowledge, images[shuffled], labels[shuffled], trial.ground)
    for name, rows in in_order.items():
        assert len(rows) == len(images), f"knowledge '{name}' must have one row per sample, got {tuple(rows.shape)}"
        assert bool(rows.isfinite().all()), f"knowledge '{name}' is not finite"
        size = float(rows.abs().max())
        torch.testing.assert_close(
            mixed[name],
            rows[shuffled],
            rtol=trial.tolerance.per_sample,
            atol=0.1 * trial.tolerance.per_sample * size,
            msg=f"a sample's row of knowledge '{name}' depends on the other samples of the batch",
        )


def check_losses_and_gradients_are_finite(trial: MethodTrial) -> None:
    """In all stages, with plain and with mixed labels, losses and gradients are finite; the step's tensors are not modified.

    Mixed labels are those of classification; other grounds have other policies.
    """
    for policy in trial.ground.policies:
        dataclasses.replace(trial, method=WatchedMethod(inner=trial.method)).trainer(policy=policy).fit()


def check_a_batch_is_the_mean_of_its_parts_or_is_needed_whole(trial: MethodTrial) -> None:
    """Unless `needs_whole_batch` is True, parts of a batch give the gradients of the whole batch, so workers may share it."""
    if split_problem(trial.method, tasks.of(trial.data)) is not None:
        return
    size = trial.ground.training.batch_size // 2
    for stage in range(len(trial.trainer().stages)):
        whole, parted = (trial.trainer().gradients_by_parts(stage, ends) for ends in ((0, size), (0, size * 3 // 8, size)))
        _assert_close_gradients(whole, parted, trial.tolerance.regrouped)


def _assert_close_gradients(whole: Mapping[str, Tensor], parted: Mapping[str, Tensor], tolerance: float) -> None:
    for name, gradient in whole.items():
        assert bool(gradient.isfinite().all()), f"the gradient of '{name}' is not finite"
        size = float(gradient.abs().max())
        torch.testing.assert_close(
            parted[name],
            gradient,
            rtol=tolerance,
            atol=0.1 * tolerance * size + 1e-7,
            msg=f"the gradient of '{name}' differs when the batch is split into parts: the loss relates samples to each "
            "other, so needs_whole_batch must be True",
        )


def check_the_teacher_stays_untouched(trial: MethodTrial) -> None:
    """Training changes neither the teacher's weights, buffers and mode, nor does it leave gradients there."""
    teachers = {name: trained_teacher(name, trial.device, trial.ground) for name in trial.teachers}
    before = {each: {name: tensor.clone() for name, tensor in model.state_dict().items()} for each, model in teachers.items()}
    trial.trainer().fit()
    for each, teacher in teachers.items():
        _check_untouched(teacher, before[each])


def _check_untouched(teacher: nn.Module, before: Mapping[str, Tensor]) -> None:
    assert not any(module.training for module in teacher.modules()), (
        "the teacher is no longer in evaluation mode after the training"
    )
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[name]), f"the training changed the teacher's {name}"
    assert all(parameter.grad is None for parameter in teacher.parameters()), "the training left gradients at the teacher"


def check_helpers_are_not_part_of_the_student(trial: MethodTrial) -> None:
    """A trained student has the parameters of a new one by name and shape; each trial makes its own helpers."""
    trainer = trial.trainer()
    trainer.fit()
    fresh = {name: tensor.shape for name, tensor in trial.ground.build(trial.student).state_dict().items()}
    trained = {name: tensor.shape for name, tensor in trainer.student.state_dict().items()}
    assert trained == fresh, (
        f"the trained student must have the weights of a new one, these differ: {sorted(trained.items() ^ fresh.items())}"
    )
    setup = Setup(
        teacher=trial.teacher_architecture,
        student=trial.student_architecture,
        new_student=functools.partial(trial.ground.build, trial.student),
        num_samples=len(trial.data.train),
        epochs=trial.epochs,
    )
    first, second = helpers_of(trial.method, setup), helpers_of(trial.method, setup)
    for name, helper in first.items():
        assert name != "student", "a helper must not be called 'student'"
        shared = {id(weight) for weight in helper.module.parameters()} & {id(w) for w in second[name].module.parameters()}
        assert not shared, f"helper '{name}' must be new in each trial: two calls of modules() share weights"


def check_a_resumed_training_ends_with_the_same_weights(trial: MethodTrial) -> None:
    """Saving and loading after every epoch changes no bit of student, helpers and optimisers."""
    with tempfile.TemporaryDirectory() as folder:
        straight, resumed = Path(folder) / "straight", Path(folder) / "resumed"
        trainer = trial.trainer()
        trainer.fit()
        trainer.save(straight)
        train_resumed(trial.trainer, resumed)
        states = load_checkpoint(straight), load_checkpoint(resumed)
    for part in ("student", "helpers", "optimisers"):
        _assert_same(states[0][part], states[1][part], part, trial.tolerance)


def check_inline_and_cached_knowledge_train_the_same_student(trial: MethodTrial) -> None:
    """Knowledge from sealed views and knowledge from a teacher in the same process train the same student, bit for bit."""
    if not trial.knowledge():
        return
    with tempfile.TemporaryDirectory() as folder:
        inline, cached = trial.trainer(), trial.trainer(cached_in=Path(folder))
        inline.fit()
        cached.fit()
    _assert_same(inline.student.state_dict(), cached.student.state_dict(), "student", trial.tolerance)


def check_inline_and_served_calls_train_the_same_student(trial: MethodTrial) -> None:
    """Calls of a teacher in the same process and calls of one in another process train the same student, bit for bit."""
    if not trial.method.calls_teacher:
        return
    inline = trial.trainer()
    served = trial.trainer(callable_teacher=ServedTeacher(RemoteModel(trial.teacher_model)))
    inline.fit()
    served.fit()
    _assert_same(inline.student.state_dict(), served.student.state_dict(), "student", trial.tolerance)


def check_a_data_free_training_reads_no_image(trial: MethodTrial) -> None:
    """If all stages are data-free, the trained student does not depend on the data set's images and labels."""
    one, other = trial.trainer(), trial.trainer()
    if not all(stage.data_free for stage in one.stages):
        return
    # Only what the student trains on: the data set also has the images by which it is evaluated.
    other.split.images = 255 - other.split.images
    other.split.labels = (other.split.labels + 1) % trial.data.num_classes
    one.fit()
    other.fit()
    _assert_same(one.student.state_dict(), other.student.state_dict(), "student", trial.tolerance)


def check_a_student_without_feature_maps_works_or_does_not_suit(trial: MethodTrial) -> None:
    """A multilayer perceptron can be trained, or the method raises `Unsuitable`."""
    if (student := trial.ground.without_maps) is None:
        return
    with contextlib.suppress(Unsuitable):
        dataclasses.replace(trial, method=WatchedMethod(inner=trial.method), student=student).trainer(policy=()).fit()


Check = Callable[[MethodTrial], None]
CHECKS: dict[str, Check] = {
    check.__name__.removeprefix("check_"): check
    for check in (
        check_card,
        check_hyperparameters,
        check_pickles,
        check_a_method_for_any_task_reads_no_labels,
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
"""What every method must satisfy, by name; tests may be parametrised over it."""


def _assert_same(one: Any, other: Any, where: str, tolerance: Tolerance) -> None:
    """Compares nested plain data and tensors, which may differ by `repeated`; `where` names them in the message."""
    if isinstance(one, Tensor):
        tolerance.assert_repeated(one, other, where)
    elif isinstance(one, Mapping):
        assert one.keys() == other.keys(), (
            f"{where}: these entries exist once only: {sorted(map(str, one.keys() ^ other.keys()))}"
        )
        for key in one:
            _assert_same(one[key], other[key], f"{where}.{key}", tolerance)
    elif isinstance(one, list | tuple):
        for number, (left, right) in enumerate(itertools.zip_longest(one, other)):
            _assert_same(left, right, f"{where}.{number}", tolerance)
    else:
        assert one == other, f"{where} is {other!r} instead of {one!r}"
