import math
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.methods.data_free_adversarial import DataFreeAdversarial, discrepancy, generator_loss
from stillhouse.testing import ReferenceCase, make_step


def test_the_discrepancy_is_the_mean_distance_of_the_logits() -> None:
    student = torch.tensor([[0.0, 1.0], [2.0, -3.0]], requires_grad=True)
    loss = discrepancy(student, torch.tensor([[1.0, 1.0], [0.0, 2.0]]))
    assert loss.item() == (1 + 0 + 2 + 5) / 4
    (gradient,) = torch.autograd.grad(loss, student)
    assert gradient.tolist() == [[-0.25, 0.0], [0.25, -0.25]]
    assert discrepancy(student, student).item() == 0


@pytest.mark.parametrize("value", [0.0, 0.5, 20.0])
def test_the_generators_loss_falls_with_disagreement_and_more_slowly_in_the_log_form(value: float) -> None:
    disagreement = torch.tensor(value, dtype=torch.float64, requires_grad=True)
    assert generator_loss(disagreement, "linear").item() == -value
    log = generator_loss(disagreement, "log")
    assert log.item() == pytest.approx(-math.log(1 + value))
    (gradient,) = torch.autograd.grad(log, disagreement)
    assert gradient.item() == pytest.approx(-1 / (1 + value))


class Gradients:
    """Gradient descent with learning rate 1 instead of the optimisers."""

    def __init__(self, **networks: nn.Module) -> None:
        self._networks = networks
        self.updated: list[str] = []

    def minimise(self, loss: Tensor, *groups: str) -> None:
        self.updated += groups
        weights = [weight for group in groups for weight in self._networks[group].parameters()]
        gradients = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.sub_(gradient)


class Scale(nn.Module):
    """x -> w x."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.weight * inputs


class Teacher:
    """x -> 5 x, as a function that counts its calls."""

    way = "inline"
    samples_called = 0

    def __call__(self, images: Tensor, *layers: str) -> tuple[Tensor, ...]:
        self.samples_called += len(images)
        return (5 * images,)


def test_a_step_trains_the_student_and_then_the_generator_against_it() -> None:
    method = DataFreeAdversarial(student_steps=2, noise_size=3, generated_batch=4)
    student, generator, teacher = Scale(1.0), Scale(2.0), Teacher()
    step = make_step(
        student_logits=None,
        labels=torch.zeros(4, dtype=torch.int64),
        images=torch.full((0, 1, 8, 8), math.nan),
        student=student,
        modules={"generator": generator},
        callable_teacher=teacher,
        seed=11,
    )
    updates = Gradients(student=student, generator=generator)
    terms = method.step(step, updates)
    # With m = mean |z| the discrepancy is |5 - s| g m: d/ds = -g m where s < 5, and d/dg = |5 - s| m.
    draws = torch.Generator().manual_seed(11)
    sizes = [float(torch.randn(4, 3, generator=draws).abs().mean()) for _ in range(3)]
    first, second = 1.0, 1.0 + 2 * sizes[0]
    after = second + 2 * sizes[1]
    assert updates.updated == ["student", "student", "generator"]
    assert student.weight.item() == pytest.approx(after)
    assert generator.weight.item() == pytest.approx(2 + abs(5 - after) * sizes[2])
    assert terms["discrepancy"].item() == pytest.approx(((5 - first) * 2 * sizes[0] + (5 - second) * 2 * sizes[1]) / 2)
    assert teacher.samples_called == 3 * 4


def test_no_gradient_reaches_the_generator_from_the_students_steps() -> None:
    generator = Scale(2.0)
    step = make_step(
        student_logits=None,
        labels=torch.zeros(4, dtype=torch.int64),
        student=Scale(1.0),
        modules={"generator": generator},
        callable_teacher=Teacher(),
    )

    class Watch:
        def minimise(self, loss: Tensor, *groups: str) -> None:
            if groups == ("student",):
                gradients: Sequence[Tensor | None] = torch.autograd.grad(loss, generator.weight, allow_unused=True)
                assert gradients[0] is None

    DataFreeAdversarial().step(step, Watch())


def test_the_losses_are_those_of_torch() -> None:
    draws = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(5, 7, generator=draws), torch.randn(5, 7, generator=draws)
    torch.testing.assert_close(discrepancy(student, teacher), (student - teacher).abs().sum() / 35)
    torch.testing.assert_close(generator_loss(discrepancy(student, teacher), "log"), -F.l1_loss(student, teacher).log1p())


def test_the_losses_of_student_and_generator_are_those_of_the_authors(open_case: Callable[[str], ReferenceCase]) -> None:
    case = open_case("dfad-official")
    loss = discrepancy(case["in.s_logits"], case["in.t_logits"])
    case.check(loss)
    case.check_gradients(loss, "s_logits")
    case.check(generator_loss(loss, "linear"), "out.loss_G")
    case.check(generator_loss(loss, "log"), "out.loss_G_log")
