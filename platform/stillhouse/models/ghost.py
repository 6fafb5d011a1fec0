"""GhostNet (Han et al., arXiv 1911.11907): modules that make a part of their maps by cheap depthwise convolutions.

    Y' = relu(BN(X * f')),  y_ij = relu(BN(phi_ij(y'_i))),  output: the maps Y' and their ghosts y_ij      (equations 3 and 4)

`ratio` (the paper's s) is the number of maps for each one that an ordinary convolution computes; `dw_size` (d) is the kernel of
the cheap operations. `ghostnet` has the layers of the paper's table 1, with the parameters, MACs and names of the weights of
the authors' model. Its stem has stride 2, and the last map of a 32x32 image is 1x1: `ghost_resnet*` and `ghost_vgg*` are the
networks for small images.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from stillhouse.models.layers import Add, GlobalAveragePool, Shape

# Kernel, expanded channels, output channels, squeeze-and-excitation, stride of each bottleneck: the paper's table 1. The groups
# are those of the authors' model, in which a new one begins at each stride of 2 and after it.
_BLOCKS = (
    ((3, 16, 16, False, 1),),
    ((3, 48, 24, False, 2),),
    ((3, 72, 24, False, 1),),
    ((5, 72, 40, True, 2),),
    ((5, 120, 40, True, 1),),
    ((3, 240, 80, False, 2),),
    (
        (3, 200, 80, False, 1),
        (3, 184, 80, False, 1),
        (3, 184, 80, False, 1),
        (3, 480, 112, True, 1),
        (3, 672, 112, True, 1),
    ),
    ((5, 672, 160, True, 2),),
    ((5, 960, 160, False, 1), (5, 960, 160, True, 1), (5, 960, 160, False, 1), (5, 960, 160, True, 1)),
)
_SQUEEZE = 0.25
_LAST = 1280


class GhostModule(nn.Module):
    """A convolution to a part of the channels, and depthwise convolutions from these to the rest: [B, K, H, W] -> [B, O, ...].

    Args:
        num_outputs: O; need not be a multiple of `ratio`: the last ghosts are left out, as in the authors' code.
        kernel_size: of the primary convolution, which has the stride.
        ratio: maps for each primary one; with 1 there are no ghosts.
        dw_size: kernel of the cheap operations, odd.
        relu: whether both parts end with a ReLU.
    """

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        *,
        kernel_size: int = 1,
        ratio: int = 2,
        dw_size: int = 3,
        stride: int = 1,
        relu: bool = True,
    ) -> None:
        super().__init__()
        primary = math.ceil(num_outputs / ratio)
        ghosts = primary * (ratio - 1)
        self.num_outputs = num_outputs
        self.primary_conv = nn.Sequential(
            nn.Conv2d(num_inputs, primary, kernel_size, stride, kernel_size // 2, bias=False),
            nn.BatchNorm2d(primary),
            *([nn.ReLU()] if relu else []),
        )
        self.cheap_operation = (
            nn.Sequential(
                nn.Conv2d(primary, ghosts, dw_size, 1, dw_size // 2, groups=primary, bias=False),
                nn.BatchNorm2d(ghosts),
                *([nn.ReLU()] if relu else []),
            )
            if ghosts
            else None
        )

    def forward(self, maps: Tensor) -> Tensor:
        primary: Tensor = self.primary_conv(maps)
        if self.cheap_operation is None:
            return primary
        return torch.cat([primary, self.cheap_operation(primary)], dim=1)[:, : self.num_outputs]


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate in [0, 1] that depends on the means of all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        reduced = _divisible(channels * _SQUEEZE)
        self.pool = GlobalAveragePool()
        self.conv_reduce = nn.Conv2d(channels, reduced, 1)
        self.act1 = nn.ReLU()
        self.conv_expand = nn.Conv2d(reduced, channels, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, maps: Tensor) -> Tensor:
        means = self.pool(maps)[:, :, None, None]
        gates: Tensor = self.gate(self.conv_expand(self.act1(self.conv_reduce(means))))
        return maps * gates


class GhostBottleneck(nn.Module):
    """Expanding ghost module, depthwise convolution if the stride is 2, linear ghost module, and a shortcut."""

    def __init__(
        self,
        num_inputs: int,
        middle: int,
        num_outputs: int,
        *,
        dw_size: int = 3,
        stride: int = 1,
        excite: bool = False,
        ratio: int = 2,
        cheap_size: int = 3,
    ) -> None:
        super().__init__()
        padding = dw_size // 2
        self.ghost1 = GhostModule(num_inputs, middle, ratio=ratio, dw_size=cheap_size)
        if stride > 1:
            self.conv_dw = nn.Conv2d(middle, middle, dw_size, stride, padding, groups=middle, bias=False)
            self.bn_dw = nn.BatchNorm2d(middle)
        self.stride = stride
        self.se = SqueezeExcite(middle) if excite else None
        self.ghost2 = GhostModule(middle, num_outputs, ratio=ratio, dw_size=cheap_size, relu=False)
        if stride == 1 and num_inputs == num_outputs:
            self.shortcut = nn.Sequential()
        else:
            self.shortcut = nn.Sequential(
                nn.Conv2d(num_inputs, num_inputs, dw_size, stride, padding, groups=num_inputs, bias=False),
                nn.BatchNorm2d(num_inputs),
                nn.Conv2d(num_inputs, num_outputs, 1, bias=False),
                nn.BatchNorm2d(num_outputs),
            )
        self.add = Add()

    def forward(self, maps: Tensor) -> Tensor:
        branch: Tensor = self.ghost1(maps)
        if self.stride > 1:
            branch = self.bn_dw(self.conv_dw(branch))
        if self.se is not None:
            branch = self.se(branch)
        output: Tensor = self.add(self.ghost2(branch), self.shortcut(maps))
        return output


class LastConvolution(nn.Module):
    """1x1 convolution, batch normalisation, ReLU."""

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(num_inputs, num_outputs, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(num_outputs)
        self.act1 = nn.ReLU()

    def forward(self, maps: Tensor) -> Tensor:
        output: Tensor = self.act1(self.bn1(self.conv(maps)))
        return output


class GhostNet(nn.Module):
    """The last map of each resolution is a stage; blocks end linearly, so stages have no map before a ReLU.

    Weights start as in PyTorch, as the authors' do.

    Args:
        width: scales all channels but the last 1280, to multiples of 4.
        ratio: of all ghost modules.
        dw_size: of their cheap operations.
    """

    stage_layers = ("blocks.0", "blocks.2", "blocks.4", "blocks.6", "blocks.8")
    preactivation_layers = stage_layers
    pooled_layer = "act2"

    def __init__(self, *, num_classes: int, input_shape: Shape, width: float, dropout: float, ratio: int, dw_size: int) -> None:
        super().__init__()
        channels = _divisible(16 * width)
        self.conv_stem = nn.Conv2d(input_shape[0], channels, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU()
        stages: list[nn.Module] = []
        for group in _BLOCKS:
            blocks = []
            for kernel_size, expanded, unscaled, excite, stride in group:
                middle, num_outputs = _divisible(expanded * width), _divisible(unscaled * width)
                blocks.append(
                    GhostBottleneck(
                        channels,
                        middle,
                        num_outputs,
                        dw_size=kernel_size,
                        stride=stride,
                        excite=excite,
                        ratio=ratio,
                        cheap_size=dw_size,
                    )
                )
                channels = num_outputs
            stages.append(nn.Sequential(*blocks))
        # The last bottleneck's expanded channels, 960 in the paper.
        last = _divisible(_BLOCKS[-1][-1][1] * width)
        self.blocks = nn.Sequential(*stages, nn.Sequential(LastConvolution(channels, last)))
        self.global_pool = GlobalAveragePool()
        self.conv_head = nn.Conv2d(last, _LAST, 1)
        self.act2 = nn.Sequential(nn.ReLU(), nn.Flatten())
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(_LAST, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.blocks(self.act1(self.bn1(self.conv_stem(images))))
        pooled = self.act2(self.conv_head(self.global_pool(maps)[:, :, None, None]))
        logits: Tensor = self.classifier(self.dropout(pooled))
        return logits


def _divisible(channels: float) -> int:
    """The multiple of 4 that is nearest, at least 4, and not below 90 % of `channels`."""
    rounded = max(4, int(channels + 2) // 4 * 4)
    return rounded + 4 if rounded < 0.9 * channels else rounded


def ghostnet(
    *, num_classes: int, input_shape: Shape, width: float = 1.0, dropout: float = 0.2, ratio: int = 2, dw_size: int = 3
) -> GhostNet:
    return GhostNet(
        num_classes=num_classes, input_shape=input_shape, width=width, dropout=dropout, ratio=ratio, dw_size=dw_size
    )


MODELS: dict[str, Callable[..., nn.Module]] = {"ghostnet": ghostnet}
