"""Models get fresh weights, by the seed alone, or the layer that has none is named."""

import pytest
import torch
from torch import nn

from stillhouse.models.registry import build_model
from stillhouse.models.reset import reset_problem, reset_weights
from stillhouse.models.weights import weights_hash


class Scaled(nn.Module):
    """A layer with weights of its own that no function draws."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)
        self.scale = nn.Parameter(torch.full((3,), 7.0))


@pytest.mark.parametrize("name", ["mlp", "lenet", "resnet8", "mobilenet_v2"])
def test_every_layer_of_a_shipped_model_gets_new_weights_which_the_seed_decides(name: str) -> None:
    model = build_model(name, num_classes=10, input_shape=(3, 32, 32))
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.123)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            nn.init.constant_(module.running_mean, 5.0)
    hashes = [weights_hash(reset_weights(model, seed)) for seed in (1, 2, 1)]
    assert hashes[0] == hashes[2] != hashes[1]
    assert not any(bool((parameter == 0.123).any()) for parameter in model.parameters())
    means = [module.running_mean for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(mean is not None and bool((mean == 0).all()) for mean in means)


def test_the_random_numbers_of_the_caller_do_not_change() -> None:
    model = nn.Linear(2, 3)
    state = torch.random.get_rng_state()
    reset_weights(model, 0)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_attention_draws_its_weights_by_its_own_name_for_it() -> None:
    layer = nn.MultiheadAttention(4, 2)
    before = layer.in_proj_weight.clone()
    assert reset_problem(layer) is None
    reset_weights(layer, 3)
    assert not torch.equal(layer.in_proj_weight, before)


def test_a_layer_without_a_function_that_draws_its_weights_is_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2), Scaled())
    assert reset_problem(model) == "layer '1' (Scaled) has weights, but no function reset_parameters"
    with pytest.raises(ValueError, match="layer '1'"):
        reset_weights(model, 0)
    assert reset_problem(Scaled()) == "the model itself (Scaled) has weights, but no function reset_parameters"
