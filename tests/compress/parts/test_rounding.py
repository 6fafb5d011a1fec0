"""Uniform rounding against torch's fake quantization, Max's table and hand values."""

import pytest
import torch
from torch import Tensor

from stillhouse.compress.parts import rounding


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", range(2, 9))
def test_weights_and_their_gradients_are_those_of_torchs_fake_quantization(bits: int) -> None:
    weight = draws(5, 3, 3, 3).requires_grad_()
    # A power of two, so that dividing by the scale is multiplying by its inverse, as torch does.
    scale = torch.tensor([2.0**-k for k in range(5)])
    levels, zeros = 2 ** (bits - 1) - 1, torch.zeros(5, dtype=torch.int32)
    theirs = torch.fake_quantize_per_channel_affine(weight, scale, zeros, 0, -levels, levels)
    ours = rounding.rounded_weight(weight, scale, bits)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    gradients = [torch.autograd.grad((rounded * draws(5, 3, 3, 3, seed=1)).sum(), weight)[0] for rounded in (ours, theirs)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


@pytest.mark.parametrize("bits", range(2, 9))
def test_inputs_and_their_gradients_are_those_of_torchs_fake_quantization(bits: int) -> None:
    inputs = draws(4, 3, 5, 5).requires_grad_()
    scale, zero_point = torch.tensor(0.125), torch.tensor(2.0)
    theirs = torch.fake_quantize_per_tensor_affine(inputs, 0.125, 2, 0, 2**bits - 1)
    ours = rounding.rounded_input(inputs, scale, zero_point, bits)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    gradients = [torch.autograd.grad((rounded * draws(4, 3, 5, 5, seed=1)).sum(), inputs)[0] for rounded in (ours, theirs)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("levels", "step"),
    # Max (1960), table II.
    [(3, 1.2240), (5, 0.8430), (7, 0.6508), (9, 0.5338), (11, 0.4546), (13, 0.3972), (15, 0.3534), (31, 0.1931)],
)
def test_the_best_step_for_a_normal_distribution_is_that_of_maxs_table(levels: int, step: float) -> None:
    assert rounding.normal_step(levels) == pytest.approx(step, abs=2e-4)


@pytest.mark.parametrize("levels", [3, 7, 31, 127])
def test_no_other_step_has_a_smaller_error_on_normal_draws(levels: int) -> None:
    values = draws(400_000, seed=2)

    def error(step: float) -> float:
        largest = (levels - 1) // 2
        return float((values - (values / step).round().clamp(-largest, largest) * step).square().mean())

    best = rounding.normal_step(levels)
    assert all(error(best) <= error(best * factor) for factor in (0.9, 0.95, 1.05, 1.1))


def test_the_gradient_of_a_learnt_scale_is_that_of_lsq() -> None:
    # LSQ, equation 3, with s = 0.5 and n = 3: -v/s + round(v/s) inside the range, -n and n outside.
    weight = torch.tensor([[0.3, -0.9, 5.0, -4.0]])
    for value, expected in zip(weight[0].tolist(), [-0.6 + 1, 1.8 - 2, 3, -3], strict=True):
        scale = torch.tensor([0.5], requires_grad=True)
        rounded = rounding.rounded_weight(torch.tensor([[value]]), scale, bits=3)
        (gradient,) = torch.autograd.grad(rounded.sum(), scale)
        assert float(gradient) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_zero_is_represented_exactly(bits: int) -> None:
    for low, high in ((0.0, 3.0), (-1.3, 2.9), (-2.0, 0.0), (0.0, 0.0)):
        scale, zero_point = rounding.scale_of_range(torch.tensor(low), torch.tensor(high), bits)
        assert float(zero_point) == round(float(zero_point))
        assert 0 <= float(zero_point) <= 2**bits - 1
        assert float(rounding.rounded_input(torch.zeros(1), scale, zero_point, bits)) == 0


def test_observed_ranges_of_eight_bits_end_at_the_largest_values() -> None:
    low, high = rounding.observed_range(torch.tensor([-0.5, 1.0, 2.0]), 8)
    assert (float(low), float(high)) == (-0.5, 2.0)
    low, high = rounding.observed_range(torch.tensor([1.0, 2.0]), 8)
    assert (float(low), float(high)) == (0.0, 2.0)
    scale = rounding.observed_scale(torch.tensor([[1.0, -3.0], [0.5, 0.25]]), 8)
    torch.testing.assert_close(scale, torch.tensor([3.0, 0.5]) / 127)


def test_observed_ranges_of_few_bits_follow_the_mean_square() -> None:
    weight = draws(1, 10_000)
    (scale,) = rounding.observed_scale(weight, 2)
    assert float(scale) == pytest.approx(1.224 * float(weight.square().mean().sqrt()), rel=1e-3)
    # A range that ends before that place is not widened.
    assert float(rounding.observed_scale(torch.tensor([[0.5, -0.5]]), 2)) == pytest.approx(0.5)


def test_more_bits_are_a_smaller_error() -> None:
    weight = draws(8, 64)
    errors = [
        float((rounding.rounded_weight(weight, rounding.observed_scale(weight, bits), bits) - weight).norm())
        for bits in range(2, 9)
    ]
    assert errors == sorted(errors, reverse=True)


def test_a_channel_of_zeros_remains_zero() -> None:
    weight = torch.zeros(2, 3)
    rounded = rounding.rounded_weight(weight, rounding.observed_scale(weight, 4), 4)
    assert rounded.tolist() == weight.tolist()


def test_the_rounding_can_be_differentiated_twice() -> None:
    inputs = draws(6).requires_grad_()
    rounded = rounding.rounded_input(inputs, torch.tensor(0.1), torch.tensor(5.0), 8)
    (gradient,) = torch.autograd.grad((rounded**2).sum(), inputs, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), inputs)
    # The range begins at -5 s = -0.5: what is rounded to it still has a gradient.
    torch.testing.assert_close(second, 2.0 * (inputs >= -0.55))
