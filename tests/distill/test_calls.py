"""Calling a teacher on a method's own inputs: gradients to the inputs, none to the teacher, near or far."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stillhouse.distill.calls import (
    CallableTeacher,
    InlineTeacher,
    Procedure,
    ServedTeacher,
    pull_back,
    run_procedure,
    run_teacher,
)


def network(*, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Tanh(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(48, 4)
    )
    model[1].running_mean.uniform_(-1, 1)  # type: ignore[operator]
    return model.to(dtype)


class Remote:
    """Another process, without one: nothing but arrays' values passes, and nothing is remembered."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model.eval().requires_grad_(False)
        self.asked: list[str] = []

    def forward(self, images: Tensor, layers: Sequence[str], *, differentiable: bool) -> tuple[Any, Sequence[Tensor]]:
        self.asked.append("forward to be differentiated" if differentiable else "forward")
        return None, [output.detach() for output in run_teacher(self._model, images.detach().clone(), layers)]

    def pull_back(self, token: Any, images: Tensor, layers: Sequence[str], gradients: Sequence[Tensor]) -> Tensor:
        self.asked.append("pull_back")
        again = images.detach().clone().requires_grad_()
        with torch.enable_grad():
            outputs = run_teacher(self._model, again, layers)
        return pull_back(outputs, again, gradients)

    def run(self, procedure: Procedure, tensors: Sequence[Tensor], options: Mapping[str, Any]) -> Sequence[Tensor]:
        self.asked.append("run")
        return run_procedure(self._model, procedure, tensors, options)


def descend(teacher: Any, images: Tensor, scales: Tensor, *, rounds: int) -> tuple[Tensor, Tensor]:
    """Moves each image against the gradient of its squared logits; a procedure."""
    for _ in range(rounds):
        images = images.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(teacher(images).square().sum(), images)
        images = images.detach() - scales.view(-1, 1, 1, 1) * gradient
    return images, teacher(images)


def images(*, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=dtype).requires_grad_()


@pytest.mark.parametrize("way", ["inline", "served"])
def test_the_gradient_is_that_of_finite_differences(way: str) -> None:
    model = network(dtype=torch.float64)
    teacher: CallableTeacher = InlineTeacher(model) if way == "inline" else ServedTeacher(Remote(model))
    assert torch.autograd.gradcheck(lambda x: teacher(x, "2"), [images(dtype=torch.float64)])


def test_served_and_inline_calls_agree_bit_for_bit() -> None:
    results = []
    for teacher in (InlineTeacher(network()), ServedTeacher(Remote(network()))):
        pixels = images()
        (logits,) = teacher(2 * pixels)
        (gradient,) = torch.autograd.grad(logits.square().sum(), pixels)
        results.append((logits, gradient))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_a_call_leaves_the_teacher_as_it_was() -> None:
    model = network().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    InlineTeacher(model)(images())[0].sum().backward()
    assert not model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_served_teacher_learns_whether_a_gradient_will_be_requested() -> None:
    remote = Remote(network())
    teacher = ServedTeacher(remote)
    assert not teacher(images().detach())[0].requires_grad
    with torch.no_grad():
        teacher(images())
    teacher(images())[0].sum().backward()
    assert remote.asked == ["forward", "forward", "forward to be differentiated", "pull_back"]
    assert teacher.samples_called == 9


def test_gradients_of_gradients_do_not_travel() -> None:
    pixels = images()
    logits = ServedTeacher(Remote(network()))(pixels)[0]
    (gradient,) = torch.autograd.grad(logits.square().sum(), pixels, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_an_output_that_the_loss_does_not_read_has_no_part_in_the_gradient() -> None:
    for teacher in (InlineTeacher(network()), ServedTeacher(Remote(network()))):
        pixels = images()
        _, layer = teacher(pixels, "0")
        layer.sum().backward()
        weight = network()[0].weight
        assert isinstance(weight, Tensor)
        # The middle pixels are reached by all nine weights of each kernel.
        torch.testing.assert_close(pixels.grad[:, 0, 1, 1], weight.sum().expand(3))  # type: ignore[index]


@pytest.mark.parametrize("way", ["inline", "served"])
def test_a_procedure_is_one_call_with_gradients_inside_and_none_outside(way: str) -> None:
    remote = Remote(network())
    teacher: CallableTeacher = InlineTeacher(network()) if way == "inline" else ServedTeacher(remote)
    given, scales = images(), torch.tensor([0.0, 0.01, 0.02])
    with torch.no_grad():
        moved, logits = teacher.run(descend, given, scales, rounds=4)
        (before,), (after,) = teacher(given), teacher(moved)
    assert remote.asked == ([] if way == "inline" else ["run", "forward", "forward"])
    assert not moved.requires_grad
    assert torch.equal(moved[0], given[0])
    assert bool((after.square().sum(1) < before.square().sum(1))[1:].all())
    assert torch.equal(logits, after)
    assert teacher.samples_called == 9


def test_a_procedure_gives_the_same_bits_inline_and_served_and_leaves_the_teacher_as_it_was() -> None:
    model = network().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scales = torch.full((3,), 0.05)
    inline = InlineTeacher(model).run(descend, images(), scales, rounds=3)
    served = ServedTeacher(Remote(network())).run(descend, images(), scales, rounds=3)
    assert all(torch.equal(one, other) for one, other in zip(inline, served, strict=True))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("way", ["inline", "served"])
def test_a_procedure_that_workers_cannot_import_is_refused(way: str) -> None:
    def local(teacher: Any, images: Tensor) -> tuple[Tensor, ...]:
        return (teacher(images),)

    teacher: CallableTeacher = InlineTeacher(network()) if way == "inline" else ServedTeacher(Remote(network()))
    with pytest.raises(ValueError, match="must be a function of a module"):
        teacher.run(local, images())


def convolutions() -> Any:
    """PyTorch's settings for the convolutions of a GPU."""
    return getattr(torch.backends.cudnn, "conv")  # noqa: B009


class Precisions(nn.Module):
    """Notes how a GPU would compute the convolutions of its forward and its backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Flatten()
        self.noted: list[str] = []

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.inner(images)
        self.noted.append(convolutions().fp32_precision)
        if outputs.requires_grad:
            outputs.register_hook(lambda _gradient: self.noted.append(convolutions().fp32_precision))
        return outputs


@pytest.mark.parametrize("layers", [(), ("inner",)])
def test_a_called_teacher_computes_in_ieee_float32_in_both_directions_and_the_student_as_before(
    layers: tuple[str, ...],
) -> None:
    before = convolutions().fp32_precision
    model, images = Precisions(), torch.randn(2, 1, 2, 2).requires_grad_()
    outputs = run_teacher(model, images, layers)
    pull_back(outputs[:1], images, [torch.ones(2, 4)])
    assert model.noted == ["ieee", "ieee"]
    assert convolutions().fp32_precision == before != "ieee"


def test_a_procedure_computes_in_ieee_float32() -> None:
    before = convolutions().fp32_precision
    model = Precisions()
    run_procedure(model, descend, (torch.randn(2, 1, 2, 2), torch.ones(2)), {"rounds": 1})
    assert model.noted == ["ieee", "ieee", "ieee"]
    assert convolutions().fp32_precision == before != "ieee"
