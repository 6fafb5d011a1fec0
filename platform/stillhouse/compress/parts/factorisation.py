"""Low-rank factors of weights, and layers that compute with them.

    linear     W [O, I] ~ B A, A [R, I], B [O, R]: the truncated singular value decomposition, the best approximation of rank R
    channel    a convolution with R channels, then a 1x1 one: the same for W [O, I kh kw] (Zhang et al., arXiv 1505.06798)
    spatial    a kh x 1 convolution with R channels, then a 1 x kw one: W as [I kh, O kw] (Jaderberg et al., arXiv 1405.3866)
    tucker2    1x1 to R channels, kh x kw to Q channels, 1x1 (Kim et al., arXiv 1511.06530); no rank across the kernel

Each factor of a singular value decomposition has the root of the singular values, so that both have weights of similar size.
I and O are the layer's input and output channels, R and Q ranks, kh x kw the kernel.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from stillhouse.compress.parts.layer_replacement import convolution_like

Form = Literal["channel", "spatial", "tucker2"]

_TUCKER_SWEEPS = 25
"""Passes of the alternating improvement; on kernels of trained networks the fit changes by less than 1e-6 after ten."""
_SLACK = 1e-6
"""Relative rounding error of a sum of squared float32 singular values that still counts as the requested energy."""


@dataclass(frozen=True)
class LayerRanks:
    """The ranks of one layer's factors: one for a singular value decomposition, two (input, output) for Tucker-2."""

    ranks: tuple[int, ...]
    full: tuple[int, ...]


def as_matrix(weight: Tensor, form: Form) -> Tensor:
    """The matrix that is decomposed: a weight [O, I] itself, of a kernel [O, I, kh, kw] the unfolding of the form.

    `tucker2` has no single matrix; see `unfoldings`.
    """
    if weight.ndim == 2:
        return weight
    if form == "spatial":
        return weight.permute(1, 2, 0, 3).reshape(weight.shape[1] * weight.shape[2], -1)
    assert form == "channel", form
    return weight.flatten(1)


