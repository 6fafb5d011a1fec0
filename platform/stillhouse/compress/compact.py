"""Compact convolutions: ordinary convolutions become ghost, depthwise-separable or grouped ones.

`ghost` is equation 3 of GhostNet (Han et al., arXiv 1911.11907), `depthwise_separable` MobileNet's convolution (Howard et al.,
arXiv 1704.04861), `grouped` ShuffleNet's with the shuffle of its channels (Zhang et al., arXiv 1707.01083).

Deviations: the new convolutions are linear, without the batch normalisation and ReLU that the papers put between their parts,
since the network's own normalisation follows; so they also fit where no ReLU follows, as before a residual sum. The models
`ghost_resnet*` and `ghost_vgg*` have the paper's modules. Of a trained network, `depthwise_separable` takes over the nearest
weights (Guo et al., arXiv 1808.05517); `ghost` and `grouped` lose more.
"""

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from stillhouse.compress.operator import Card, Context, Conversion, Operator, OperatorError, option
from stillhouse.compress.parts.compact_convolutions import ghost_convolution, grouped_convolution, separable_convolution
from stillhouse.compress.parts.layer_replacement import listed, plain_layers, replace_layers


@dataclass(frozen=True, kw_only=True)
class Compact(Operator):
    """Replaces convolutions by ones with fewer weights."""

    card: ClassVar[Card] = Card(
        title="Compact convolutions: ghost, depthwise-separable, grouped",
        arxiv="1911.11907",
        does="Each convolution but the first becomes a ghost, depthwise-separable or grouped one.",
        effect="Fewer parameters, stored bytes and MACs. Latency may not fall: depthwise convolutions are often slow.",
        deviations="no batch normalisation or ReLU between the parts of a convolution",
        suggested="ratio 2; ghost for ResNet and VGG",
        interactions="from a trained teacher much of what was learnt is lost: train as long as a fresh network",
    )
    neutral: ClassVar[Mapping[str, Any]] = {"kind": "ghost", "ratio": 1}
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"kind": "depthwise_separable"}, {"kind": "grouped"})

    main_options: ClassVar[Sequence[str]] = ("kind",)

    kind: Literal["ghost", "depthwise_separable", "grouped"] = option(
        "ghost", choices=("ghost", "depthwise_separable", "grouped"), help="the form of the new convolutions"
    )
    ratio: int = option(
        2, minimum=1, help="ghost: maps for each ordinarily computed one; grouped: number of groups; 1 changes nothing"
    )
    dw_size: int = option(3, minimum=1, help="ghost: side of the depthwise kernels, odd")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dw_size % 2 == 0:
            raise ValueError(f"dw_size must be odd, got {self.dw_size}")
        unused = {"depthwise_separable": ("ratio", "dw_size"), "grouped": ("dw_size",)}
        for name in unused.get(self.kind, ()):
            if getattr(self, name) != self.defaults()[name]:
                warnings.warn(f"{name} has no effect with kind={self.kind!r}", stacklevel=3)

    @property
    def readable(self) -> str:
        if self.kind == "depthwise_separable":
            return super().readable
        return self.name_with({"kind": self.kind, "ratio": self.ratio} | self.changed_options())

    def convert(self, model: nn.Module, context: Context) -> Conversion:
        convolutions = {name: layer for name, layer in plain_layers(model, nn.Conv2d).items() if isinstance(layer, nn.Conv2d)}
        if not convolutions:
            raise OperatorError("needs a convolution, and this network has none that can be replaced")
        if self.ratio == 1 and self.kind != "depthwise_separable":
            return Conversion(model=model)
        generator = context.generator
        replacements: dict[nn.Module, nn.Module] = {}
        left: dict[str, list[str]] = {}
        for number, (name, layer) in enumerate(convolutions.items()):
            if reason := "it is the first convolution" if number == 0 else self._obstacle(layer):
                left.setdefault(reason, []).append(name)
            else:
                replacements[layer] = self._compact(layer, trained=context.trained, generator=generator)
        if not replacements:
            reasons = "; ".join(f"{listed(names)}: {reason}" for reason, names in left.items())
            raise OperatorError(f"can replace no convolution of this network ({reasons})")
        replace_layers(model, replacements)
        return Conversion(model=model, notes=[f"left as they are: {listed(names)}, since {why}" for why, names in left.items()])

    def _obstacle(self, layer: nn.Conv2d) -> str | None:
        """Why a convolution is left as it is; None if it is replaced."""
        if layer.groups > 1:
            return "its channels are in groups already"
        if self.kind == "grouped" and (layer.in_channels % self.ratio or layer.out_channels % self.ratio):
            return f"its channels cannot be divided into {self.ratio} groups"
        compact = self._compact(copy.deepcopy(layer).to("meta"), trained=True, generator=torch.Generator())
        if sum(part.numel() for part in compact.parameters()) >= sum(part.numel() for part in layer.parameters()):
            return "it would have no fewer weights"
        return None

    def _compact(self, layer: nn.Conv2d, *, trained: bool, generator: torch.Generator) -> nn.Module:
        if self.kind == "ghost":
            return ghost_convolution(layer, self.ratio, self.dw_size, trained=trained, generator=generator)
        if self.kind == "grouped":
            return grouped_convolution(layer, self.ratio, trained=trained)
        return separable_convolution(layer, trained=trained, generator=generator)
