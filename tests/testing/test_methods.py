"""The conformance suite finds methods that fail a check, and reports all of them."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.distill.method import ANY_TASK, Card, Helper, Method, Setup, Step, hyperparameter
from stillhouse.knowledge.kinds import Knowledge, logits, reduced
from stillhouse.models.architecture import Architecture
from stillhouse.spec.priors import Uniform
from stillhouse.testing import CHECKS, MethodTrial, check_method
from stillhouse.testing.method_trial import trained_teacher

CARD = Card(title="A method for this test", family="control", equations="cross-entropy")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


@dataclass(frozen=True, kw_only=True)
class Plain(Method):
    card: ClassVar[Card] = CARD


class NoCard(Method):
    pass


class InfiniteLoss(Plain):
    def loss(self, step: Step) -> dict[str, Tensor]:
        return {"infinite": F.cross_entropy(step.logits, step.targets) / 0}


class LossPerSample(Plain):
    def loss(self, step: Step) -> dict[str, Tensor]:
        return {"losses": F.cross_entropy(step.logits, step.targets, reduction="none")}


class InfiniteGradient(Plain):
    def loss(self, step: Step) -> dict[str, Tensor]:
        return {"root": (step.logits - step.logits.detach()).square().sum().sqrt()}


class RelatesSamples(Plain):
    def loss(self, step: Step) -> dict[str, Tensor]:
        return {"spread": (step.logits - step.logits.mean(0)).square().mean()}


class WritesToItsBatch(Plain):
    def loss(self, step: Step) -> dict[str, Tensor]:
        step.images.data.mul_(0.5)
        return super().loss(step)


class IgnoresMixedLabels(Plain):
    def loss(self, step: Step) -> dict[str, Tensor]:
        return {"labels": F.nll_loss(F.log_softmax(step.logits, dim=1), step.targets)}


class DrawsFromElsewhere(Plain):
    def loss(self, step: Step) -> dict[str, Tensor]:
        return {"cross_entropy": random.random() * F.cross_entropy(step.logits, step.targets)}


def centred(logits: Tensor) -> Tensor:
    """Wrong on purpose: a sample's row depends on the batch it comes in."""
    return logits - logits.mean(dim=0)


class KnowledgeOfTheBatch(Plain):
    def knowledge(self, teacher: Architecture, student: Architecture) -> Mapping[str, Knowledge]:
        return {"centred": reduced(centred)}


class NoCardAndKnowledgeOfTheBatch(KnowledgeOfTheBatch):
    card: ClassVar[Card] = Method.card


@dataclass(frozen=True, kw_only=True)
class PriorBeyondItsRule(Plain):
    weight: float = hyperparameter(1.0, minimum=0, maximum=1, prior=Uniform(0.5, 2.0))


@dataclass(frozen=True, kw_only=True)
class UncheckedRule(Plain):
    weight: float = hyperparameter(1.0, minimum=0)

    def __post_init__(self) -> None:
        """Forgets the base class."""


class AnyTaskOnLogits(Plain):
    tasks: ClassVar[tuple[str, ...]] = (ANY_TASK,)

    def knowledge(self, teacher: Architecture, student: Architecture) -> Mapping[str, Knowledge]:
        return {"logits": logits()}


class AnyTaskOnLabels(Plain):
    tasks: ClassVar[tuple[str, ...]] = (ANY_TASK,)

    def loss(self, step: Step) -> dict[str, Tensor]:
        of_one_class = (step.labels == step.labels[0]).to(step.logits.dtype)
        return super().loss(step) | {"together": (of_one_class * step.logits.sum(1)).square().mean()}


ONE_FOR_ALL = nn.Linear(2, 2)


class SharedHelper(Plain):
    def modules(self, setup: Setup) -> Mapping[str, Helper]:
        return {"shared": Helper(module=ONE_FOR_ALL)}


class HelperInsideTheStudent(Plain):
    def step(self, step: Step, update: object) -> dict[str, Tensor]:
        step.student.add_module("extra", nn.Linear(2, 2))
        return super().step(step, update)  # type: ignore[arg-type]


def test_a_method_that_only_has_a_card_passes_every_check() -> None:
    check_method(Plain(), epochs=2)


def test_the_message_lists_every_failed_check_with_what_it_requires() -> None:
    with pytest.raises(AssertionError) as raised:
        check_method(NoCardAndKnowledgeOfTheBatch(), epochs=1)
    first, *rest = str(raised.value).splitlines()
    assert first == f"NoCardAndKnowledgeOfTheBatch fails 2 of {len(CHECKS)} checks:"
    assert [line.strip().partition(":")[0] for line in rest] == [
        "- card",
        "required",
        "- knowledge_of_a_sample_depends_on_it_alone",
        "required",
    ]


def test_an_exception_of_the_method_itself_names_the_check() -> None:
    with pytest.raises(RuntimeError) as raised:
        check_method(IgnoresMixedLabels(), epochs=1)
    assert "'losses_and_gradients_are_finite' of IgnoresMixedLabels" in raised.value.__notes__[0]


@pytest.mark.parametrize(
    ("method", "check", "message"),
    [
        (NoCard(), "card", "must define its own `card`"),
        (InfiniteLoss(), "losses_and_gradients_are_finite", "the loss is inf"),
        (LossPerSample(), "losses_and_gradients_are_finite", "must be a scalar"),
        (InfiniteGradient(), "losses_and_gradients_are_finite", "gradient of student.* is not finite"),
        (RelatesSamples(), "a_batch_is_the_mean_of_its_parts_or_is_needed_whole", "needs_whole_batch must be True"),
        (WritesToItsBatch(), "losses_and_gradients_are_finite", "modified 'images' of the step"),
        (DrawsFromElsewhere(), "a_resumed_training_ends_with_the_same_weights", "student.* differs by up to"),
        (KnowledgeOfTheBatch(), "knowledge_of_a_sample_depends_on_it_alone", "'centred' depends on the other samples"),
        (PriorBeyondItsRule(), "hyperparameters", "the prior of weight reaches 2.0"),
        (AnyTaskOnLogits(), "a_method_for_any_task_reads_no_labels", "'logits' is not a layer's output"),
        (AnyTaskOnLabels(), "a_method_for_any_task_reads_no_labels", "without step.labels and step.targets: student"),
        (UncheckedRule(), "hyperparameters", "breaks the rule of weight, but the constructor accepts it"),
        (SharedHelper(), "helpers_are_not_part_of_the_student", "must be new in each trial"),
        (HelperInsideTheStudent(), "helpers_are_not_part_of_the_student", "must have the weights of a new one"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Method) else "",
)
def test_a_method_that_fails_a_check_is_found(method: Method, check: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        CHECKS[check](MethodTrial(method, epochs=2))


def test_a_method_that_cannot_take_mixed_labels_is_found() -> None:
    with pytest.raises(RuntimeError):
        CHECKS["losses_and_gradients_are_finite"](MethodTrial(IgnoresMixedLabels(), epochs=2))


def test_a_method_that_changes_the_teacher_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = MethodTrial(Plain(), epochs=1)
    trained = MethodTrial.trainer

    def meddle(self: MethodTrial) -> object:
        teacher = trained_teacher(self.teacher)
        monkeypatch.setattr(teacher, "training", True)
        return trained(self)

    monkeypatch.setattr(MethodTrial, "trainer", meddle)
    with pytest.raises(AssertionError, match="no longer in evaluation mode"):
        CHECKS["the_teacher_stays_untouched"](trial)
