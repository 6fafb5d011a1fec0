import math
from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse import methods
from stillhouse.distill.method import Method, MethodError
from stillhouse.methods.curriculum_temperature import (
    CurriculumTemperature,
    LearnedTemperature,
    reversal_weight,
    reverse_gradient,
)
from stillhouse.methods.decoupled import Decoupled
from stillhouse.methods.kd import KD
from stillhouse.testing import CHECKS, MethodTrial, make_step, suiting_trial


def suits(name: str) -> bool:
    try:
        CurriculumTemperature(method=name)
    except MethodError:
        return False
    return True


def reads_layers(name: str) -> bool:
    trial = suiting_trial(CurriculumTemperature(method=name))
    return bool(trial.method.student_layers(trial.teacher_architecture, trial.student_architecture))


LEARNABLE = [name for name in methods.names() if suits(name)]
ON_LOGITS_ALONE = [name for name in LEARNABLE if not reads_layers(name)]


def step_of(module: LearnedTemperature, progress: float = 0.5, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return make_step(
        student_logits=torch.randn(6, 10, dtype=torch.float64, requires_grad=True),
        labels=torch.arange(6),
        teacher={"logits": 3 * torch.randn(6, 10, dtype=torch.float64)},
        modules={"learned_temperature": module},
        progress=progress,
    )


def total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


def test_the_reversed_gradient_is_minus_the_weight_times_the_gradient() -> None:
    value = torch.tensor([2.0, 3.0], requires_grad=True)
    reversed_value = reverse_gradient(value, 0.25)
    assert torch.equal(reversed_value, value)
    (gradient,) = torch.autograd.grad(reversed_value.square().sum(), value)
    assert gradient.tolist() == [-1.0, -1.5]  # 2 x times -1/4


@pytest.mark.parametrize(
    ("progress", "expected"), [(0.0, 0.0), (0.05, 1.0), (0.025, 1 - math.sqrt(0.5)), (0.1, 2.0), (0.7, 2.0)]
)
def test_the_weight_grows_as_a_cosine(progress: float, expected: float) -> None:
    assert reversal_weight(progress, 0.1, 2.0) == pytest.approx(expected)


def test_the_weight_is_full_at_once_without_a_time_to_grow() -> None:
    assert reversal_weight(0.0, 0.0, 1.5) == 1.5


def test_the_temperature_begins_where_the_authors_begin() -> None:
    # 1 + 20 sigmoid(1), sigmoid(1) = 0.7310585786300049
    assert float(LearnedTemperature(1.0, 20.0)(0.0).detach()) == pytest.approx(15.621171572600098)


@pytest.mark.parametrize("name", ON_LOGITS_ALONE)
def test_the_loss_is_that_of_the_method_at_the_present_temperature(name: str) -> None:
    module = LearnedTemperature(2.0, 4.0).double()
    temperature = 2 + 4 / (1 + math.exp(-1))
    settings: dict[str, Any] = {"temperature": temperature}
    plain = methods.find(name)(**settings)
    given = step_of(module)
    terms = CurriculumTemperature(method=name, lowest_temperature=2.0, span=4.0).loss(given)
    for key, expected in plain.loss(given).items():
        torch.testing.assert_close(terms[key], expected)


def test_the_methods_of_the_paper_can_be_changed() -> None:
    assert {"kd", "decoupled"} <= set(LEARNABLE)
    assert {"ofa", "scale_decoupled", "normalized_kd", "logit_standardization", "dist", "refined_logits"} <= set(LEARNABLE)


@pytest.mark.parametrize("name", ON_LOGITS_ALONE)
def test_theta_climbs_the_loss_with_the_weight_by_finite_differences(name: str) -> None:
    method = CurriculumTemperature(method=name, growth_fraction=1.0, strength=2.0)
    module = LearnedTemperature(1.0, 20.0).double()
    weight = 2.0 * (1 - math.cos(math.pi * 0.5)) / 2
    given = step_of(module)
    (gradient,) = torch.autograd.grad(total(method.loss(given)), module.theta)
    values = []
    for shift in (1e-5, -1e-5):
        with torch.no_grad():
            module.theta.fill_(1.0 + shift)
        values.append(float(total(method.loss(given)).detach()))
    assert float(gradient) == pytest.approx(-weight * (values[0] - values[1]) / 2e-5, rel=1e-5)


def test_the_students_gradient_is_not_reversed() -> None:
    given = step_of(LearnedTemperature(1.0, 20.0).double())
    (ours,) = torch.autograd.grad(total(CurriculumTemperature().loss(given)), given.logits)
    (plain,) = torch.autograd.grad(total(KD(temperature=1 + 20 / (1 + math.exp(-1))).loss(given)), given.logits)
    torch.testing.assert_close(ours, plain)


def test_training_moves_the_temperature_up_the_loss_and_saves_it() -> None:
    trainer = MethodTrial(CurriculumTemperature(strength=5.0, growth_fraction=0.0), epochs=2).trainer()
    trainer.fit()
    assert float(trainer._modules["learned_temperature"].get_parameter("theta").detach()) != 1.0


def test_settings_reach_the_method_and_its_version_is_part_of_the_key() -> None:
    method = CurriculumTemperature(method="decoupled", settings=("decoupled.others_weight=2",))
    assert method.inner == Decoupled(others_weight=2)
    assert CurriculumTemperature.other_methods({"method": "decoupled", "settings": ()}) == ["decoupled"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("scratch", "cannot change 'scratch': it adds nothing to cross-entropy"),
        ("born_again", "cannot change 'born_again': it changes more than the loss"),
        ("contrastive", "cannot change the temperature of 'contrastive': it is not a method on logits with one temperature"),
        ("logit_regression", "cannot change the temperature of 'logit_regression'"),
        ("kdd", "no method 'kdd'; did you mean 'kd'"),
    ],
)
def test_methods_without_such_a_temperature_are_named(name: str, reason: str) -> None:
    with pytest.raises(MethodError, match=reason):
        CurriculumTemperature(method=name)


@pytest.mark.parametrize("name", ["dist", "ofa"])
def test_a_changed_method_can_be_resumed_and_trained_from_sealed_views(name: str) -> None:
    trial = MethodTrial(CurriculumTemperature(method=name))
    for check in (
        "a_batch_is_the_mean_of_its_parts_or_is_needed_whole",
        "a_resumed_training_ends_with_the_same_weights",
        "inline_and_cached_knowledge_train_the_same_student",
    ):
        CHECKS[check](trial)
    assert isinstance(trial.method, Method)
