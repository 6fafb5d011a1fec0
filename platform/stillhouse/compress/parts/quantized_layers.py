"""Convolutions and linear layers that compute with rounded weights and inputs, while they train and afterwards.

A layer has a quantizer of its weight and one of its inputs, each of which may be absent. During training they observe or learn
ranges; `Phase` says which. `finalise_layer` puts the weight itself on its grid and replaces both by their fixed forms.
"""

from collections.abc import Iterator
from enum import IntEnum

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.compress.parts.rounding import (
    TINY,
    by_channel,
    clip_through,
    observed_range,
    observed_scale,
    rounded_input,
    rounded_weight,
    scale_of_range,
    weight_levels,
)

MOMENTUM = 0.1
"""Share of a new batch in an observed range, as in BatchNorm's running statistics."""


class Phase(IntEnum):
    """What a quantizer does with its range. A buffer has it, since a resumed training must know."""

    OBSERVING = 0
    LEARNING = 1
    FROZEN = 2


class WeightQuantizer(nn.Module):
    """Rounds a weight [O, ...] with one scale for each output channel.

    Args:
        scale: [O], the first scales.
        learnt: whether the scales are parameters; otherwise they follow from the weight until they are frozen.
    """

    def __init__(self, scale: Tensor, bits: int, *, learnt: bool) -> None:
        super().__init__()
        self.bits = bits
        self.learnt = learnt
        self.active = True
        self.known_phase: Phase | None = None
        self.register_buffer("seen_scale", scale)
        self.register_buffer("phase", _phase(scale))
        if learnt:
            self.scale = nn.Parameter(scale.clone())
        self.seen_scale: Tensor
        self.phase: Tensor

    def current_scale(self, weight: Tensor) -> Tensor:
        """[O]: the scales that the next rounding uses."""
        frozen = self.phase == Phase.FROZEN
        if self.learnt:
            # LSQ, section 2.2: the gradient of a scale is that of many weights; this factor brings it to the size of theirs.
            count = weight.numel() / len(weight)
            own = _with_gradient_of(self.scale, (count * weight_levels(self.bits)) ** -0.5).abs().clamp_min(TINY)
            return torch.where(frozen, self.seen_scale, own)
        return torch.where(frozen, self.seen_scale, observed_scale(weight, self.bits))

    def has_seen(self, _passes: int) -> bool:
        """Whether the scale may be learnt: it begins from the weight itself."""
        return True

    def forward(self, weight: Tensor) -> Tensor:
        if not self.active:
            return weight
        scale = self.current_scale(weight)
        if self.training:
            self.seen_scale.copy_(scale.detach())
        return rounded_weight(weight, scale, self.bits)


class InputQuantizer(nn.Module):
    """Rounds a layer's inputs with one scale and zero point for all of them.

    Args:
        learnt: whether the ends of the range are parameters; they begin as observed.
        active: whether inputs are rounded at all before the network is finalised.
    """

    def __init__(self, like: Tensor, bits: int, *, learnt: bool, active: bool) -> None:
        super().__init__()
        self.bits = bits
        self.learnt = learnt
        self.active = active
        self.calibrating = False
        self.known_phase: Phase | None = None
        self.register_buffer("seen", like.new_zeros(2))
        self.register_buffer("batches", like.new_zeros((), dtype=torch.int64))
        self.register_buffer("phase", _phase(like))
        if learnt:
            self.ends = nn.Parameter(like.new_zeros(2))
        self.seen: Tensor
        self.batches: Tensor
        self.phase: Tensor

    def current_range(self) -> tuple[Tensor, Tensor]:
        """Ends of the range that the next rounding uses, both scalars."""
        low, high = self.seen
        if self.learnt:
            learning = self.phase == Phase.LEARNING
            # Parameters always take part, so that they have a gradient in every step.
            own_low, own_high = self.ends[0].clamp_max(0), self.ends[1].clamp_min(0)
            return torch.where(learning, own_low, low), torch.where(learning, own_high, high)
        return low, high

    def has_seen(self, passes: int) -> bool:
        """Whether that number of batches was observed. It waits for a GPU, so only the first steps call it."""
        return int(self.batches) >= passes

    def observe(self, inputs: Tensor) -> None:
        """Widens or narrows the observed range towards that of a batch, unless the range is frozen or learnt by now."""
        with torch.no_grad():
            new = torch.stack(observed_range(inputs, self.bits))
            share = torch.where(self.batches == 0, 1.0, MOMENTUM)
            updated = self.seen + share * (new - self.seen)
            observing = self.phase == Phase.OBSERVING
            self.seen.copy_(torch.where(observing, updated, self.seen))
            self.batches.add_(observing)

    def widen(self, inputs: Tensor) -> None:
        """Widens the observed range to that of a batch."""
        with torch.no_grad():
            low, high = observed_range(inputs, self.bits)
            self.seen.copy_(torch.stack([torch.minimum(self.seen[0], low), torch.maximum(self.seen[1], high)]))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.calibrating:
            self.widen(inputs)
        if not self.active:
            return inputs
        inputs = _wide(inputs)
        if self.training:
            self.observe(inputs)
        scale, zero_point = scale_of_range(*self.current_range(), self.bits)
        if self.learnt:
            factor = (inputs[0].numel() * (2**self.bits - 1)) ** -0.5
            scale = _with_gradient_of(scale, factor)
        return rounded_input(inputs, scale, zero_point, self.bits)


