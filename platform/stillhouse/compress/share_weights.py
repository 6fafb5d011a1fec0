"""Weight sharing: the weights of each layer have at most k different values, which are trained (Han et al., arXiv 1510.00149).

k-means finds the values of each convolution and linear layer. From then on a weight keeps its cluster, and after each training
step the weights of a cluster are their mean: the centroid moves by the mean of its weights' gradients.

The stored file has for a layer `conv` the tensors `conv.weight.codebook`, float32 [k], ascending and filled up with its last
value, and `conv.weight.indices`, uint8: the place of each weight in the codebook, in the weight's order, packed to log2(k) bits
(`parts.bit_packing`).

Deviations: the paper moves a centroid by the sum of the gradients, which has another best learning rate for each cluster. Fresh
weights are shared after a part of the training (`share_at`), since their clusters would mean nothing. The paper also codes
indices by Huffman's algorithm.

Verified against scikit-learn's k-means with the same start, and against means computed by hand.
"""

from collections.abc import Iterator, Mapping, Sequence
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
from stillhouse.compress.parts.bit_packing import pack_bits, packed_length, unpack_bits
from stillhouse.compress.parts.codebooks import cluster, means_of_clusters, nearest
from stillhouse.compress.parts.layer_replacement import listed, plain_layers

_CLUSTERS = "cluster_places"
"""The buffer of a layer with the cluster of each of its weights."""
_DUE = "share_at"
"""The buffer of a layer with the fraction of the training after which its weights are shared; `_DONE` from then on."""
_DONE = -1.0
_KNOWN = "_share_at"
"""A layer's attribute with the value of `_DUE`, so that no step waits for a GPU to read it."""
_FRESH_SHARE_AT = 0.5


@dataclass(frozen=True, kw_only=True)
class ShareWeights(Operator):
    """Lets the weights of a layer share a few values."""

    card: ClassVar[Card] = Card(
        title="Deep Compression: trained quantization and weight sharing",
        arxiv="1510.00149",
        does="The weights of each layer share at most k values, found by k-means and trained further.",
        effect="Fewer stored bytes: log2(k) bits for a weight, and a codebook. Parameters, MACs and latency stay the same.",
        deviations="a centroid moves by the mean of its weights' gradients; no Huffman code",
        suggested="k 16 for convolutions and 32 in linear layers lost no accuracy in the paper; k 4 needs training",
        interactions="after pruning, zero stays a value of its own; before quantization, the file has the quantized numbers",
    )
    neutral: ClassVar[Mapping[str, Any]] = {"k": None}
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({"k": 16}, {"k": 5, "share_at": 0.5, "start": "density"})

    main_options: ClassVar[Sequence[str]] = ("k",)

    k: int | None = option(16, minimum=2, maximum=256, help="values that a layer's weights share; null: all, no sharing")
    start: Literal["linear", "density"] = option(
        "linear", choices=("linear", "density"), help="first centroids: at equal distances, or at equal shares of the weights"
    )
    share_at: float | None = option(
        None,
        minimum=0,
        below=1,
        help="fraction of the training after which weights are shared; by default 0 with a teacher's weights, else 0.5",
    )

    @property
    def level(self) -> Level:
        return Level.VALUES

    @property
    def weight_bits(self) -> int:
        return 32 if self.k is None else _bits(self.k)

    def convert(self, model: nn.Module, context: Context) -> Conversion:
        if self.k is None:
            return Conversion(model=model)
        layers = plain_layers(model, nn.Conv2d, nn.Linear)
        if not layers:
            raise OperatorError("needs a convolution or a linear layer, and this network has none that can be changed")
        small = [name for name, layer in layers.items() if not _saves(_weight(layer).numel(), self.k)]
        chosen = [name for name in layers if name not in small]
        if not chosen:
            raise OperatorError(f"finds no layer with enough weights for a codebook of {self.k} values; lower k", option="k")
        share_at = self.share_at if self.share_at is not None else 0.0 if context.trained else _FRESH_SHARE_AT
        for name in chosen:
            _prepare(layers[name], share_at)
            if share_at == 0 and not _weight(layers[name]).is_meta:
                self._share(layers[name])
        notes = [f"not shared, since they would take no fewer bytes: {listed(small)}"] if small else []
        return Conversion(model=model, history={"layers": chosen, "share_at": share_at}, notes=notes)

    def replay(self, model: nn.Module, history: History, context: Context) -> nn.Module:
        for name in history.get("layers", ()):
            _prepare(model.get_submodule(name), _DONE)
        return model

    def before_step(self, model: nn.Module, moment: Moment) -> None:
        """Decides the clusters when their time has come."""
        for layer in _shared_layers(model):
            if _due(layer) <= moment.progress and _due(layer) != _DONE:
                self._share(layer)

    def after_step(self, model: nn.Module, moment: Moment) -> None:
        """Gives the weights of a cluster their mean."""
        for layer in _shared_layers(model):
            if _due(layer) == _DONE:
                places = layer.get_buffer(_CLUSTERS)
                _set_weight(layer, means_of_clusters(_weight(layer), places, self.k or 0))

    def finalise(self, model: nn.Module) -> None:
        for layer in list(_shared_layers(model)):
            if not _weight(layer).is_meta and _due(layer) != _DONE:
                self._share(layer)
            layer.__dict__.pop(_KNOWN, None)
            for name in (_CLUSTERS, _DUE):
                delattr(layer, name)

    def pack(self, model: nn.Module, state: State, history: History) -> State:
        packed = dict(state)
        for name in history.get("layers", ()):
            weight = f"{name}.weight"
            if weight in packed:
                assert self.k is not None
                codebook, indices = _encoded(packed.pop(weight), self.k)
                packed[f"{weight}.codebook"], packed[f"{weight}.indices"] = codebook, indices
        return packed

    def unpack(self, model: nn.Module, packed: State, history: History) -> State:
        state = dict(packed)
        for name in history.get("layers", ()):
            weight = f"{name}.weight"
            if f"{weight}.indices" in state:
                assert self.k is not None
                shape = model.get_submodule(name).get_parameter("weight").shape
                places = unpack_bits(state.pop(f"{weight}.indices"), _bits(self.k), shape.numel())
                state[weight] = state.pop(f"{weight}.codebook")[places.long()].reshape(shape)
        return state

    def _share(self, layer: nn.Module) -> None:
        """Decides the clusters of a layer's weights, and gives each weight its centroid."""
        assert self.k is not None
        weight = _weight(layer)
        codebook, places = cluster(weight, self.k, self.start)
        layer.get_buffer(_CLUSTERS).copy_(places)
        layer.get_buffer(_DUE).fill_(_DONE)
        layer.__dict__[_KNOWN] = _DONE
        _set_weight(layer, codebook)


