"""Pruning: removes whole channels, or sets single weights to zero.

Channels (`pattern: channels`) are removed through Torch-Pruning (DepGraph, arXiv 2301.12900), which finds the layers that
depend on each other, such as both ends of a shortcut. Importance of a channel, over all layers that lose it: `l1` and `l2`, the
norm of its weights (Li et al., arXiv 1608.08710); `taylor`, sum |w dL/dw| (Molchanov et al., CVPR 2019); `bn_scale`, |gamma| of
batch normalisation (Liu et al., arXiv 1708.06519); `random`, the control. What was removed is recorded, and removed again when
the stored student is loaded.

Single weights are set to zero by magnitude (Han et al., arXiv 1506.02626), anywhere (`pattern: unstructured`) or two of four
consecutive weights of an output (`pattern: 2:4`, Mishra et al., arXiv 2104.08378). The zeros stay zero during training.

A pruned network is worse until training has repaired it. Statistics of batch normalisation are measured again at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from stillhouse.compress.operator import (
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
)
from stillhouse.compress.parts.channels import (
    Cut,
    gradient_times_weight,
    measure_statistics,
    output_layer,
    remove_again,
    remove_channels,
    set_gradients,
)
from stillhouse.compress.parts.sparse import (
    MASK,
    Layer,
    best,
    decode,
    encode,
    is_smaller,
    masked_layers,
    num_kept,
    register_masks,
)
from stillhouse.spec.priors import Uniform

_SAMPLES = 512
"""Training samples that gradients and statistics of batch normalisation are computed from."""
_START = Moment(progress=0, epoch=0, step=0)


@dataclass(frozen=True, kw_only=True)
class Prune(Operator):
    """Removes the least important channels, or sets the least important weights to zero."""

    card: ClassVar[Card] = Card(
        title="DepGraph: Towards Any Structural Pruning",
        arxiv="2301.12900",
        does="Removes the least important channels, or sets the least important weights to zero and keeps them there.",
        effect="Removed channels make parameters, bytes and MACs smaller. Zeros make the file smaller, not MACs or latency.",
        deviations="Channels are removed at once before training, without a sparsifying penalty.",
        suggested="ratio 0.3 to 0.7, importance l2 or taylor; round_to 8 for hardware that works in eights.",
        interactions="Channels go before quantization. Of fresh weights, any importance is as good as random.",
    )
    neutral: ClassVar[Mapping[str, Any]] = {"ratio": 0.0}
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"ratio": 0.5},
        {"ratio": 0.4, "importance": "taylor", "scope": "global"},
        {"ratio": 0.5, "of": "macs", "importance": "bn_scale"},
        {"ratio": 0.3, "of": "parameters", "importance": "random", "round_to": 2},
        {"ratio": 0.7, "pattern": "unstructured"},
        {"pattern": "2:4", "ratio": 0.5, "importance": "l1"},
    )

    main_options: ClassVar[Sequence[str]] = ("ratio",)

    ratio: float = option(0.5, prior=Uniform(0.2, 0.8), minimum=0, below=1, help="the share that is removed")
    of: Literal["channels", "macs", "parameters"] = option(
        "channels", choices=("channels", "macs", "parameters"), help="what ratio is a share of"
    )
    importance: Literal["l1", "l2", "taylor", "bn_scale", "random"] = option(
        "l2", choices=("l1", "l2", "taylor", "bn_scale", "random"), help="which channels or weights stay"
    )
    scope: Literal["layer", "global"] = option(
        "layer", choices=("layer", "global"), help="ranks within each layer, or over the whole network"
    )
    round_to: int = option(1, minimum=1, help="numbers of channels become multiples of it")
    pattern: Literal["channels", "unstructured", "2:4"] = option(
        "channels", choices=("channels", "unstructured", "2:4"), help="whole channels, single weights, two of four weights"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pattern == "channels":
            return
        for name, value in (("of", "channels"), ("round_to", 1)):
            if getattr(self, name) != value:
                raise ValueError(f"{name} has no meaning with pattern {self.pattern}; leave it out")
        if self.importance == "bn_scale":
            raise ValueError(f"importance must not be bn_scale with pattern {self.pattern}: only a channel has one")
        if self.pattern == "2:4" and self.ratio != 0.5:
            raise ValueError(f"ratio must be 0.5 with pattern 2:4, which keeps two of four weights, got {self.ratio:g}")

    @property
    def level(self) -> Level:
        return Level.ARCHITECTURE if self.pattern == "channels" else Level.ZEROS

    @property
    def weights_decide_sizes(self) -> bool:
        return self.scope == "global" and self.ratio > 0 and self.pattern != "2:4"

    @property
    def readable(self) -> str:
        return self.name_with(self.changed_options()) if self.pattern == "2:4" else super().readable

    def convert(self, model: nn.Module, context: Context) -> Conversion:
        if self.ratio == 0:
            return Conversion(model=model)
        if self.pattern != "channels":
            return self._mask(model, context)
        sketched = _is_meta(model)
        if sketched:
            _fill(model)  # Which channels are removed depends on values, how many of a layer does not.
        taylor = self.importance == "taylor" and context.calibration is not None
        if taylor:
            set_gradients(model, context, _SAMPLES)
        importance = "l2" if self.importance == "taylor" and not taylor else self.importance
        cut = Cut(ratio=self.ratio, of=self.of, importance=importance, is_global=self.scope == "global", round_to=self.round_to)
        removed, whole, kept = remove_channels(model, context, cut)
        model.zero_grad(set_to_none=True)
        if context.trained:
            measure_statistics(model, context, _SAMPLES)
        if sketched:
            model.to("meta")
        notes = [f"{name} keeps all its channels, since all of them would go" for name in whole]
        return Conversion(model=model, history={"removed": removed}, notes=notes, kept_channels=kept)

    def replay(self, model: nn.Module, history: History, context: Context) -> nn.Module:
        if "removed" in history:
            sketched = _is_meta(model)
            if sketched:
                _fill(model)
            remove_again(model, context, history["removed"])
            if sketched:
                model.to("meta")
        register_masks(model, dict.fromkeys(history.get("kept", {})))
        return model

    def after_step(self, model: nn.Module, moment: Moment) -> None:
        with torch.no_grad():
            for layer, mask in masked_layers(model):
                layer.weight.mul_(mask)

    def finalise(self, model: nn.Module) -> None:
        for layer, _mask in list(masked_layers(model)):
            delattr(layer, MASK)

    def pack(self, model: nn.Module, state: State, history: History) -> State:
        """A pruned `x.weight` becomes `x.weight.nonzero` and `x.weight.values`, as `parts.sparse.encode` writes them."""
        kept = {f"{name}.weight": count for name, count in history.get("kept", {}).items()}
        packed: dict[str, Tensor] = {}
        for name, value in state.items():
            if name in kept and is_smaller(value.numel(), kept[name], value.element_size()):
                packed[f"{name}.nonzero"], packed[f"{name}.values"] = encode(value, kept[name])
            else:
                packed[name] = value
        return packed

    def unpack(self, model: nn.Module, packed: State, history: History) -> State:
        state = dict(packed)
        for layer in history.get("kept", {}):
            name = f"{layer}.weight"
            if f"{name}.nonzero" in state:
                shape = model.get_submodule(layer).get_parameter("weight").shape
                state[name] = decode(state.pop(f"{name}.nonzero"), state.pop(f"{name}.values"), shape)
        return state

    def _mask(self, model: nn.Module, context: Context) -> Conversion:
        """The network with masks that keep the most important weights of every layer before the last."""
        last = output_layer(model, context)
        layers = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, nn.Conv2d | nn.Linear) and module is not last
        }
        if not layers:
            raise OperatorError("finds no convolution and no linear layer before the last one")
        in_fours = {name: layer for name, layer in layers.items() if layer.weight[0].numel() % 4 == 0}
        chosen = in_fours if self.pattern == "2:4" else layers
        if not chosen:
            raise OperatorError("finds no layer whose outputs have a multiple of four weights", option="pattern")
        kept = {name: num_kept(layer.weight.numel(), self.ratio) for name, layer in chosen.items()}
        if _is_meta(model):
            register_masks(model, dict.fromkeys(chosen))
        else:
            masks = self._masks(self._scores(chosen, model, context), kept)
            register_masks(model, masks)
            kept = {name: int(mask.sum()) for name, mask in masks.items()}
            self.after_step(model, _START)
        total = sum(layer.weight.numel() for layer in chosen.values())
        notes = [
            f"{total - sum(kept.values()):,} of {total:,} weights are zero; MACs and latency stay those of the dense network, "
            "and the file has one bit for each weight and the other weights' values"
        ]
        notes += [
            f"{name} stays dense: an output of it has no multiple of four weights" for name in layers if name not in chosen
        ]
        return Conversion(model=model, history={"kept": kept}, notes=notes)

    def _masks(self, scores: Mapping[str, Tensor], kept: Mapping[str, int]) -> dict[str, Tensor]:
        """By layer, True for each weight that stays."""
        if self.pattern == "2:4":
            return {name: best(score.reshape(-1, 4), 2).reshape(score.shape) for name, score in scores.items()}
        if self.scope == "layer":
            return {name: best(score.reshape(1, -1), kept[name]).reshape(score.shape) for name, score in scores.items()}
        everything = torch.cat([score.flatten() for score in scores.values()])
        chosen = best(everything[None], num_kept(len(everything), self.ratio))[0]
        parts = chosen.split([score.numel() for score in scores.values()])
        return {name: part.reshape(scores[name].shape) for name, part in zip(scores, parts, strict=True)}

    def _scores(self, layers: Mapping[str, Layer], model: nn.Module, context: Context) -> dict[str, Tensor]:
        if self.importance == "random":
            generator = context.generator
            return {name: torch.rand(layer.weight.shape, generator=generator) for name, layer in layers.items()}
        if self.importance == "taylor" and context.calibration is not None:
            set_gradients(model, context, _SAMPLES)
            found = {name: gradient_times_weight(layer) for name, layer in layers.items()}
            model.zero_grad(set_to_none=True)
            return found
        return {name: layer.weight.detach().abs() for name, layer in layers.items()}


def _is_meta(model: nn.Module) -> bool:
    return any(weight.is_meta for weight in model.parameters())


def _fill(model: nn.Module) -> None:
    """Gives a network without storage values that are always the same."""
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=generator))
            else:
                value.zero_()