class FixedInput(nn.Module):
    """Rounds a layer's inputs with a stored scale and zero point."""

    def __init__(self, scale: Tensor, zero_point: Tensor, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)
        self.scale: Tensor
        self.zero_point: Tensor

    def forward(self, inputs: Tensor) -> Tensor:
        return rounded_input(_wide(inputs), self.scale, self.zero_point, self.bits)


class QuantizedConv2d(nn.Conv2d):
    """A convolution with rounded weight and inputs."""

    folded_norm: str | None = None
    """The normalisation that becomes a part of this layer at the end, by its name."""
    input_quantizer: nn.Module
    weight_quantizer: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        weight: Tensor = self.weight_quantizer(self.weight)
        output: Tensor = self._conv_forward(self.input_quantizer(input), weight, self.bias)
        return output


class QuantizedLinear(nn.Linear):
    """A linear layer with rounded weight and inputs."""

    folded_norm: str | None = None
    input_quantizer: nn.Module
    weight_quantizer: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        weight: Tensor = self.weight_quantizer(self.weight)
        return F.linear(self.input_quantizer(input), weight, self.bias)


QuantizedLayer = QuantizedConv2d | QuantizedLinear


def quantized_layer(
    layer: nn.Conv2d | nn.Linear, *, weight_bits: int, activation_bits: int, learnt: bool, train: bool
) -> QuantizedLayer:
    """A layer with the weights of `layer` (the same parameters) and quantizers.

    Args:
        weight_bits: 2 to 8, or 32 for weights as they are.
        activation_bits: of the inputs, as for weights.
        learnt: whether ranges are learnt or observed.
        train: whether numbers are rounded during training; otherwise only by `finalise_layer`.
    """
    quantized = _empty_like(layer)
    quantized.weight, quantized.bias = layer.weight, layer.bias
    rounds_weight, rounds_input = weight_bits < 32, activation_bits < 32
    scale = _first_scale(layer.weight, weight_bits, learnt=learnt) if rounds_weight else layer.weight
    quantized.weight_quantizer = (
        WeightQuantizer(scale, weight_bits, learnt=learnt) if rounds_weight and train else Later(weight_bits)
    )
    quantized.input_quantizer = (
        InputQuantizer(layer.weight.detach(), activation_bits, learnt=learnt, active=train) if rounds_input else nn.Identity()
    )
    # Another operator's, such as a mask.
    for name, buffer in layer.named_buffers(recurse=False):
        quantized.register_buffer(name, buffer)
    return quantized


class Later(nn.Module):
    """Returns a weight as it is; the weight is rounded when the network is finalised, or never with 32 bits."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, weight: Tensor) -> Tensor:
        return weight


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, QuantizedLayer]]:
    """Names and layers with quantizers, in the network's order."""
    for name, module in model.named_modules():
        if isinstance(module, QuantizedConv2d | QuantizedLinear):
            yield name, module


def set_active(layer: QuantizedLayer, *, active: bool) -> None:
    """Whether the layer rounds. While it does not, scales follow the weight, so that they begin from the trained one."""
    for quantizer in (layer.weight_quantizer, layer.input_quantizer):
        if isinstance(quantizer, WeightQuantizer | InputQuantizer):
            quantizer.active = active
    weights = layer.weight_quantizer
    if not active and isinstance(weights, WeightQuantizer):
        with torch.no_grad():
            weights.seen_scale.copy_(_first_scale(layer.weight, weights.bits, learnt=weights.learnt))
            if weights.learnt:
                weights.scale.copy_(weights.seen_scale)