def unfoldings(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Of a kernel [O, I, kh, kw] the unfoldings along input and output channels: [I, O kh kw] and [O, I kh kw]."""
    return weight.transpose(0, 1).flatten(1), weight.flatten(1)


def full_ranks(shape: tuple[int, ...], form: Form) -> tuple[int, ...]:
    """The largest ranks that a weight of this shape can have, in the order of `LayerRanks.ranks`."""
    if len(shape) == 2:
        return (min(shape),)
    num_outputs, num_inputs, height, width = shape
    if form == "spatial":
        return (min(num_inputs * height, num_outputs * width),)
    if form == "channel":
        return (min(num_outputs, num_inputs * height * width),)
    return (min(num_inputs, num_outputs * height * width), min(num_outputs, num_inputs * height * width))


def ranks_by_ratio(shape: tuple[int, ...], form: Form, ratio: float) -> LayerRanks:
    """The share `ratio` in (0, 1] of the full ranks, rounded, at least 1."""
    full = full_ranks(shape, form)
    return LayerRanks(_feasible(shape, tuple(max(1, round(ratio * rank)) for rank in full)), full)


def ranks_by_energy(weight: Tensor, form: Form, energy: float) -> LayerRanks:
    """The smallest ranks whose squared singular values sum to the share `energy` in (0, 1] of all; energy 1: the full ranks."""
    matrices = unfoldings(weight) if weight.ndim == 4 and form == "tucker2" else (as_matrix(weight, form),)
    full = full_ranks(tuple(weight.shape), form)
    if energy >= 1:
        return LayerRanks(full, full)
    return LayerRanks(_feasible(tuple(weight.shape), tuple(rank_of_energy(matrix, energy) for matrix in matrices)), full)


def extreme_ranks_by_energy(shape: tuple[int, ...], form: Form, energy: float) -> tuple[LayerRanks, LayerRanks]:
    """The smallest and the largest ranks that `ranks_by_energy` gives any weight of this shape.

    One singular value may have all the energy; if all of n are equal, the share `energy` of it takes energy x n of them.
    """
    full = full_ranks(shape, form)
    if energy >= 1:
        return LayerRanks(full, full), LayerRanks(full, full)
    most = tuple(math.ceil((energy - _SLACK) * rank) for rank in full)
    return LayerRanks((1,) * len(full), full), LayerRanks(_feasible(shape, most), full)


def _feasible(shape: tuple[int, ...], ranks: tuple[int, ...]) -> tuple[int, ...]:
    """Tucker-2 ranks of which neither is larger than the unfolding of the core allows: a larger one would add only zeros."""
    if len(ranks) == 1:
        return ranks
    kernel = shape[2] * shape[3]
    inner = min(ranks[0], ranks[1] * kernel)
    return inner, min(ranks[1], inner * kernel)


def rank_of_energy(matrix: Tensor, energy: float) -> int:
    """The smallest R for which the first R singular values have the share `energy` of sum sigma^2; 1 for a zero matrix."""
    squares = torch.linalg.svdvals(matrix.detach().double()).square()
    cumulated = squares.cumsum(0)
    reached = cumulated >= (energy - _SLACK) * cumulated[-1]
    return int(reached.int().argmax()) + 1


def factor_sizes(shape: tuple[int, ...], form: Form, ranks: tuple[int, ...]) -> int:
    """The number of weights of the factors."""
    if len(shape) == 2:
        return ranks[0] * (shape[0] + shape[1])
    num_outputs, num_inputs, height, width = shape
    if form == "spatial":
        return ranks[0] * (num_inputs * height + num_outputs * width)
    if form == "channel":
        return ranks[0] * (num_inputs * height * width + num_outputs)
    inner, outer = ranks
    return num_inputs * inner + inner * outer * height * width + outer * num_outputs


def svd_factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """B [M, R] and A [R, N] with B A the best approximation of `matrix` [M, N] of rank R in the Frobenius norm.

    Computed in float64. The largest entry of each row of A, by size, is positive, so that the signs are the same everywhere.
    """
    left, values, right = torch.linalg.svd(matrix.detach().double(), full_matrices=False)
    left, values, right = left[:, :rank], values[:rank], right[:rank]
    signs = right.gather(1, right.abs().argmax(dim=1, keepdim=True)).sign()
    signs = torch.where(signs == 0, 1.0, signs)
    roots = values.sqrt()
    return ((left * signs.T) * roots).to(matrix.dtype), ((right * signs) * roots[:, None]).to(matrix.dtype)


def tucker2_factors(weight: Tensor, inner: int, outer: int) -> tuple[Tensor, Tensor, Tensor]:
    """Input factor [I, R], core [Q, R, kh, kw] and output factor [O, Q] of a kernel [O, I, kh, kw].

    The kernel is approximated by sum_{q, r} output[o, q] core[q, r] input[i, r]. Both factors have orthonormal columns: the
    leading singular vectors of the unfoldings, improved by turns (higher-order orthogonal iteration).
    """
    kernel = weight.detach().double()
    first = _leading_vectors(unfoldings(kernel)[0], inner)
    second = _leading_vectors(unfoldings(kernel)[1], outer)
    for _ in range(_TUCKER_SWEEPS):
        first = _leading_vectors(unfoldings(torch.einsum("oihw,oq->qihw", kernel, second))[0], inner)
        second = _leading_vectors(unfoldings(torch.einsum("oihw,ir->orhw", kernel, first))[1], outer)
    core = torch.einsum("oihw,oq,ir->qrhw", kernel, second, first)
    return first.to(weight.dtype), core.to(weight.dtype), second.to(weight.dtype)


def _leading_vectors(matrix: Tensor, number: int) -> Tensor:
    """The first left singular vectors, [M, number], each with a positive largest entry; `number` is at most the rank."""
    left = torch.linalg.svd(matrix, full_matrices=False)[0][:, :number]
    largest = left.gather(0, left.abs().argmax(dim=0, keepdim=True))
    signed: Tensor = left * torch.where(largest < 0, -1.0, 1.0)
    return signed


def factored_linear(layer: nn.Linear, rank: int) -> nn.Sequential:
    """Two linear layers, I -> R -> O, instead of one; the second has the bias."""
    first = nn.Linear(layer.in_features, rank, bias=False, device=layer.weight.device, dtype=layer.weight.dtype)
    second = nn.Linear(
        rank, layer.out_features, bias=layer.bias is not None, device=layer.weight.device, dtype=layer.weight.dtype
    )
    if not layer.weight.is_meta:
        outer, inner = svd_factors(layer.weight, rank)
        _copy(first, inner)
        _copy(second, outer, layer.bias)
    return nn.Sequential(OrderedDict(first=first, second=second))


def factored_convolution(layer: nn.Conv2d, form: Form, ranks: tuple[int, ...]) -> nn.Sequential:
    """Two or three convolutions of the given form instead of one without groups; the last has the bias."""
    if form == "channel":
        return _channel_form(layer, ranks[0])
    if form == "spatial":
        return _spatial_form(layer, ranks[0])
    return _tucker2_form(layer, *ranks)


def _channel_form(layer: nn.Conv2d, rank: int) -> nn.Sequential:
    first = convolution_like(layer, layer.in_channels, rank)
    second = _pointwise(layer, rank, layer.out_channels, bias=layer.bias is not None)
    if not layer.weight.is_meta:
        outer, inner = svd_factors(as_matrix(layer.weight, "channel"), rank)
        _copy(first, inner.reshape(first.weight.shape))
        _copy(second, outer[:, :, None, None], layer.bias)
    return nn.Sequential(OrderedDict(first=first, second=second))


def _spatial_form(layer: nn.Conv2d, rank: int) -> nn.Sequential:
    (kernel_h, kernel_w), (stride_h, stride_w), (dilation_h, dilation_w) = layer.kernel_size, layer.stride, layer.dilation
    padding = layer.padding
    first = nn.Conv2d(
        layer.in_channels,
        rank,
        (kernel_h, 1),
        stride=(stride_h, 1),
        padding=padding if isinstance(padding, str) else (padding[0], 0),
        dilation=(dilation_h, 1),
        bias=False,
        padding_mode=layer.padding_mode,
        device=layer.weight.device,
        dtype=layer.weight.dtype,
    )
    second = nn.Conv2d(
        rank,
        layer.out_channels,
        (1, kernel_w),
        stride=(1, stride_w),
        padding=padding if isinstance(padding, str) else (0, padding[1]),
        dilation=(1, dilation_w),
        bias=layer.bias is not None,
        padding_mode=layer.padding_mode,
        device=layer.weight.device,
        dtype=layer.weight.dtype,
    )
    if not layer.weight.is_meta:
        columns, rows = svd_factors(as_matrix(layer.weight, "spatial"), rank)
        _copy(first, columns.reshape(layer.in_channels, kernel_h, rank).permute(2, 0, 1)[..., None])
        _copy(second, rows.reshape(rank, layer.out_channels, kernel_w).transpose(0, 1)[:, :, None, :], layer.bias)
    return nn.Sequential(OrderedDict(first=first, second=second))


def _tucker2_form(layer: nn.Conv2d, inner: int, outer: int) -> nn.Sequential:
    first = _pointwise(layer, layer.in_channels, inner, bias=False)
    core = convolution_like(layer, inner, outer)
    second = _pointwise(layer, outer, layer.out_channels, bias=layer.bias is not None)
    if not layer.weight.is_meta:
        input_factor, kernel, output_factor = tucker2_factors(layer.weight, inner, outer)
        _copy(first, input_factor.T[:, :, None, None])
        _copy(core, kernel)
        _copy(second, output_factor[:, :, None, None], layer.bias)
    return nn.Sequential(OrderedDict(first=first, core=core, second=second))


def _pointwise(layer: nn.Conv2d, num_inputs: int, num_outputs: int, *, bias: bool) -> nn.Conv2d:
    return nn.Conv2d(num_inputs, num_outputs, 1, bias=bias, device=layer.weight.device, dtype=layer.weight.dtype)


@torch.no_grad()
def _copy(layer: nn.Linear | nn.Conv2d, weight: Tensor, bias: Tensor | None = None) -> None:
    layer.weight.copy_(weight)
    if bias is not None:
        assert layer.bias is not None
        layer.bias.copy_(bias)


def saved_weights(shape: tuple[int, ...], form: Form, ranks: tuple[int, ...]) -> int:
    """By how many weights the factors are smaller than the layer; 0 if they are not, and the layer is left as it is."""
    return max(0, math.prod(shape) - factor_sizes(shape, form, ranks))
