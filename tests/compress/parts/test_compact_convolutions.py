"""Compact convolutions against the ordinary ones: exact where the form allows it, least squares elsewhere."""

import math

import pytest
import torch
from torch import Tensor, nn

from stillhouse.compress.parts.compact_convolutions import (
    ChannelShuffle,
    ghost_convolution,
    grouped_convolution,
    separable_convolution,
)
from stillhouse.models.ghost import GhostModule


def convolution(num_inputs: int, num_outputs: int, size: int = 3, *, stride: int = 1) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(num_inputs, num_outputs, size, padding=size // 2, stride=stride).double()


def images(channels: int) -> Tensor:
    return torch.randn(2, channels, 7, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def kernel_of(module: nn.Module, layer: nn.Conv2d) -> Tensor:
    """The ordinary kernel that a linear, compact convolution of stride 1 has: its answers to impulses, without its bias."""
    size = layer.kernel_size[0] + 6
    impulses = torch.zeros(layer.in_channels, layer.in_channels, size, size, dtype=torch.float64)
    impulses[range(layer.in_channels), range(layer.in_channels), size // 2, size // 2] = 1
    with torch.no_grad():
        answers: Tensor = module(impulses) - module(torch.zeros_like(impulses))
    return answers.transpose(0, 1).flip(2, 3)


def test_a_separable_kernel_is_taken_over_exactly() -> None:
    layer = convolution(4, 6)
    with torch.no_grad():
        depthwise, pointwise = torch.randn(4, 3, 3).double(), torch.randn(6, 4).double()
        layer.weight.copy_(torch.einsum("oi,ihw->oihw", pointwise, depthwise))
    compact = separable_convolution(layer, trained=True, generator=seeded())
    torch.testing.assert_close(compact(images(4)), layer(images(4)))


def test_the_error_of_a_separable_kernel_is_that_of_the_singular_values_left_out() -> None:
    layer = convolution(4, 6)
    compact = separable_convolution(layer, trained=True, generator=seeded())
    depthwise, pointwise = (compact.get_parameter(f"{part}.weight") for part in ("depthwise", "pointwise"))
    weights = torch.einsum("oi,ihw->oihw", pointwise[:, :, 0, 0], depthwise[:, 0])
    # Eckart and Young, for the O x (kh kw) matrix of each input channel.
    left_out = torch.linalg.svdvals(layer.weight.transpose(0, 1).flatten(2))[:, 1:].square().sum()
    torch.testing.assert_close((layer.weight - weights).square().sum(), left_out)


@pytest.mark.parametrize("ratio", [2, 3])
def test_a_kernel_of_filters_and_their_multiples_is_taken_over_exactly_by_ghosts(ratio: int) -> None:
    layer = convolution(5, 7)
    primary = math.ceil(7 / ratio)
    with torch.no_grad():
        for place in range(primary, 7):
            layer.weight[place] = (0.5 + place) * layer.weight[(place - primary) // (ratio - 1)]
    compact = ghost_convolution(layer, ratio, 3, trained=True, generator=seeded())
    torch.testing.assert_close(compact(images(5))[..., 1:-1, 1:-1], layer(images(5))[..., 1:-1, 1:-1])


def test_a_ghost_convolution_has_the_convolutions_of_a_ghost_module() -> None:
    compact = ghost_convolution(convolution(5, 7), 3, 5, trained=False, generator=seeded())
    module = GhostModule(5, 7, kernel_size=3, ratio=3, dw_size=5)
    published = [tuple(layer.weight.shape) for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    assert [tuple(layer.weight.shape) for layer in compact.modules() if isinstance(layer, nn.Conv2d)] == published


def test_a_kernel_without_weights_across_groups_is_taken_over_exactly() -> None:
    layer = convolution(6, 9)
    with torch.no_grad():
        for output in range(9):
            for channel in range(6):
                # Output o sees the inputs of group o mod 3; a group has two inputs.
                if channel // 2 != output % 3:
                    layer.weight[output, channel] = 0
    torch.testing.assert_close(grouped_convolution(layer, 3, trained=True)(images(6)), layer(images(6)))


def test_two_grouped_convolutions_in_a_row_mix_all_channels() -> None:
    layers = [grouped_convolution(convolution(16, 16), 4, trained=True) for _ in range(2)]
    maps = images(16).requires_grad_()
    layers[1](layers[0](maps))[:, 0].sum().backward()
    assert maps.grad is not None
    reached = [bool(gradient.abs().sum() > 0) for gradient in maps.grad.transpose(0, 1)]
    assert reached == [True] * 16


def test_a_shuffle_takes_channels_of_the_groups_in_turns() -> None:
    maps = torch.arange(6.0).reshape(1, 6, 1, 1)
    assert ChannelShuffle(2)(maps).flatten().tolist() == [0, 3, 1, 4, 2, 5]


@pytest.mark.parametrize("form", ["ghost", "separable", "grouped"])
def test_fresh_maps_have_the_scale_of_those_of_the_ordinary_convolution(form: str) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(128, 128, 3, padding=1, bias=False).double()
    compact: nn.Module = (
        ghost_convolution(layer, 2, 3, trained=False, generator=seeded())
        if form == "ghost"
        else separable_convolution(layer, trained=False, generator=seeded())
        if form == "separable"
        else grouped_convolution(layer, 4, trained=False)
    )
    before, after = (module(images(128)).detach()[..., 2:-2, 2:-2].std() for module in (layer, compact))
    assert 0.8 < float(after / before) < 1.25


def test_a_bias_is_taken_over() -> None:
    layer = convolution(4, 6)
    zeros = torch.zeros(1, 4, 9, 9, dtype=torch.float64)
    for compact in (
        ghost_convolution(layer, 2, 3, trained=True, generator=seeded()),
        separable_convolution(layer, trained=True, generator=seeded()),
        grouped_convolution(layer, 2, trained=True),
    ):
        torch.testing.assert_close(compact(zeros)[..., 4, 4], layer(zeros)[..., 4, 4])


@pytest.mark.parametrize("stride", [1, 2])
def test_stride_and_map_sizes_are_those_of_the_ordinary_convolution(stride: int) -> None:
    layer = convolution(4, 6, 5, stride=stride)
    for compact in (
        ghost_convolution(layer, 2, 3, trained=True, generator=seeded()),
        separable_convolution(layer, trained=True, generator=seeded()),
        grouped_convolution(layer, 2, trained=True),
    ):
        assert compact(images(4)).shape == layer(images(4)).shape


def test_projections_are_the_best_multiples() -> None:
    layer = convolution(3, 4, 1)
    compact = ghost_convolution(layer, 2, 1, trained=True, generator=seeded())
    kernel = kernel_of(compact, layer)[:, :, 3, 3]
    rows = layer.weight.detach().flatten(1)
    for place in (2, 3):
        error = rows[place] - kernel[place]
        torch.testing.assert_close((error * rows[place - 2]).sum(), torch.tensor(0.0, dtype=torch.float64), atol=1e-9, rtol=0)