def _bits(k: int) -> int:
    """Bits of a place in a codebook of k values: log2(k), rounded up."""
    return (k - 1).bit_length()


def _saves(count: int, k: int) -> bool:
    """Whether places and codebook take fewer bytes than `count` weights in float32."""
    return packed_length(count, _bits(k)) + 4 * k < 4 * count


def _weight(layer: nn.Module) -> Tensor:
    return layer.get_parameter("weight")


@torch.no_grad()
def _set_weight(layer: nn.Module, codebook: Tensor) -> None:
    """Gives each weight the value of its cluster."""
    weight, places = _weight(layer), layer.get_buffer(_CLUSTERS)
    weight.copy_(codebook.to(weight.device, weight.dtype)[places.long()])


def _prepare(layer: nn.Module, share_at: float) -> None:
    weight = _weight(layer)
    layer.register_buffer(_CLUSTERS, torch.zeros(weight.shape, dtype=torch.uint8, device=weight.device))
    layer.register_buffer(_DUE, torch.full((), share_at, dtype=torch.float64, device=weight.device))


def _due(layer: nn.Module) -> float:
    if _KNOWN not in layer.__dict__:
        layer.__dict__[_KNOWN] = float(layer.get_buffer(_DUE))
    known: float = layer.__dict__[_KNOWN]
    return known


def _shared_layers(model: nn.Module) -> Iterator[nn.Module]:
    """By their buffer: another operator may have replaced the layers."""
    return (module for module in model.modules() if _CLUSTERS in module._buffers)


def _encoded(weight: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Codebook [k] and packed places of a weight with at most `k` different values."""
    if weight.is_meta:
        return weight.new_empty(k), pack_bits(weight.flatten(), _bits(k))
    values = weight.flatten().unique(sorted=True)
    assert len(values) <= k, f"a shared weight has {len(values)} values, more than k = {k}"
    places = nearest(weight, values) if len(values) > 1 else torch.zeros(weight.shape, device=weight.device)
    return torch.cat([values, values[-1:].expand(k - len(values))]), pack_bits(places.flatten(), _bits(k))
