from collections.abc import Callable
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stillhouse.data.views import Views
from stillhouse.knowledge.kinds import input_gradient
from stillhouse.methods.gradient_attention import GradientAttention, batch_gradient_distance, gradient_distance
from stillhouse.testing import MethodTrial, ReferenceCase, make_step

Open = Callable[[str], ReferenceCase]


def answer(case: ReferenceCase, who: str, images: Tensor) -> Tensor:
    """Convolution, ReLU, mean over positions, linear layer, with the case's weights."""
    maps = F.relu(F.conv2d(images, case[f"w.{who}.conv.weight"], case[f"w.{who}.conv.bias"], padding=1))
    return F.linear(maps.mean((2, 3)), case[f"w.{who}.fc.weight"], case[f"w.{who}.fc.bias"])


def gradient(case: ReferenceCase, who: str) -> Tensor:
    """The gradient of each sample's own loss, as `Step.input_gradient` computes it."""
    images = case["in.x"].detach().clone().requires_grad_()
    step = make_step(student_logits=answer(case, who, images), labels=case["in.labels"], images=images)
    return step.input_gradient()


def test_the_gradients_equal_the_formula(open_case: Open) -> None:
    case = open_case("at-gradient-formula")
    for who in "st":
        case.check(gradient(case, who) / len(case["in.x"]), f"aux.J_{who}")


def test_both_readings_equal_the_formula(open_case: Open) -> None:
    case = open_case("at-gradient-formula")
    student, teacher = gradient(case, "s"), gradient(case, "t").detach()
    case.check(batch_gradient_distance(student, teacher), "out.at_batchnorm")
    case.check(gradient_distance(student, teacher) / len(student), "out.at_persample_mean")


def test_the_loss_and_its_gradients_through_the_students_gradient_equal_the_formula(open_case: Open) -> None:
    case = open_case("at-gradient-formula")
    images = case["in.x"].detach().clone().requires_grad_()
    step = make_step(
        student_logits=answer(case, "s", images),
        labels=case["in.labels"],
        images=images,
        teacher={"gradient": gradient(case, "t").detach()},
    )
    terms = GradientAttention(gradient_weight=case.number("beta"), reading="batch").loss(step)
    case.check(terms["cross_entropy"], "out.ce")
    loss = torch.stack(list(terms.values())).sum()
    case.check(loss)
    names = [f"w.s.{name}" for name in ("conv.weight", "conv.bias", "fc.weight", "fc.bias")]
    for name, slope in zip(names, torch.autograd.grad(loss, [case[name] for name in names]), strict=True):
        case.check(slope, f"grad.{name}")


def test_by_hand_a_linear_network_is_sensitive_by_its_weights_times_its_error() -> None:
    # z = (x, 0): CE = log(1 + exp(-x)) of class 0, so dCE/dx = -(1 - p) with p = 1 / (1 + exp(-x)).
    images = torch.tensor([0.0, 2.0]).view(2, 1, 1, 1).requires_grad_()
    logits = F.pad(images.flatten(1), (0, 1))
    teacher = torch.zeros(2, 1, 1, 1)
    step = make_step(student_logits=logits, images=images, teacher={"gradient": teacher})
    expected = 3 / 2 * (0.5 + (1 - torch.tensor(2.0).sigmoid())) / 2
    torch.testing.assert_close(GradientAttention(gradient_weight=3.0).loss(step)["gradient"], expected)


def test_equal_gradients_have_no_loss_and_no_gradient() -> None:
    weights = torch.randn(4, 10, requires_grad=True)
    images = torch.randn(3, 4).requires_grad_()
    step = make_step(student_logits=images @ weights, images=images)
    distance = gradient_distance(step.input_gradient(), step.input_gradient().detach())
    assert float(distance.detach()) == 0
    (slope,) = torch.autograd.grad(distance, weights)
    assert float(slope.abs().max()) == 0


def test_with_mixed_labels_both_gradients_are_of_the_samples_own_class() -> None:
    images = torch.randn(2, 3).requires_grad_()
    mixed = torch.full((2, 3), 1 / 3)
    labels = torch.tensor([2, 0])
    step = make_step(student_logits=2 * images, images=images, labels=labels, targets=mixed)
    expected = 2 * (F.softmax(2 * images.detach(), dim=1) - F.one_hot(labels, 3))
    torch.testing.assert_close(step.input_gradient().detach(), expected)


def test_the_knowledge_has_one_number_per_pixel() -> None:
    trial = MethodTrial(GradientAttention())
    assert trial.knowledge() == {"gradient": input_gradient()}
    trainer = trial.trainer(policy=("mixup",))
    assert trainer._ingredients.teacher is not None
    trainer._ingredients.teacher.begin_epoch(0)
    places = torch.arange(4)
    views = trainer._views
    assert isinstance(views, Views)
    images = trainer._data.normalise(views.augment(trainer.split.images, places, 0))
    assert trainer._ingredients.teacher.gather(places, images)["gradient"].shape == images.shape


@pytest.mark.parametrize(("reading", "weight"), [("sample", 20.0), ("batch", 200.0)])
def test_training_brings_the_students_gradients_nearer_to_the_teachers(
    reading: Literal["sample", "batch"], weight: float
) -> None:
    def last_distance(weight: float) -> float:
        method = GradientAttention(gradient_weight=weight, reading=reading)
        curve = MethodTrial(method, student="mlp", epochs=8).trainer(policy=()).fit()
        return float(curve[-1]["gradient"]) / weight

    assert last_distance(weight) < 0.85 * last_distance(1e-6)
