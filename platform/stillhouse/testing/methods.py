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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stillhouse.distill.calls import ServedTeacher
from stillhouse.distill.checkpoint import load_checkpoint
from stillhouse.distill.method import HyperParameter, Method, Setup, Unsuitable
from stillhouse.distill.parallel import split_problem
from stillhouse.distill.sources import layers_of
from stillhouse.models.features import FeatureReader
from stillhouse.testing.method_trial import (
    NUM_TRAINING,
    MethodTrial,
    RemoteModel,
    build_student,
    compute_in_batches,
    digits,
    trained_teacher,
)
from stillhouse.testing.watched_method import WatchedMethod


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
    knowledge, data = trial.knowledge(), digits()
    images, labels = data.normalise(data.train.images[:128]), data.train.labels[:128]
    shuffled = torch.randperm(128, generator=torch.Generator().manual_seed(0))
    with FeatureReader(trained_teacher(trial.teacher), layers_of(knowledge)) as reader:
        in_order = compute_in_batches(reader, knowledge, images, labels)
        mixed = compute_in_batches(reader, knowledge, images[shuffled], labels[shuffled])
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
        MethodTrial(WatchedMethod(inner=trial.method), trial.teacher, trial.student, trial.epochs).trainer(policy=policy).fit()


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
    teacher = trained_teacher(trial.teacher)
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
    fresh = {name: tensor.shape for name, tensor in build_student(trial.student).state_dict().items()}
    trained = {name: tensor.shape for name, tensor in trainer.student.state_dict().items()}
    assert trained == fresh, f"the student has other weights than a fresh one: {sorted(trained.keys() ^ fresh.keys())}"
    setup = Setup(
        teacher=trial.teacher_architecture,
        student=trial.student_architecture,
        new_student=functools.partial(build_student, trial.student),
        num_samples=NUM_TRAINING,
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
    served = trial.trainer(callable_teacher=ServedTeacher(RemoteModel(trained_teacher(trial.teacher))))
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
    other._labels = (other._labels + 1) % digits().num_classes
    one.fit()
    other.fit()
    _assert_same(one.student.state_dict(), other.student.state_dict(), "student")


def check_a_student_without_feature_maps_works_or_does_not_suit(trial: MethodTrial) -> None:
    """A multilayer perceptron is trained, or the method says that it is `Unsuitable`."""
    with contextlib.suppress(Unsuitable):
        MethodTrial(WatchedMethod(inner=trial.method), trial.teacher, "mlp", trial.epochs).trainer(policy=()).fit()


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
