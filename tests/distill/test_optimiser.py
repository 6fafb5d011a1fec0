"""Optimisers: one step against the closed form, groups that are stepped apart, clipping."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from stillhouse.distill import optimiser
from stillhouse.distill.optimiser import Optimisers, make_optimizer
from stillhouse.spec.training import Training


class Weight(nn.Module):
    """One number."""

    def __init__(self, value: float = 1.0) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value, dtype=torch.float64))


def optimisers(recipes: dict[str, dict[str, Any]], modules: dict[str, nn.Module]) -> Optimisers:
    training = {
        name: Training.model_validate({"learning_rate": 0.1, "schedule": "constant", "weight_decay": 0.0, **recipe})
        for name, recipe in recipes.items()
    }
    found = Optimisers(modules, training, steps_per_epoch=10, total_steps=100, device="cpu")
    found.set_step(0)
    return found


def test_sgd_with_momentum_and_decay_follows_its_recursion() -> None:
    weight = Weight()
    update = optimisers({"student": {"momentum": 0.9, "weight_decay": 0.5}}, {"student": weight})
    expected, velocity = 1.0, 0.0
    for _ in range(5):
        update.minimise(3 * weight.value)
        velocity = 0.9 * velocity + 3 + 0.5 * expected
        expected -= 0.1 * velocity
        assert weight.value.item() == pytest.approx(expected, rel=1e-12)


def test_the_first_step_of_adam_is_the_rate_itself() -> None:
    """With bias correction m/sqrt(v) is the gradient's sign, whatever its size."""
    for gradient in (1e-3, 7.0):
        weight = Weight()
        optimisers({"student": {"optimizer": "adam"}}, {"student": weight}).minimise(gradient * weight.value)
        assert weight.value.item() == pytest.approx(1 - 0.1, rel=1e-4)


def test_adamw_decays_apart_from_the_gradient() -> None:
    weight = Weight()
    recipe = {"optimizer": "adamw", "weight_decay": 0.5}
    optimisers({"student": recipe}, {"student": weight}).minimise(2 * weight.value)
    assert weight.value.item() == pytest.approx(1 * (1 - 0.1 * 0.5) - 0.1, rel=1e-6)


def test_a_named_group_is_stepped_alone() -> None:
    student, helper = Weight(), Weight()
    update = optimisers({"student": {}, "helper": {}}, {"student": student, "helper": helper})
    update.minimise(student.value * helper.value, "helper")
    assert [student.value.item(), helper.value.item()] == pytest.approx([1.0, 0.9])
    update.minimise(student.value * helper.value.detach(), "student")
    # A gradient left over from the first loss would give 1 - 0.1 * 1.9.
    assert student.value.item() == pytest.approx(1 - 0.1 * 0.9)
    assert helper.value.item() == pytest.approx(0.9)


def test_all_groups_are_stepped_by_default_each_by_its_own_recipe() -> None:
    student, helper = Weight(), Weight()
    update = optimisers({"student": {}, "helper": {"learning_rate": 0.01}}, {"student": student, "helper": helper})
    update.minimise(student.value + helper.value)
    assert student.value.item() == pytest.approx(0.9)
    assert helper.value.item() == pytest.approx(0.99)


def test_the_rate_that_is_reported_is_the_students() -> None:
    update = optimisers({"student": {}, "helper": {"learning_rate": 0.01}}, {"student": Weight(), "helper": Weight()})
    assert update.set_step(5) == pytest.approx(0.1)


def test_clipping_bounds_the_norm_of_a_group_and_keeps_its_direction() -> None:
    module = nn.ParameterList([torch.zeros(1), torch.zeros(1)])
    update = optimisers({"student": {"gradient_clip": 1.0, "momentum": 0.0}}, {"student": module})
    update.minimise(30 * module[0].sum() + 40 * module[1].sum())
    # The gradient (30, 40) has norm 50, and becomes (0.6, 0.8).
    assert [value.item() for value in module] == pytest.approx([-0.06, -0.08], rel=1e-4)


def test_gradients_within_the_bound_are_not_touched() -> None:
    weight = Weight()
    optimisers({"student": {"gradient_clip": 100.0}}, {"student": weight}).minimise(3 * weight.value)
    assert weight.value.item() == pytest.approx(0.7)


def test_frozen_parameters_have_no_optimiser() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[0].requires_grad_(False)
    optimizer = make_optimizer(module, Training())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2


def test_a_module_without_trainable_parameters_is_left_out() -> None:
    weight = Weight()
    update = optimisers({"student": {}, "helper": {}}, {"student": weight, "helper": nn.ReLU()})
    update.minimise(weight.value)
    assert set(update.state_dict()["groups"]) == {"student"}


def test_nesterov_without_momentum_is_plain_descent() -> None:
    weight = Weight()
    optimisers({"student": {"nesterov": True, "momentum": 0.0}}, {"student": weight}).minimise(weight.value)
    assert math.isclose(weight.value.item(), 0.9)


@pytest.mark.parametrize("precision", ["off", "float16"])
def test_a_group_that_the_loss_does_not_depend_on_stays_as_it_is(precision: str) -> None:
    """A loss scaler refuses to step an optimiser that has seen no gradient."""
    student, helper = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    before = [float(module.weight.detach()) for module in (student, helper)]
    recipe = {"mixed_precision": precision, "momentum": 0.9, "weight_decay": 0.1}
    optimisers({"student": recipe, "helper": recipe}, {"student": student, "helper": helper}).minimise(student.weight.sum())
    assert float(student.weight.detach()) != before[0]
    assert float(helper.weight.detach()) == before[1]


# Fused steps, which exist on a CPU too


@pytest.mark.parametrize("on_gpu", [True, False])
def test_weights_on_a_gpu_are_stepped_by_one_kernel(on_gpu: bool) -> None:
    weights = [SimpleNamespace(is_cuda=True), SimpleNamespace(is_cuda=on_gpu)]
    assert optimiser.fuses(weights) is (True if on_gpu else None)  # type: ignore[arg-type]


@pytest.mark.parametrize("recipe", [{}, {"momentum": 0.9}, {"optimizer": "adam"}, {"optimizer": "adamw"}], ids=str)
@pytest.mark.parametrize(("saved_fused", "loaded_fused"), [(None, True), (True, None), (True, True)])
def test_a_training_continues_on_a_device_that_steps_otherwise(
    monkeypatch: pytest.MonkeyPatch, recipe: dict[str, Any], saved_fused: bool | None, loaded_fused: bool | None
) -> None:
    """A checkpoint of the first release is continued on a GPU with fused steps, and one from a GPU on a CPU without them."""

    def make(fused: bool | None) -> tuple[Weight, Optimisers]:
        monkeypatch.setattr(optimiser, "fuses", lambda _parameters: fused)
        weight = Weight()
        return weight, optimisers({"student": recipe}, {"student": weight})

    straight, update = make(None)
    for number in range(4):
        update.minimise((number + 1) * straight.value)
    first, update = make(saved_fused)
    for number in range(2):
        update.minimise((number + 1) * first.value)
    second, resumed = make(loaded_fused)
    with torch.no_grad():
        second.value.copy_(first.value)
    resumed.load_state_dict(update.state_dict())
    assert [group["fused"] for group in resumed._groups["student"].param_groups] == [loaded_fused]
    for number in range(2, 4):
        resumed.minimise((number + 1) * second.value)
    assert second.value.item() == pytest.approx(straight.value.item(), rel=1e-6)
