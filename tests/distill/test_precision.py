"""The number format of passes: on a CPU bfloat16 has the same meaning as on a GPU."""

import pytest
import torch
from torch import Tensor, nn

from stillhouse.distill.precision import autocast, run_network
from stillhouse.testing import make_step


def network() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(64, 8)


IMAGES = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))


def test_a_product_has_the_precision_and_its_result_is_float32() -> None:
    model = network()
    half = run_network("bfloat16", model, IMAGES)
    expected = nn.functional.linear(IMAGES.bfloat16(), model.weight.bfloat16(), model.bias.bfloat16()).float()
    assert half.dtype == torch.float32
    assert torch.equal(half, expected)
    assert not torch.equal(half, model(IMAGES))


def test_without_mixed_precision_nothing_changes() -> None:
    model = network()
    assert torch.equal(run_network("off", model, IMAGES), model(IMAGES))
    assert run_network("off", lambda values: values.double(), IMAGES).dtype == torch.float64
    with autocast("off", torch.device("cpu")):
        assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("precision", ["off", "bfloat16"])
def test_a_step_runs_networks_in_its_own_precision_and_gradients_reach_weights_and_inputs(precision: str) -> None:
    model, seen = network(), list[bool]()
    model.register_forward_pre_hook(lambda *_arguments: seen.append(torch.is_autocast_enabled("cpu")))
    step = make_step(labels=torch.zeros(4, dtype=torch.int64), precision=precision)
    images = IMAGES.clone().requires_grad_()
    outputs: Tensor = step.run_network(model, images)
    outputs.square().sum().backward()
    assert seen == [precision != "off"]
    assert images.grad is not None
    assert images.grad.dtype == torch.float32
    assert all(parameter.grad is not None and parameter.grad.dtype == torch.float32 for parameter in model.parameters())
