"""Convolutions with fewer weights in place of an ordinary one W [O, I, kh, kw], and how they take over its weights.

    ghost                a convolution to O / s channels, and depthwise ones from these to the other channels
    depthwise separable  a depthwise convolution D [I, kh, kw], then a 1x1 one P [O, I]
    grouped              channels in G groups, then a shuffle, so that the next layer mixes the groups

`trained` weights are approximated in the least-squares sense, as far as the form allows. Fresh weights become fresh ones of the
same scale: an approximation of noise would only be smaller.
"""

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn

from stillhouse.compress.parts.layer_replacement import convolution_like


class GhostConvolution(nn.Module):
    """Maps of an ordinary convolution, followed by cheap depthwise ones of them; all is linear."""

    def __init__(self, primary: nn.Conv2d, cheap: nn.Conv2d, num_outputs: int) -> None:
        super().__init__()
        self.primary = primary
        self.cheap = cheap
        self.num_outputs = num_outputs

    def forward(self, maps: Tensor) -> Tensor:
        primary: Tensor = self.primary(maps)
        return torch.cat([primary, self.cheap(primary)], dim=1)[:, : self.num_outputs]


class ChannelShuffle(nn.Module):
    """[B, K, H, W] with the channels of G groups in turns: channel i of group g goes to place i G + g."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, maps: Tensor) -> Tensor:
        batch, channels, height, width = maps.shape
        grouped = maps.reshape(batch, self.groups, channels // self.groups, height, width)
        return grouped.transpose(1, 2).reshape(batch, channels, height, width)


def ghost_convolution(
    layer: nn.Conv2d, ratio: int, dw_size: int, *, trained: bool, generator: torch.Generator
) -> GhostConvolution:
    """The first O / `ratio` filters, rounded up, and ghosts of their maps by kernels of `dw_size` x `dw_size`.

    A trained filter that is left out becomes a multiple of the filter whose ghost it is, by its projection on it.
    """
    has_bias = layer.bias is not None
    count = math.ceil(layer.out_channels / ratio)
    primary = convolution_like(layer, layer.in_channels, count, bias=has_bias)
    cheap = nn.Conv2d(
        count,
        count * (ratio - 1),
        dw_size,
        padding=dw_size // 2,
        groups=count,
        bias=has_bias,
        device=layer.weight.device,
        dtype=layer.weight.dtype,
    )
    if not layer.weight.is_meta:
        with torch.no_grad():
            primary.weight.copy_(layer.weight[:count])
            cheap.weight.copy_(_ghost_kernels(layer.weight, cheap.weight, ratio, trained=trained, generator=generator))
            if layer.bias is not None and primary.bias is not None and cheap.bias is not None:
                primary.bias.copy_(layer.bias[:count])
                cheap.bias.zero_()
                ghosts = layer.out_channels - count
                owners = torch.arange(ghosts) // (ratio - 1)
                sums = cheap.weight[:ghosts].sum(dim=(1, 2, 3))
                cheap.bias[:ghosts] = layer.bias[count:] - sums * layer.bias[owners]
    return GhostConvolution(primary, cheap, layer.out_channels)


def _ghost_kernels(weight: Tensor, cheap: Tensor, ratio: int, *, trained: bool, generator: torch.Generator) -> Tensor:
    dw_size = cheap.shape[-1]
    if not trained:
        # The sum of dw_size^2 taps then has the variance of the map.
        return torch.randn(cheap.shape, generator=generator) / dw_size
    rows = weight.detach().flatten(1).double()
    count = cheap.shape[0] // (ratio - 1)
    owners = torch.arange(len(rows) - count) // (ratio - 1)
    left_out, owner = rows[count:], rows[owners]
    factors = (left_out * owner).sum(1) / owner.square().sum(1).clamp_min(torch.finfo(torch.float64).tiny)
    kernels = torch.zeros(cheap.shape, dtype=torch.float64)
    kernels[: len(factors), 0, dw_size // 2, dw_size // 2] = factors
    return kernels


def separable_convolution(layer: nn.Conv2d, *, trained: bool, generator: torch.Generator) -> nn.Sequential:
    """Depthwise and 1x1 convolution; of trained weights, the best approximation of rank one for each input channel."""
    depthwise = convolution_like(layer, layer.in_channels, layer.in_channels, groups=layer.in_channels)
    pointwise = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        1,
        bias=layer.bias is not None,
        device=layer.weight.device,
        dtype=layer.weight.dtype,
    )
    if not layer.weight.is_meta:
        with torch.no_grad():
            taps = math.prod(layer.kernel_size)
            if trained:
                left, values, right = torch.linalg.svd(layer.weight.double().transpose(0, 1).flatten(2), full_matrices=False)
                # The signs of singular vectors depend on the library: here the largest tap is positive.
                largest = right[:, 0].gather(1, right[:, 0].abs().argmax(dim=1, keepdim=True))
                signs = torch.where(largest < 0, -1.0, 1.0)
                kernels = right[:, 0] * signs
                points = (left[:, :, 0] * values[:, :1] * signs).T
            else:
                kernels = torch.randn(layer.in_channels, taps, generator=generator, dtype=torch.float64) / math.sqrt(taps)
                noise = torch.randn(layer.out_channels, layer.in_channels, generator=generator, dtype=torch.float64)
                points = noise * (layer.weight.double().std(correction=0) * math.sqrt(taps))
            depthwise.weight.copy_(kernels.reshape(depthwise.weight.shape))
            pointwise.weight.copy_(points[:, :, None, None])
            if layer.bias is not None and pointwise.bias is not None:
                pointwise.bias.copy_(layer.bias)
    return nn.Sequential(OrderedDict(depthwise=depthwise, pointwise=pointwise))


def grouped_convolution(layer: nn.Conv2d, groups: int, *, trained: bool) -> nn.Sequential:
    """Output channel o sees the input channels of group o mod G; fresh weights grow by sqrt(G), for they have fewer inputs."""
    convolution = convolution_like(layer, layer.in_channels, layer.out_channels, groups=groups, bias=layer.bias is not None)
    if not layer.weight.is_meta:
        with torch.no_grad():
            inputs = layer.in_channels // groups
            # [O / G, G, I, kh, kw]: the filters of group g are those at the places g, g + G, ... after the shuffle.
            filters = layer.weight.reshape(-1, groups, *layer.weight.shape[1:])
            parts = [filters[:, group, group * inputs : (group + 1) * inputs] for group in range(groups)]
            convolution.weight.copy_(torch.cat(parts) * (1.0 if trained else math.sqrt(groups)))
            if layer.bias is not None and convolution.bias is not None:
                convolution.bias.copy_(layer.bias.reshape(-1, groups).T.flatten())
    return nn.Sequential(OrderedDict(convolution=convolution, shuffle=ChannelShuffle(groups)))
