"""Uniform rounding of weights and of layers' inputs to a few bits, with straight-through gradients.

    weights    x^ = s q, q = clip(round(x / s), -n, n), n = 2^(b-1) - 1: symmetric, one scale s for each output channel
    inputs     x^ = s q, q = clip(round(x / s), -z, n - z), n = 2^b - 1: one scale s and zero point z for the layer

0 is always represented exactly, since convolutions pad with it. Rounding is half to even. Its gradient is that of x inside the
range and 0 outside (straight-through). Learnt ranges also receive the gradient of the rounding error (LSQ, Esser et al., arXiv
1902.08153, equation 3).

Below 8 bits, the range of a normal distribution is not its largest value: a few large values would leave most numbers at 0. An
observed range then ends at the uniform quantizer's optimal place for a normal distribution of the same mean square (Max, 1960).
"""

import math
from functools import cache

import torch
from torch import Tensor

TINY = 1e-12
"""The smallest scale: a channel of zeros has no scale of its own."""


class _Round(torch.autograd.Function):
    """Rounds half to even; the gradient is that of the identity."""

    @staticmethod
    def forward(_context: object, values: Tensor) -> Tensor:
        return values.round()

    @staticmethod
    def backward(_context: object, *gradients: Tensor) -> Tensor:
        return gradients[0]


def round_through(values: Tensor) -> Tensor:
    """The nearest whole numbers, half to even; the gradient passes as if nothing was rounded."""
    rounded: Tensor = _Round.apply(values)
    return rounded


def clip_through(numbers: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """The numbers, no smaller than `low` and no larger than `high`; the gradient is theirs from `low` to `high`, both included.

    torch.clamp gives a value at the end of the range no gradient, which with few bits would be most values.
    """
    return torch.where(numbers < low, low, torch.where(numbers > high, high, numbers))


def weight_levels(bits: int) -> int:
    """n: quantized weights are whole numbers from -n to n."""
    return int(2 ** (bits - 1)) - 1


def input_levels(bits: int) -> int:
    """n: quantized inputs are whole numbers from 0 to n."""
    return int(2**bits) - 1


def by_channel(values: Tensor, like: Tensor) -> Tensor:
    """Values [O] with the dimensions of a weight [O, ...]."""
    return values.reshape(-1, *([1] * (like.ndim - 1)))


def rounded_weight(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """x^ of a weight [O, ...] for scales [O]; differentiable in both."""
    levels = weight_levels(bits)
    steps = by_channel(scale, weight)
    return clip_through(round_through(weight / steps), -levels, levels) * steps


def rounded_input(inputs: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """x^ of a layer's inputs for one scale and zero point, both scalars; differentiable in all three."""
    return clip_through(round_through(inputs / scale), -zero_point, input_levels(bits) - zero_point) * scale


def scale_of_range(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale and zero point of inputs from `low` <= 0 to `high` >= 0; the zero point is a whole number in [0, n]."""
    levels = input_levels(bits)
    scale = ((high - low) / levels).clamp_min(TINY)
    return scale, round_through(-low / scale).clamp(0, levels)


def observed_scale(weight: Tensor, bits: int) -> Tensor:
    """Scales [O] for the range of each output channel of a weight [O, ...], without gradient."""
    rows = weight.detach().flatten(1)
    largest = rows.abs().amax(dim=1)
    return (clipped(largest, rows.square().mean(dim=1), weight_levels(bits), bits) / weight_levels(bits)).clamp_min(TINY)


def observed_range(inputs: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """`low` <= 0 and `high` >= 0 of a layer's inputs, scalars without gradient."""
    values = inputs.detach()
    low, high = values.amin().clamp_max(0), values.amax().clamp_min(0)
    square = values.square().mean()
    levels = input_levels(bits)
    return -clipped(-low, square, levels, bits), clipped(high, square, levels, bits)


def clipped(largest: Tensor, square: Tensor, levels: int, bits: int) -> Tensor:
    """The end of a range whose largest absolute value and mean square are given; that of a normal distribution below 8 bits."""
    if bits >= 8:
        return largest
    return torch.minimum(largest, levels * normal_step(2 * levels + 1) * square.sqrt())


@cache
def normal_step(levels: int) -> float:
    """The step of the uniform quantizer of an odd number of levels that has the least mean squared error for N(0, 1).

    Max, Quantizing for minimum distortion (1960), table II: 1.224 for 3 levels, 0.6508 for 7.
    """
    low, high = 1e-3, 4.0
    golden = (math.sqrt(5) - 1) / 2
    while high - low > 1e-7:
        left, right = high - golden * (high - low), low + golden * (high - low)
        if _normal_error(left, levels) < _normal_error(right, levels):
            high = right
        else:
            low = left
    return (low + high) / 2


def _normal_error(step: float, levels: int) -> float:
    """E (x - Q(x))^2 for N(0, 1) and levels k step, |k| <= (levels - 1) / 2."""
    largest = (levels - 1) // 2
    error = 0.0
    for number in range(largest + 1):
        value = number * step
        start = 0.0 if number == 0 else value - step / 2
        end = math.inf if number == largest else value + step / 2
        error += 2 * _squared_distance(start, end, value)
    return error


def _squared_distance(start: float, end: float, value: float) -> float:
    """The integral of (x - value)^2 times the density of N(0, 1) from start to end."""

    def density(x: float) -> float:
        return 0.0 if math.isinf(x) else math.exp(-x * x / 2) / math.sqrt(2 * math.pi)

    def below(x: float) -> float:
        return 1.0 if math.isinf(x) else (1 + math.erf(x / math.sqrt(2))) / 2

    mass = below(end) - below(start)
    first = density(start) - density(end)
    second = mass + start * density(start) - (0.0 if math.isinf(end) else end * density(end))
    return second - 2 * value * first + value * value * mass