def set_phase(quantizer: WeightQuantizer | InputQuantizer, phase: Phase) -> None:
    """Begins a phase; learnt ends of a range begin as observed, and a frozen range is the one that was used last."""
    quantizer.known_phase = phase
    if int(quantizer.phase) == phase:
        # A resumed training has the phase already, with its range.
        return
    with torch.no_grad():
        if phase == Phase.LEARNING and isinstance(quantizer, InputQuantizer) and quantizer.learnt:
            quantizer.ends.copy_(quantizer.seen)
        if phase == Phase.FROZEN and isinstance(quantizer, InputQuantizer):
            quantizer.seen.copy_(torch.stack(quantizer.current_range()))
        quantizer.phase.fill_(int(phase))


@torch.no_grad()
def finalise_layer(layer: QuantizedLayer) -> bool:
    """Rounds the weight for good, with its scales in the buffer `weight_scale`, and fixes the rounding of the inputs.

    Returns whether the weight is rounded; a layer that is final already does not change.
    """
    quantizer = layer.weight_quantizer
    rounds = False
    if isinstance(quantizer, WeightQuantizer | Later) and quantizer.bits < 32:
        bits, rounds = quantizer.bits, True
        if isinstance(quantizer, WeightQuantizer):
            scale = quantizer.current_scale(layer.weight)
        else:
            scale = observed_scale(layer.weight, bits)
        layer.register_buffer("weight_scale", scale.detach().clone())
        layer.weight.copy_(weight_of(numbers_of(layer.weight, scale, bits), scale, layer.weight))
    layer.weight_quantizer = nn.Identity()
    if isinstance(layer.input_quantizer, InputQuantizer):
        old = layer.input_quantizer
        scale, zero_point = scale_of_range(*old.current_range(), old.bits)
        layer.input_quantizer = FixedInput(scale.detach().clone(), zero_point.detach().clone(), old.bits)
    return rounds


def numbers_of(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The whole numbers -n to n of a weight [O, ...] on the grid of its scales [O], as floats; 0 in channels of scale 0."""
    levels, steps = weight_levels(bits), by_channel(scale, weight)
    safe = torch.where(steps == 0, 1.0, steps)
    numbers = clip_through((weight / safe).round(), -levels, levels)
    return torch.where(steps == 0, 0.0, numbers)


def weight_of(numbers: Tensor, scale: Tensor, like: Tensor) -> Tensor:
    """The weight whose `numbers_of` these are."""
    # Adding 0 makes -0 0, which is how it comes back from a file.
    return (numbers.to(like.dtype) * by_channel(scale, like)) + 0.0


def _first_scale(weight: Tensor, bits: int, *, learnt: bool) -> Tensor:
    if weight.is_meta:
        return weight.new_empty(len(weight))
    if learnt:
        # LSQ, section 2.1.
        scale: Tensor = 2 * weight.detach().abs().flatten(1).mean(1) / weight_levels(bits) ** 0.5
        return scale.clamp_min(TINY)
    return observed_scale(weight, bits)


def _with_gradient_of(values: Tensor, factor: float) -> Tensor:
    """The values; their gradient is multiplied by `factor`."""
    scaled = values * factor
    return (values - scaled).detach() + scaled


def _wide(inputs: Tensor) -> Tensor:
    """Inputs of half precision as float32: bfloat16 has too few digits to be divided into 255 steps."""
    return inputs.float() if inputs.dtype in (torch.float16, torch.bfloat16) else inputs


def _phase(like: Tensor) -> Tensor:
    return torch.full((), int(Phase.OBSERVING), dtype=torch.uint8, device=like.device)


def _empty_like(layer: nn.Conv2d | nn.Linear) -> QuantizedLayer:
    """A layer with the options of `layer`, without storage."""
    if isinstance(layer, nn.Linear):
        return QuantizedLinear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    return QuantizedConv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,  # type: ignore[arg-type]
        stride=layer.stride,  # type: ignore[arg-type]
        padding=layer.padding,  # type: ignore[arg-type]
        dilation=layer.dilation,  # type: ignore[arg-type]
        groups=layer.groups,
        bias=layer.bias is not None,
        padding_mode=layer.padding_mode,
        device="meta",
    )
