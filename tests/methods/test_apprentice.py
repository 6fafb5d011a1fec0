"""Apprentice against the paper's equation, and its schemes in training."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from stillhouse.compress.quantize import Quantize
from stillhouse.data.views import Views
from stillhouse.distill.method import MethodError
from stillhouse.distill.sources import InlineKnowledge
from stillhouse.distill.trainer import Trainer
from stillhouse.methods.apprentice import Apprentice, soft_cross_entropy
from stillhouse.testing import CHECKS, MethodTrial, OperatorTrial, ReferenceCase, make_step
from stillhouse.testing.method_trial import NUM_TRAINING, TRAINING, digits

Open = Callable[[str], ReferenceCase]


class Fixed(nn.Module):
    """Returns given logits, whatever the images are."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits


def test_joint_terms_and_gradients_are_those_of_the_papers_equation(open_case: Open) -> None:
    case = open_case("apprentice-formula")
    teacher, student = case["in.t_logits"], case["in.s_logits"]
    step = make_step(student_logits=student, labels=case["in.labels"], modules={"teacher": Fixed(teacher)})
    method = Apprentice(scheme="joint", alpha=case.number("alpha"), beta=case.number("beta"), gamma=case.number("gamma"))
    terms = method.loss(step)
    case.check(terms["teacher_cross_entropy"] / case.number("alpha"), "out.teacher_ce")
    case.check(terms["cross_entropy"] / case.number("beta"), "out.student_ce")
    case.check(terms["soft_cross_entropy"] / case.number("gamma"), "out.soft_ce")
    loss = torch.stack(list(terms.values())).sum()
    case.check(loss)
    # The teacher's gradient is that of its own term alone.
    case.check_gradients(loss, "s_logits", "t_logits")


def test_with_a_trained_teacher_the_loss_is_the_last_two_terms(open_case: Open) -> None:
    case = open_case("apprentice-formula")
    step = make_step(student_logits=case["in.s_logits"], labels=case["in.labels"], teacher={"logits": case["in.t_logits"]})
    terms = Apprentice().loss(step)
    assert set(terms) == {"cross_entropy", "soft_cross_entropy"}
    case.check(terms["cross_entropy"] * 2, "out.student_ce")
    case.check(terms["soft_cross_entropy"] * 2, "out.soft_ce")


def test_the_soft_term_is_the_divergence_and_the_teachers_entropy(open_case: Open) -> None:
    case = open_case("apprentice-formula")
    teacher = case["in.t_logits"].detach()
    entropy = torch.distributions.Categorical(logits=teacher).entropy().mean()
    case.check(soft_cross_entropy(case["in.s_logits"], teacher) - entropy, "aux.soft_kl")


@pytest.mark.parametrize("scheme", ["joint", "finetune"])
@pytest.mark.parametrize(
    "check",
    [
        "losses_and_gradients_are_finite",
        "a_batch_is_the_mean_of_its_parts_or_is_needed_whole",
        "helpers_are_not_part_of_the_student",
        "a_resumed_training_ends_with_the_same_weights",
        "inline_and_cached_knowledge_train_the_same_student",
    ],
)
def test_the_other_schemes_pass_the_checks_of_methods(scheme: Any, check: str) -> None:
    CHECKS[check](MethodTrial(Apprentice(scheme=scheme)))


def quantized_trainer(method: Apprentice, ranges: Any, epochs: int) -> Trainer:
    """A trainer of a student of two bits."""
    trial, data = OperatorTrial(Quantize(weight_bits=2, activation_bits=4, ranges=ranges)), digits()
    taught = MethodTrial(method, student="resnet8")
    knowledge = taught.knowledge()
    return Trainer(
        new_student=lambda: trial.convert().model,
        method=method,
        data=data,
        views=Views((), 1, data.input_shape, NUM_TRAINING),
        training=TRAINING,
        epochs=epochs,
        operators=trial.chain,
        teacher=InlineKnowledge(taught.teacher_model, knowledge, data.train.labels) if knowledge else None,
        teacher_architecture=taught.teacher_architecture,
    )


@pytest.mark.parametrize("ranges", ["observed", "learnt"])
def test_finetune_trains_in_full_precision_first(ranges: Any) -> None:
    trainer = quantized_trainer(Apprentice(scheme="finetune"), ranges, epochs=2)
    images = digits().normalise(digits().test.images[:32])

    def as_trained_and_in_full_precision() -> list[torch.Tensor]:
        trainer.student.eval()
        plain = MethodTrial(Apprentice(), student="resnet8").trainer().student.eval()
        plain.load_state_dict({name: trainer.student.state_dict()[name] for name in plain.state_dict()})
        with torch.no_grad():
            return [network(images) for network in (trainer.student, plain)]

    assert [stage.name for stage in trainer.stages] == ["full_precision", "low_precision"]
    trainer.run_epoch()
    assert torch.equal(*as_trained_and_in_full_precision())
    trainer.run_epoch()
    assert not torch.equal(*as_trained_and_in_full_precision())
    trainer.finalise()
    weight = trainer.student.get_parameter("layer3.0.conv1.weight")
    assert all(len(channel.unique()) <= 3 for channel in weight.detach())


def test_joint_needs_no_knowledge_and_reports_its_teachers_accuracy() -> None:
    method = Apprentice(scheme="joint", teacher_model="lenet", teacher_width=0.5)
    assert MethodTrial(method).knowledge() == {}
    trainer = MethodTrial(method).trainer()
    entry = trainer.run_epoch()
    assert {"validation_accuracy", "validation_accuracy_teacher"} <= set(entry)


def test_an_unknown_model_of_the_joint_teacher_is_named() -> None:
    with pytest.raises(MethodError, match="model 'lenett' cannot be used"):
        MethodTrial(Apprentice(scheme="joint", teacher_model="lenett")).trainer()


def test_settings_of_another_scheme_warn() -> None:
    with pytest.warns(UserWarning, match="teacher_model has no effect with scheme='fixed'"):
        Apprentice(teacher_model="lenet")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Apprentice(full_precision_fraction=0.4)
        Apprentice(scheme="joint", teacher_model="lenet")
        dataclasses.replace(Apprentice(), gamma=2.0)
