import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stillhouse.distill.optimiser import Optimisers
from stillhouse.distill.separate_momentum import separate_gradients, step_separately, summed
from stillhouse.spec.training import Training

SHIFTS = {"task": -0.1, "distillation": 0.1}


class Weights(nn.Module):
    """Three numbers: `shared` is reached by both losses, the others by one."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
        self.tasks = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        self.teachers = nn.Parameter(torch.tensor(-1.0, dtype=torch.float64))

    def losses(self) -> dict[str, Tensor]:
        """Gradients: of the task 3 and 5, of the distillation shared and 7."""
        return {
            "task": 3 * self.shared + 5 * self.tasks,
            "distillation": self.shared.square() / 2 + 7 * self.teachers,
        }


def optimisers(module: nn.Module, **recipe: Any) -> Optimisers:
    usual = {"learning_rate": 0.1, "momentum": 0.5, "weight_decay": 0.0, "schedule": "constant"}
    training = Training.model_validate(usual | recipe)
    made = Optimisers({"student": module}, {"student": training}, steps_per_epoch=1, total_steps=10, device="cpu")
    made.set_step(0)
    return made


def values(weights: Weights) -> list[float]:
    return [float(parameter.detach()) for parameter in weights.parameters()]


def test_two_steps_by_hand() -> None:
    weights = Weights()
    made = optimisers(weights)
    made.minimise_separately(weights.losses(), SHIFTS)
    # Velocities: 3 and 2 (shared), 5, 7.
    assert values(weights) == pytest.approx([2 - 0.1 * 5, 1 - 0.5, -1 - 0.7])
    made.minimise_separately(weights.losses(), SHIFTS)
    # shared: 0.4 * 3 + 3 and 0.6 * 2 + 1.5; the others have the recipe's momentum of 0.5.
    assert values(weights) == pytest.approx([1.5 - 0.1 * (4.2 + 2.7), 0.5 - 0.1 * 7.5, -1.7 - 0.1 * 10.5])


def test_nesterovs_form_adds_each_gradient_to_its_own_velocity_by_hand() -> None:
    weights = Weights()
    optimisers(weights, nesterov=True).minimise_separately(weights.losses(), SHIFTS)
    # g + momentum v with v = g: 3 * 1.4 + 2 * 1.6, 5 * 1.5, 7 * 1.5.
    assert values(weights) == pytest.approx([2 - 0.1 * 7.4, 1 - 0.75, -1 - 1.05])


def test_weight_decay_belongs_to_the_first_loss_that_reaches_a_weight() -> None:
    weights = Weights()
    made = optimisers(weights, weight_decay=0.5)
    made.minimise_separately(weights.losses(), SHIFTS)
    assert values(weights) == pytest.approx([2 - 0.1 * (3 + 1 + 2), 1 - 0.1 * 5.5, -1 - 0.1 * 6.5])
    made.minimise_separately(weights.losses(), SHIFTS)
    # shared is 1.4: the task's velocity is 0.4 * 4 + 3 + 0.7, the other's 0.6 * 2 + 1.4.
    assert values(weights)[0] == pytest.approx(1.4 - 0.1 * (5.3 + 2.6))


RECIPES: list[Mapping[str, Any]] = [
    {},
    {"momentum": 0.0},
    {"nesterov": True, "weight_decay": 0.01},
    {"gradient_clip": 0.05, "weight_decay": 0.01},
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_without_shifts_it_is_plain_sgd_on_the_sum(recipe: Mapping[str, Any]) -> None:
    torch.manual_seed(0)
    images, targets = torch.randn(16, 5, dtype=torch.float64), torch.randn(16, 3, dtype=torch.float64)
    nets = [nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    plain, separate = (optimisers(net, **recipe) for net in nets)
    for _ in range(5):
        outputs = [net(images) for net in nets]
        plain.minimise((outputs[0] - targets).square().mean() + outputs[0].abs().mean())
        losses = {"a": (outputs[1] - targets).square().mean(), "b": outputs[1].abs().mean()}
        separate.minimise_separately(losses, {"a": 0.0, "b": 0.0})
    for name, expected in nets[0].state_dict().items():
        torch.testing.assert_close(nets[1].state_dict()[name], expected, rtol=1e-12, atol=1e-14)


def test_velocities_are_stored_in_checkpoints() -> None:
    straight, resumed = Weights(), Weights()
    made = optimisers(straight)
    made.minimise_separately(straight.losses(), SHIFTS)
    resumed.load_state_dict(straight.state_dict())
    again = optimisers(resumed)
    again.load_state_dict(copy.deepcopy(made.state_dict()))
    for weights, each in ((straight, made), (resumed, again)):
        each.minimise_separately(weights.losses(), SHIFTS)
    assert values(resumed) == values(straight)


def test_a_group_of_another_optimiser_takes_its_own_step_on_the_sum() -> None:
    ours, plain = Weights(), Weights()
    made = optimisers(ours, optimizer="adam")
    made.minimise_separately(ours.losses(), SHIFTS)
    optimisers(plain, optimizer="adam").minimise(torch.stack(list(plain.losses().values())).sum())
    assert values(ours) == values(plain)


def test_a_weight_that_no_loss_reaches_stays() -> None:
    weights = Weights()
    losses = {"task": 3 * weights.shared, "distillation": weights.shared.square()}
    gradients = separate_gradients(losses, list(weights.parameters()))
    assert summed(gradients)[1:] == [None, None]
    optimizer = torch.optim.SGD(weights.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    step_separately(optimizer, gradients, {"task": 0.0, "distillation": 0.0})
    assert values(weights)[1:] == [1.0, -1.0]
