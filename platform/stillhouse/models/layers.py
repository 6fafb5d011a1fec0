"""Building blocks that several families share. B batch, K channels, H and W height and width."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Shape = tuple[int, ...]
"""Of one sample: (channels, height, width) for an image."""


def scaled(channels: int, width: float, *, multiple: int = 1) -> int:
    """`channels * width` rounded to a multiple of `multiple`, at least one such multiple."""
    return max(multiple, round(channels * width / multiple) * multiple)


class Add(nn.Module):
    """The sum of a residual block's two branches; a layer of its own, so that the map before the ReLU has a name."""

    def forward(self, branch: Tensor, shortcut: Tensor) -> Tensor:
        return branch + shortcut


class GlobalAveragePool(nn.Module):
    """[B, K, H, W] -> [B, K] for any H and W.

    A plain mean, since the backward pass of torch's adaptive average pooling is not deterministic on CUDA.
    """

    def forward(self, maps: Tensor) -> Tensor:
        return maps.mean(dim=(2, 3))


class Resize:
    """A forward pre-hook that scales images to `side` x `side`, bilinearly."""

    def __init__(self, side: int) -> None:
        self.side = side

    def __call__(self, _model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        images, *rest = inputs
        scaled = F.interpolate(images, size=(self.side, self.side), mode="bilinear", align_corners=False)
        return (scaled, *rest)


def hidden_layers(num_inputs: int, sizes: Sequence[int], dropout: float) -> nn.Sequential:
    """Fully connected layers with ReLU, `fc1, relu1, dropout1, fc2, ...`; no dropout layers when `dropout` is 0."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, size in enumerate(sizes, start=1):
        layers[f"fc{number}"] = nn.Linear(num_inputs, size)
        layers[f"relu{number}"] = nn.ReLU()
        if dropout > 0:
            layers[f"dropout{number}"] = nn.Dropout(dropout)
        num_inputs = size
    return nn.Sequential(layers)


def initialise_convolutions(model: nn.Module, *, mode: Literal["fan_in", "fan_out"] = "fan_out") -> None:
    """Kaiming-normal convolutions with zero biases (arXiv 1502.01852), from torch's global generator.

    The CIFAR networks of the distillation literature use `fan_out` before batch normalisation; without normalisation, only
    `fan_in` preserves the scale of the activations.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
