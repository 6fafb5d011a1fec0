"""Unusual input gives a defined value or an error of one sentence, in every method."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from stillhouse import methods
from stillhouse.data.datasets import ImageData, Split, load_dataset
from stillhouse.data.views import Views
from stillhouse.distill.calls import InlineTeacher
from stillhouse.distill.generators import DataFreeMethod
from stillhouse.distill.method import Method, MethodError, Setup
from stillhouse.distill.sources import InlineKnowledge
from stillhouse.distill.trainer import Trainer
from stillhouse.errors import TrialError
from stillhouse.methods.combine import Combine
from stillhouse.methods.scratch import Scratch
from stillhouse.models.architecture import Architecture, describe
from stillhouse.models.blueprint import blueprint
from stillhouse.models.registry import build_model, model_names
from stillhouse.spec.training import Training
from stillhouse.testing import MethodTrial, make_step, suiting_trial

NAMES = [name for name in methods.names() if methods.find(name).shortened().serves("classification")]
"""Methods of other tasks are tested with data and models of their own."""
EVERY_METHOD = pytest.mark.parametrize("name", NAMES)


def keep_only(data: ImageData, indices: Sequence[int]) -> ImageData:
    """The data set with only these training images."""
    chosen = torch.tensor(list(indices))
    return replace(data, train=Split(images=data.train.images[chosen], labels=data.train.labels[chosen]))


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_dataset("digits", options={"limit": 200}, validation=40)


def build(model: str, data: ImageData) -> nn.Module:
    return build_model(model, num_classes=data.num_classes, input_shape=data.input_shape)


def train(method: Method, data: ImageData, teacher: nn.Module | None = None) -> Trainer:
    """Trains a lenet, or another student that suits the method, with a resnet8 as teacher."""
    model = suiting_trial(method).student
    teacher = build("resnet8", data).eval() if teacher is None else teacher
    of_teacher = describe(teacher, name="resnet8", input_shape=data.input_shape)
    of_student = describe(build(model, data), name=model, input_shape=data.input_shape)
    knowledge = method.knowledge(of_teacher, of_student)
    trainer = Trainer(
        new_student=lambda: build(model, data),
        method=method,
        data=data,
        views=Views((), 1, data.input_shape, len(data.train.labels)),
        training=Training(batch_size=32, learning_rate=0.001),
        epochs=4,
        teacher=InlineKnowledge(teacher, knowledge, data.train.labels) if knowledge else None,
        teacher_architecture=of_teacher,
        teacher_weights=teacher.state_dict,
        callable_teacher=InlineTeacher(teacher) if method.calls_teacher else None,
    )
    trainer.fit()
    return trainer


def assert_finite(trainer: Trainer) -> None:
    for name, weight in trainer.student.state_dict().items():
        assert bool(weight.isfinite().all()), name


@pytest.mark.parametrize("name", [name for name in NAMES if methods.find(name).card.family in "LR"])
def test_a_batch_of_one_sample_has_a_finite_loss(name: str, digits: ImageData) -> None:
    assert_finite(train(methods.find(name).shortened(), keep_only(digits, [0])))


@EVERY_METHOD
def test_batches_of_a_single_class_have_a_finite_loss(name: str, digits: ImageData) -> None:
    of_one_class = (digits.train.labels == 3).nonzero().flatten().tolist()
    assert_finite(train(methods.find(name).shortened(), keep_only(digits, of_one_class)))


@EVERY_METHOD
def test_a_teacher_with_logits_only_works_or_is_rejected_with_what_is_missing(name: str) -> None:
    logits_only = Architecture(name="net", num_classes=10, input_shape=(1, 8, 8), shapes={"answer": (10,)})
    method = methods.find(name)()
    student = suiting_trial(method).student_architecture
    try:
        needed = method.knowledge(logits_only, student)
    except MethodError as error:
        assert "teacher net" in str(error)  # noqa: PT017
    else:
        assert not [layer for kind in needed.values() for layer in kind.layers]


def zeros(name: str) -> dict[str, float]:
    """0 for every weight of the method that may be 0, 1 for the weight of the labels."""
    rules = methods.find(name).hyperparameters()
    weights = {key: 0.0 for key, rule in rules.items() if key.endswith("_weight") and rule.minimum == 0}
    return weights | ({"label_weight": 1.0} if "label_weight" in rules else {})


SWITCHED_OFF = [
    name
    for name in NAMES
    # Without data, nothing is left if the weights are 0.
    if any(weight == 0 for weight in zeros(name).values()) and not issubclass(methods.find(name), DataFreeMethod)
]


@pytest.mark.parametrize("name", SWITCHED_OFF)
def test_weights_of_zero_need_nothing_and_change_no_bit_of_the_student(name: str) -> None:
    off = MethodTrial(methods.find(name)(**zeros(name)), epochs=2)
    assert off.knowledge() == {}
    trainer = off.trainer()
    assert trainer._modules == {}
    assert trainer._ingredients.layers == []
    trainer.fit()
    plain = MethodTrial(Scratch(), epochs=2).trainer()
    plain.fit()
    for weight, (key, expected) in zip(trainer.student.state_dict().values(), plain.student.state_dict().items(), strict=True):
        assert torch.equal(weight, expected), key


def test_a_part_of_weight_zero_needs_nothing_and_changes_no_bit() -> None:
    both = MethodTrial(Combine(methods=("kd", "fitnets", "variational"), weights=(1.0, 0.0, 0.0)), epochs=2)
    alone = MethodTrial(Combine(methods=("kd",)), epochs=2)
    assert both.knowledge() == alone.knowledge()
    trainers = [trial.trainer() for trial in (both, alone)]
    for trainer in trainers:
        trainer.fit()
    weights: list[dict[str, Tensor]] = [trainer.student.state_dict() for trainer in trainers]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def taught() -> list[str]:
    return [name for name in NAMES if suiting_trial(methods.find(name)()).knowledge()]


def reads_layers(name: str) -> bool:
    trial = suiting_trial(methods.find(name)())
    return bool(trial.method.student_layers(trial.teacher_architecture, trial.student_architecture))


LAYERED = [name for name in taught() if reads_layers(name)]


@pytest.mark.parametrize("name", taught())
def test_nan_outputs_of_the_teacher_are_one_sentence(name: str, digits: ImageData) -> None:
    teacher = build("resnet8", digits)
    with torch.no_grad():
        next(teacher.parameters()).fill_(float("nan"))
    with pytest.raises(TrialError, match=r"the teacher's outputs are not finite .*; check its weights"):
        train(methods.find(name).shortened(), digits, teacher)


def outputs(architecture: Architecture, layers: Iterable[str]) -> dict[str, Tensor]:
    return {layer: torch.randn(3, *architecture.shape(layer)).relu().requires_grad_() for layer in layers}


def losses_on_default_layers(
    method: Method, teacher: Architecture, student: Architecture, networks: Mapping[str, nn.Module]
) -> list[Tensor]:
    """The loss of every stage, for three samples and random outputs of the shapes of the two networks."""
    kinds = method.knowledge(teacher, student)
    setup = Setup(teacher=teacher, student=student, new_student=nn.Identity, num_samples=8, epochs=4)
    of_teacher, logits = outputs(teacher, (layer for kind in kinds.values() for layer in kind.layers)), torch.randn(3, 10)
    knowledge = {}
    for name, kind in kinds.items():
        state = networks[teacher.name].state_dict()
        weights = [state[weight] for weight in kind.weights]
        knowledge[name] = kind.compute(logits, of_teacher, weights).detach()
    modules = {name: helper.module for name, helper in method.modules(setup).items()}
    losses = []
    for stage in method.stages(setup):
        step = make_step(
            student=networks[student.name],
            student_logits=torch.randn(3, 10, requires_grad=True) if stage.until is None else None,
            labels=torch.tensor([0, 1, 1]),
            teacher=knowledge,
            student_features=outputs(student, method.student_layers(teacher, student)),
            modules=modules,
            stage=stage,
            progress=0.5,
        )
        losses.append(torch.stack(list(method.loss(step).values())).sum())
    return losses


@pytest.mark.parametrize("model", model_names())
def test_every_shipped_model_has_default_layers_or_is_reported_as_unsuitable(model: str) -> None:
    """As teacher and student, and as either of them with a network of another family; at 32 x 32 and width 0.25."""
    ours, other = (blueprint(name, {"width": 0.25}, 10, (3, 32, 32)).architecture for name in (model, "resnet14"))
    networks = {name: build_model(name, num_classes=10, input_shape=(3, 32, 32), width=0.25) for name in (model, "resnet14")}
    for name, (teacher, student) in itertools.product(LAYERED, ((ours, ours), (other, ours), (ours, other))):
        try:
            losses = losses_on_default_layers(methods.find(name)(), teacher, student, networks)
        except MethodError as error:
            assert str(error).startswith("needs ")  # noqa: PT017
        else:
            for loss in losses:
                assert bool(loss.isfinite()), name
                loss.backward()
