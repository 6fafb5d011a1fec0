"""Building blocks that the families share."""

import pytest
import torch
from torch import nn

from stillhouse.models.layers import Add, GlobalAveragePool, hidden_layers, initialise_convolutions, scaled


@pytest.mark.parametrize(
    ("channels", "width", "multiple", "expected"),
    [(64, 0.5, 1, 32), (6, 0.25, 1, 2), (64, 0.001, 1, 1), (240, 0.5, 12, 120), (240, 0.33, 12, 84), (240, 0.001, 12, 12)],
)
def test_scaled_channels_are_rounded_to_a_multiple_and_never_zero(
    channels: int, width: float, multiple: int, expected: int
) -> None:
    assert scaled(channels, width, multiple=multiple) == expected


def test_the_global_average_is_the_mean_over_all_positions() -> None:
    maps = torch.arange(24.0).reshape(1, 2, 3, 4)
    torch.testing.assert_close(GlobalAveragePool()(maps), torch.tensor([[5.5, 17.5]]))


def test_add_is_the_sum_of_both_branches() -> None:
    assert Add()(torch.tensor([1.0]), torch.tensor([2.5])).item() == 3.5


def test_hidden_layers_have_dropout_only_where_it_is_given() -> None:
    assert [name for name, _ in hidden_layers(4, (3, 2), 0.0).named_children()] == ["fc1", "relu1", "fc2", "relu2"]
    layers = hidden_layers(4, (3, 2), 0.25)
    assert [name for name, _ in layers.named_children()] == ["fc1", "relu1", "dropout1", "fc2", "relu2", "dropout2"]
    assert layers(torch.zeros(5, 4)).shape == (5, 2)


@pytest.mark.parametrize(("mode", "fan"), [("fan_in", 16 * 9), ("fan_out", 64 * 9)])
def test_convolutions_begin_with_the_variance_of_kaiming(mode: str, fan: int) -> None:
    """arXiv 1502.01852, equation 10: a variance of 2 / fan; 9,216 weights give it within a few percent."""
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 64, 3)
    initialise_convolutions(nn.Sequential(layer), mode=mode)  # type: ignore[arg-type]
    assert layer.weight.var().item() == pytest.approx(2 / fan, rel=0.06)
    assert layer.bias is not None
    assert not layer.bias.any()
