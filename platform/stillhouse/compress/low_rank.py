"""Low-rank factorisation: each convolution and linear layer becomes two or three smaller ones in a row.

The forms are those of `factorisation`: `channel` (Zhang et al., arXiv 1505.06798), `spatial` (Jaderberg et al., arXiv
1405.3866) and `tucker2` (Kim et al., arXiv 1511.06530); linear layers have one form.

Deviations: ranks are chosen for each layer by itself, by the share of its full rank or of its squared singular values. Zhang's
method fits the layers' responses on data instead, and Kim's chooses ranks by variational Bayes; here, training repairs
the rest.

Verified against tensorly, against the error that the singular values predict, and against the original layer at full rank.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from stillhouse.compress.operator import Card, Context, Conversion, History, Operator, OperatorError, option
from stillhouse.compress.parts.factorisation import (
    LayerRanks,
    extreme_ranks_by_energy,
    factored_convolution,
    factored_linear,
    ranks_by_energy,
    ranks_by_ratio,
    saved_weights,
)
from stillhouse.compress.parts.layer_replacement import listed, plain_layers, replace_layers

_ENERGY = 0.9


@dataclass(frozen=True, kw_only=True)
class LowRank(Operator):
    """Replaces layers by factors of a lower rank, where the factors have fewer weights."""

    card: ClassVar[Card] = Card(
        title="Low-rank factorisation",
        arxiv="1405.3866",
        does="Each convolution and linear layer becomes two or three layers with fewer weights, from its singular values.",
        effect="Fewer parameters and stored bytes. MACs fall less in layers with a stride, where the first factor works on a "
        "larger map. Latency may rise, since there are more layers.",
        deviations="ranks are chosen for each layer by itself, from its weights alone",
        suggested="energy 0.8 to 0.98 from a trained teacher; ratio 0.25 to 0.75",
        interactions="of fresh weights the singular values say little: use ratio without `from`",
    )
    neutral: ClassVar[Mapping[str, Any]] = {"ratio": 1.0}
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"ratio": 0.25},
        {"ratio": 0.25, "form": "spatial"},
        {"ratio": 0.5, "form": "tucker2"},
        {"energy": 0.7},
    )

    energy: float | None = option(
        None, above=0, maximum=1, help="share of a layer's squared singular values that remains; 0.9 unless ratio is given"
    )
    ratio: float | None = option(None, above=0, maximum=1, help="share of a layer's full rank that remains; instead of energy")
    form: Literal["channel", "spatial", "tucker2"] = option(
        "channel",
        choices=("channel", "spatial", "tucker2"),
        help="of convolutions; channel: k x k and 1x1; spatial: k x 1 and 1 x k; tucker2: 1x1, k x k and 1x1",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.energy is not None and self.ratio is not None:
            raise ValueError(f"energy must not be given together with ratio, got {self.energy!r} and {self.ratio!r}")

    @property
    def weights_decide_sizes(self) -> bool:
        return self.ratio is None

    @property
    def readable(self) -> str:
        share = {"energy": self._energy} if self.ratio is None else {"ratio": self.ratio}
        return self.name_with(share | self.changed_options())

    @property
    def _energy(self) -> float:
        return _ENERGY if self.energy is None else self.energy

    def convert(self, model: nn.Module, context: Context) -> Conversion:
        layers = plain_layers(model, nn.Conv2d, nn.Linear)
        if not layers:
            raise OperatorError("needs a convolution or a linear layer, and this network has none that can be replaced")
        total = sum(weight.numel() for weight in model.parameters())
        chosen: dict[str, LayerRanks] = {}
        grouped, unhelpful = [], []
        for name, layer in layers.items():
            if isinstance(layer, nn.Conv2d) and layer.groups > 1:
                grouped.append(name)
                continue
            ranks = self._ranks(layer)
            if saved_weights(tuple(_weight(layer).shape), self.form, ranks.ranks):
                chosen[name] = ranks
            else:
                unhelpful.append(name)
        self._replace(model, layers, {name: ranks.ranks for name, ranks in chosen.items()})
        notes = [
            *([] if self.ratio is not None else [self._size_note(total, layers)]),
            *([f"left as they are, since their factors would have no fewer weights: {listed(unhelpful)}"] if unhelpful else []),
            *([f"left as they are, since their channels are in groups: {listed(grouped)}"] if grouped else []),
        ]
        return Conversion(
            model=model, history={"ranks": {name: list(each.ranks) for name, each in chosen.items()}}, notes=notes
        )

    def replay(self, model: nn.Module, history: History, context: Context) -> nn.Module:
        self._replace(model, plain_layers(model, nn.Conv2d, nn.Linear), history["ranks"])
        return model

    def _size_note(self, total: int, layers: Mapping[str, nn.Module]) -> str:
        """Between which numbers of parameters the network has, whatever its weights are; `total` before the conversion."""
        least = most = total
        for layer in layers.values():
            if isinstance(layer, nn.Conv2d) and layer.groups > 1:
                continue
            shape = tuple(_weight(layer).shape)
            smallest, largest = extreme_ranks_by_energy(shape, self.form, self._energy)
            least -= saved_weights(shape, self.form, smallest.ranks)
            most -= saved_weights(shape, self.form, largest.ranks)
        return f"with energy {self._energy:g}, {least:,} to {most:,} parameters, as the weights decide"

    def _ranks(self, layer: nn.Module) -> LayerRanks:
        weight = _weight(layer)
        if self.ratio is not None:
            return ranks_by_ratio(tuple(weight.shape), self.form, self.ratio)
        return ranks_by_energy(weight, self.form, self._energy)

    def _replace(self, model: nn.Module, layers: Mapping[str, nn.Module], ranks: Mapping[str, Sequence[int]]) -> None:
        replace_layers(model, {layers[name]: self._factored(layers[name], tuple(each)) for name, each in ranks.items()})

    def _factored(self, layer: nn.Module, ranks: tuple[int, ...]) -> nn.Module:
        if isinstance(layer, nn.Conv2d):
            return factored_convolution(layer, self.form, ranks)
        assert isinstance(layer, nn.Linear)
        return factored_linear(layer, ranks[0])


def _weight(layer: nn.Module) -> Tensor:
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    return layer.weight
