"""Students and helpers: weights that depend on the seed and the number of the student alone."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from stillhouse.distill.ddp import ALONE
from stillhouse.distill.method import Helper, Method, Setup
from stillhouse.distill.networks import StudentFactory, make_helpers, rng_devices
from stillhouse.models.architecture import Architecture
from stillhouse.tasks import find as find_task

STUDENT = Architecture(name="mlp", num_classes=2, input_shape=(1, 8, 8), shapes={})


def factory(seed: int = 1) -> StudentFactory:
    return StudentFactory(lambda: nn.Linear(3, 2), seed=seed, device="cpu", memory_format=torch.contiguous_format)


def weight(module: nn.Module) -> Tensor:
    return next(module.parameters())


def test_the_nth_student_is_the_same_in_every_run_and_others_differ() -> None:
    one, other = factory(), factory()
    first = [one(), one()]
    torch.rand(7)  # what else the process draws
    second = [other(), other()]
    assert all(torch.equal(weight(a), weight(b)) for a, b in zip(first, second, strict=True))
    assert not torch.equal(weight(first[0]), weight(first[1]))
    assert not torch.equal(weight(first[0]), weight(factory(seed=2)()))
    assert one.num_built == 2


def test_a_factory_that_continues_builds_the_next_student() -> None:
    straight = factory()
    straight()
    continued = factory()
    continued.num_built = 1
    assert torch.equal(weight(straight()), weight(continued()))


def test_building_leaves_the_processs_random_numbers_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    factory()()
    assert torch.equal(torch.rand(2), expected)


class Helped(Method):
    def modules(self, setup: Setup) -> Mapping[str, Helper]:
        return {"free": Helper(module=nn.Linear(2, 2)), "frozen": Helper(module=nn.Linear(2, 2), trainable=False)}


def test_helpers_depend_on_the_seed_and_only_trainable_ones_require_gradients() -> None:
    setup = Setup(teacher=None, student=STUDENT, new_student=nn.Identity, num_samples=4, epochs=1)
    one, same, other = (
        make_helpers(Helped(), find_task(), setup, seed=seed, device="cpu", workers=ALONE) for seed in (1, 1, 2)
    )
    assert torch.equal(weight(one["free"].module), weight(same["free"].module))
    assert not torch.equal(weight(one["free"].module), weight(other["free"].module))
    assert weight(one["free"].module).requires_grad
    assert not weight(one["frozen"].module).requires_grad


class WithMaps(Method):
    def modules(self, setup: Setup) -> Mapping[str, Helper]:
        return {"connector": Helper(module=nn.Conv2d(3, 4, 3))}


@pytest.mark.parametrize(("device", "converted"), [("meta", True), ("cpu", False)])
def test_helpers_on_a_gpu_have_the_students_memory_format(device: str, converted: bool) -> None:
    """On a CPU the bits of earlier versions matter more."""
    setup = Setup(teacher=None, student=STUDENT, new_student=nn.Identity, num_samples=4, epochs=1)
    helpers = make_helpers(
        WithMaps(), find_task(), setup, seed=1, device=device, workers=ALONE, memory_format=torch.channels_last
    )
    made = weight(helpers["connector"].module).is_contiguous(memory_format=torch.channels_last)
    assert made is converted


def test_only_a_gpu_has_a_generator_besides_that_of_the_cpu() -> None:
    assert rng_devices("cpu") == []
    assert rng_devices("cuda:1") == [torch.device("cuda:1")]
