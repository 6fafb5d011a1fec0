import math
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.distill.calls import CallableTeacher, InlineTeacher, ServedTeacher
from stillhouse.distill.method import MethodError, Setup
from stillhouse.methods.data_free_learning import (
    DataFreeLearning,
    LayerGenerator,
    activation_loss,
    class_entropy_loss,
    one_hot_loss,
)
from stillhouse.models.architecture import Architecture
from stillhouse.testing import ReferenceCase, make_step
from stillhouse.testing.method_trial import RemoteModel

SHAPES = {"features": (5,), "answer": (3,)}
TEACHER = Architecture(name="net", num_classes=3, input_shape=(1, 4, 4), shapes=SHAPES, pooled="features")


def test_the_generators_losses_are_those_of_the_authors(open_case: Callable[[str], ReferenceCase]) -> None:
    case = open_case("dafl-generator")
    logits, features = case["in.t_logits"], case["in.t_feat"]
    one_hot, activation, entropy = one_hot_loss(logits), activation_loss(features), class_entropy_loss(logits)
    case.check(one_hot, "out.one_hot")
    case.check(activation, "out.activation")
    case.check(entropy, "out.information_entropy")
    loss = case.number("oh") * one_hot + case.number("ie") * entropy + case.number("a") * activation
    case.check(loss)
    case.check_gradients(loss, "t_logits", "t_feat")


def test_the_entropy_of_a_batch_lies_between_all_classes_alike_and_one_class() -> None:
    alike = 50.0 * F.one_hot(torch.arange(20) % 5, 5).float()
    assert float(class_entropy_loss(alike)) == pytest.approx(-math.log10(5))
    one = torch.tensor([[1e4, 0.0, 0.0]]).repeat(4, 1).requires_grad_()
    loss = class_entropy_loss(one)
    (gradient,) = torch.autograd.grad(loss, one)
    assert float(loss.detach()) == 0.0
    assert bool(gradient.isfinite().all())


def test_a_teacher_that_is_sure_has_no_one_hot_loss() -> None:
    assert float(one_hot_loss(torch.tensor([[100.0, 0.0], [0.0, 100.0]]))) == pytest.approx(0.0, abs=1e-6)
    assert float(one_hot_loss(torch.zeros(2, 4))) == pytest.approx(math.log(4))


class Net(nn.Module):
    """Images [B, 1, 4, 4] -> features [B, 5] -> logits [B, 3]."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(16, 5, dtype=dtype), nn.Tanh())
        self.answer = nn.Linear(5, 3, dtype=dtype)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.answer(self.features(images))
        return logits


@pytest.mark.parametrize("way", ["inline", "served"])
def test_the_gradient_through_the_teacher_is_that_of_finite_differences(way: str) -> None:
    net = Net(torch.float64)
    teacher: CallableTeacher = InlineTeacher(net) if way == "inline" else ServedTeacher(RemoteModel(net))

    def loss(images: Tensor) -> Tensor:
        logits, features = teacher(images, "features")
        terms = one_hot_loss(logits), 5 * class_entropy_loss(logits), 0.1 * activation_loss(features)
        return torch.stack(terms).sum()

    assert torch.autograd.gradcheck(loss, [torch.randn(4, 1, 4, 4, dtype=torch.float64, requires_grad=True)])


class Losses:
    """Notes the losses instead of minimising them."""

    def __init__(self) -> None:
        self.noted: dict[str, Tensor] = {}

    def minimise(self, loss: Tensor, *groups: str) -> None:
        (group,) = groups
        self.noted[group] = loss


def test_generator_and_student_learn_from_the_same_images_and_only_from_their_own_losses() -> None:
    method = DataFreeLearning(generated_batch=6, noise_size=4, generator_channels=4)
    generator, student = LayerGenerator(4, 4, (1, 4, 4), "features"), Net()
    step = make_step(
        labels=torch.zeros(2, dtype=torch.int64),
        student=student,
        modules={"generator": generator},
        callable_teacher=InlineTeacher(Net()),
        seed=5,
    )
    update = Losses()
    terms = method.step(step, update)
    images = generator(torch.randn(6, 4, generator=torch.Generator().manual_seed(5)))
    net = Net()
    logits, features = net(images), net.features(images)
    torch.testing.assert_close(
        update.noted["generator"], one_hot_loss(logits) + 5 * class_entropy_loss(logits) + 0.1 * activation_loss(features)
    )
    # Student and teacher have the same weights.
    assert float(update.noted["student"].detach()) == pytest.approx(0.0, abs=1e-6)
    assert terms.keys() == {"kd", "one_hot", "class_entropy", "activation"}
    weights = list(generator.parameters())
    unused: Sequence[Tensor | None] = torch.autograd.grad(update.noted["student"], weights, allow_unused=True)
    assert not [gradient for gradient in unused if gradient is not None]


def test_the_layer_of_the_teacher_is_its_embedding_or_the_named_one() -> None:
    student = Architecture(name="small", num_classes=3, input_shape=(1, 4, 4), shapes={})
    setup = Setup(teacher=TEACHER, student=student, new_student=nn.Identity, num_samples=10, epochs=2)
    for named, expected in ((None, "features"), ("answer", "answer")):
        module = DataFreeLearning(teacher_layer=named).modules(setup)["generator"].module
        assert isinstance(module, LayerGenerator)
        assert module.teacher_layer == expected
    with pytest.raises(MethodError, match=r"teacher_layer: .*'answr'"):
        DataFreeLearning(teacher_layer="answr").knowledge(TEACHER, student)
    without = Architecture(name="net", num_classes=3, input_shape=(1, 4, 4), shapes=SHAPES)
    with pytest.raises(MethodError, match="teacher net has none; set teacher_layer"):
        DataFreeLearning().knowledge(without, student)
