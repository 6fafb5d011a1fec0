"""Uniform quantization of weights and activations to 2 to 8 bits, trained with straight-through gradients or done at the end.

The numbers are those of `parts.rounding`: weights symmetric with one scale per output channel, the inputs of convolutions and
linear layers with one scale and zero point per layer. The first and the last layer stay in full precision by default, as in the
literature (Zhou et al., DoReFa-Net, arXiv 1606.06160). Learnt ranges are LSQ's (Esser et al., arXiv 1902.08153).

Training rounds in every forward pass. Ranges are observed, or learnt after `WARM_UP_STEPS` passes, and frozen at the fraction
`freeze_at` of the training. With `train: false` the network trains in full precision and is rounded at its end, with ranges
from `calibration_samples` samples of the training split.

At the end, batch normalisation becomes a part of the rounded layer before it. Since scales are per channel, the whole numbers
of the weights remain the same, or change their sign. The stored file has these numbers, packed to their bits
(`parts.bit_packing`): for a layer `conv` the tensors `conv.weight.packed`, uint8, the numbers plus n in the weight's order,
and `conv.weight_scale`, float32 for each output channel.

Deviations: activations are rounded where a layer reads them, and not where they are made; LSQ has no zero point for inputs.
Verified against torch's fake quantization, Max's table of 1960 and LSQ's gradient.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from stillhouse.compress.operator import (
    Calibration,
    Card,
    Context,
    Conversion,
    History,
    Level,
    Moment,
    Operator,
    OperatorError,
    State,
    option,
    options_shown,
)
from stillhouse.compress.parts.bit_packing import pack_bits, unpack_bits
from stillhouse.compress.parts.folding import fold, following_norms
from stillhouse.compress.parts.layer_replacement import listed, plain_layers, replace_layers
from stillhouse.compress.parts.quantized_layers import (
    InputQuantizer,
    Phase,
    WeightQuantizer,
    finalise_layer,
    numbers_of,
    quantized_layer,
    quantized_layers,
    set_active,
    set_phase,
    weight_of,
)
from stillhouse.compress.parts.rounding import weight_levels
from stillhouse.models.modes import evaluating

WARM_UP_STEPS = 20
"""Forward passes in which learnt ranges of inputs are observed."""
_FULL = 32
_SAMPLES = "_calibration_samples"
_IN_SHORT = ("weight_bits", "activation_bits", "train")
"""The options that `readable` has without their names."""
_BITS = (2, 3, 4, 5, 6, 7, 8, _FULL)


@dataclass(frozen=True, kw_only=True)
class Quantize(Operator):
    """Rounds weights and the inputs of layers to a few bits."""

    card: ClassVar[Card] = Card(
        title="Learned Step Size Quantization",
        arxiv="1902.08153",
        does="Rounds weights and the inputs of convolutions and linear layers to a few bits, during training or after it.",
        effect="Fewer stored bytes, at the true number of bits. Parameters and MACs hardly change. "
        "Latency falls only where int8 is computed, as by onnxruntime; PyTorch simulates it and is slower.",
        deviations="inputs have a zero point; activations are rounded where they are read",
        suggested="8/8 also with train: false; fewer bits need training; the paper learns ranges down to 2 bits",
        interactions="last in the list of operators; a high temperature costs low-bit students accuracy",
    )
    neutral: ClassVar[Mapping[str, Any]] = {"weight_bits": 32, "activation_bits": 32}
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"weight_bits": 4, "activation_bits": 8},
        {"weight_bits": 2, "activation_bits": 2, "ranges": "learnt"},
        {"weight_bits": 8, "activation_bits": 8, "train": False},
        {"weight_bits": 3, "activation_bits": 32, "exempt": "none"},
    )

    weight_bits: int = option(8, choices=_BITS, help="of a weight: 2 to 8, or 32 for no rounding")
    activation_bits: int = option(8, choices=_BITS, help="of the inputs of a layer: 2 to 8, or 32 for no rounding")
    ranges: Literal["observed", "learnt"] = option(
        "observed", choices=("observed", "learnt"), help="ends of the ranges: from the values themselves, or trained (LSQ)"
    )
    freeze_at: float = option(
        0.8, above=0, maximum=1, help="fraction of the training after which ranges do not change; 1: never"
    )
    exempt: Literal["first_and_last", "none"] = option(
        "first_and_last", choices=("first_and_last", "none"), help="layers that stay in full precision"
    )
    train: bool = option(True, help="whether training rounds; otherwise the trained network is rounded at its end")
    calibration_samples: int = option(512, minimum=1, help="with train: false, training samples from which ranges are taken")

    def __post_init__(self) -> None:
        super().__post_init__()
        unused = ("calibration_samples",) if self.train else ("ranges", "freeze_at")
        for name in unused:
            if getattr(self, name) != self.defaults()[name]:
                warnings.warn(f"{name} has no effect with train={self.train}", stacklevel=3)

    @property
    def level(self) -> Level:
        return Level.PRECISION

    @property
    def needs_whole_batch(self) -> bool:
        return self.train and self.activation_bits != _FULL

    @property
    def readable(self) -> str:
        others = {name: value for name, value in self.changed_options().items() if name not in _IN_SHORT}
        shown = [f"{self.weight_bits}/{self.activation_bits}", *([] if self.train else ["after training"])]
        return f"{self.name}({', '.join([*shown, *options_shown(others)])})"

    @property
    def _changes_nothing(self) -> bool:
        return self.weight_bits == _FULL and self.activation_bits == _FULL

    def convert(self, model: nn.Module, context: Context) -> Conversion:
        if self._changes_nothing:
            return Conversion(model=model)
        layers = plain_layers(model, nn.Conv2d, nn.Linear)
        exempt = {*list(layers)[:1], *list(layers)[-1:]} if self.exempt == "first_and_last" else set()
        chosen = [name for name in layers if name not in exempt]
        if not layers:
            raise OperatorError("needs a convolution or a linear layer, and this network has none that can be replaced")
        if not chosen:
            raise OperatorError(
                f"needs a convolution or a linear layer besides the first and the last, and this network has {len(layers)} in "
                "all; set exempt to none",
                option="exempt",
            )
        folded = following_norms(model, context.example(model, 2)) if self.weight_bits < _FULL else {}
        history = {"layers": chosen, "folded": {name: norm for name, norm in folded.items() if name in chosen}}
        self._apply(model, history)
        if not self.train and context.calibration is not None:
            # finalise has no context.
            model.__dict__[_SAMPLES] = _Samples(context.calibration)
        notes = [f"in full precision: {listed(sorted(exempt, key=list(layers).index))}"] if exempt else []
        return Conversion(model=model, history=history, notes=notes)

    def replay(self, model: nn.Module, history: History, context: Context) -> nn.Module:
        if history:
            self._apply(model, history)
        return model

    def before_step(self, model: nn.Module, moment: Moment) -> None:
        """Begins the phase that the moment belongs to: full precision, warm-up, learning, frozen ranges."""
        if self._changes_nothing or not self.train:
            return
        for _, layer in quantized_layers(model):
            set_active(layer, active=not moment.full_precision)
        if moment.full_precision:
            return
        if self.freeze_at < 1 and moment.progress >= self.freeze_at:
            phase = Phase.FROZEN
        else:
            phase = Phase.LEARNING if self.ranges == "learnt" else Phase.OBSERVING
        for quantizer in _quantizers(model):
            if quantizer.known_phase != phase and (phase == Phase.OBSERVING or quantizer.has_seen(WARM_UP_STEPS)):
                set_phase(quantizer, phase)

    def finalise(self, model: nn.Module) -> None:
        if not self.train:
            self._calibrate(model)
        for _, layer in list(quantized_layers(model)):
            if finalise_layer(layer) and layer.folded_norm is not None:
                norm = model.get_submodule(layer.folded_norm)
                assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
                fold(layer, norm, self.weight_bits)
                parent, _, child = layer.folded_norm.rpartition(".")
                setattr(model.get_submodule(parent), child, nn.Identity())

    def pack(self, model: nn.Module, state: State, history: History) -> State:
        if self.weight_bits == _FULL:
            return state
        packed = dict(state)
        for name in history.get("layers", ()):
            weight, scale = f"{name}.weight", f"{name}.weight_scale"
            if weight in packed:
                numbers = numbers_of(packed[weight], packed[scale], self.weight_bits) + weight_levels(self.weight_bits)
                packed[f"{weight}.packed"] = pack_bits(numbers.flatten(), self.weight_bits)
                del packed[weight]
        return packed

    def unpack(self, model: nn.Module, packed: State, history: History) -> State:
        state = dict(packed)
        for name in history.get("layers", ()):
            stored = f"{name}.weight.packed"
            if stored in state:
                weight = model.get_submodule(name).get_parameter("weight")
                numbers = unpack_bits(state.pop(stored), self.weight_bits, weight.numel()) - weight_levels(self.weight_bits)
                scale = state[f"{name}.weight_scale"]
                state[f"{name}.weight"] = weight_of(numbers.reshape(weight.shape), scale, weight)
        return state

    def _apply(self, model: nn.Module, history: History) -> None:
        layers = plain_layers(model, nn.Conv2d, nn.Linear)
        replacements: dict[nn.Module, nn.Module] = {}
        for name in history["layers"]:
            layer = layers[name]
            assert isinstance(layer, nn.Conv2d | nn.Linear)
            replacements[layer] = quantized_layer(
                layer,
                weight_bits=self.weight_bits,
                activation_bits=self.activation_bits,
                learnt=self.ranges == "learnt" and self.train,
                train=self.train,
            )
        replace_layers(model, replacements)
        for name, quantized in quantized_layers(model):
            quantized.folded_norm = history["folded"].get(name)

    @torch.no_grad()
    def _calibrate(self, model: nn.Module) -> None:
        """Takes the ranges of the inputs from samples of the training split, in evaluation mode and full precision."""
        samples = model.__dict__.pop(_SAMPLES, None)
        quantizers = [quantizer for quantizer in _quantizers(model) if isinstance(quantizer, InputQuantizer)]
        if samples is None or not quantizers:
            return
        for quantizer in quantizers:
            quantizer.calibrating = True
        with evaluating(model):
            for images, _ in samples.batches(self.calibration_samples):
                model(images)
        for quantizer in quantizers:
            quantizer.calibrating = False


class _Samples:
    """The batches of a calibration; a copy of a network does not copy them."""

    def __init__(self, calibration: Calibration) -> None:
        self._calibration = calibration

    def batches(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        return self._calibration.batches(count)

    def __deepcopy__(self, _memo: object) -> "_Samples":
        return self


def _quantizers(model: nn.Module) -> Iterator[WeightQuantizer | InputQuantizer]:
    for _, layer in quantized_layers(model):
        for quantizer in (layer.weight_quantizer, layer.input_quantizer):
            if isinstance(quantizer, WeightQuantizer | InputQuantizer):
                yield quantizer
