"""Batch normalisation that follows a convolution or linear layer becomes a part of that layer's weight and bias.

gamma (W x + b - mean) / sigma + beta = (f W) x + f (b - mean) + beta,  f = gamma / sigma,  sigma^2 = var + eps
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.compress.parts.quantized_layers import QuantizedLayer, numbers_of, weight_of
from stillhouse.compress.parts.rounding import by_channel
from stillhouse.models.modes import evaluating

_SMALLEST = 1e-30
"""A smaller scale counts as 0: its products with whole numbers may be too small for float32."""


def following_norms(model: nn.Module, example: Tensor) -> dict[str, str]:
    """The batch normalisation that each convolution or linear layer can take over, by names.

    The normalisation must be the only reader of the layer's output, and both must run once. The graph of gradients tells.

    Args:
        model: may be on the meta device; its mode and weights do not change.
        example: images [2, channels, H, W] on the model's device.
    """
    layers: dict[str, list[Tensor]] = {}
    norms: dict[str, list[Tensor]] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            handles.append(module.register_forward_hook(_keep_output(layers.setdefault(name, []))))
        elif isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine and module.track_running_stats:
            handles.append(module.register_forward_hook(_keep_input(norms.setdefault(name, []))))
    try:
        with evaluating(model), torch.enable_grad():
            outputs = model(example.detach().requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    readers = _readers(outputs)
    found = {}
    for layer, given in layers.items():
        for norm, taken in norms.items():
            if len(given) == len(taken) == 1 and given[0] is taken[0] and readers[given[0].grad_fn] == 1:
                found[layer] = norm
    return found


@torch.no_grad()
def fold(layer: QuantizedLayer, norm: nn.modules.batchnorm._BatchNorm, bits: int) -> None:
    """Puts `norm`, as it is in evaluation mode, into the layer's weight and bias.

    Args:
        layer: gets a bias if it has none. Its weight is on the grid of its buffer `weight_scale`, and remains so.
        bits: of the layer's weight.
    """
    assert norm.running_var is not None
    assert norm.running_mean is not None
    factor = norm.weight / (norm.running_var + norm.eps).sqrt()
    scale = layer.get_buffer("weight_scale")
    numbers = numbers_of(layer.weight, scale, bits) * by_channel(factor.sign(), layer.weight)
    scaled = scale * factor.abs()
    scale.copy_(torch.where(scaled < _SMALLEST, 0.0, scaled))
    layer.weight.copy_(weight_of(numbers, scale, layer.weight))
    old = 0.0 if layer.bias is None else layer.bias
    bias = norm.bias + factor * (old - norm.running_mean)
    layer.bias = nn.Parameter(bias.to(layer.weight.dtype), requires_grad=layer.weight.requires_grad)


def _keep_output(place: list[Tensor]) -> Any:
    def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        place.append(output)

    return keep


def _keep_input(place: list[Tensor]) -> Any:
    def keep(_module: nn.Module, inputs: tuple[Tensor, ...], _output: Any) -> None:
        place.append(inputs[0])

    return keep


def _readers(outputs: Any) -> Counter[Any]:
    """How many operations, or outputs, read the result of each node of the graph of gradients."""
    counts: Counter[Any] = Counter()
    pending = [tensor.grad_fn for tensor in _tensors(outputs) if tensor.grad_fn is not None]
    counts.update(pending)
    seen = set(pending)
    while pending:
        for node, _ in pending.pop().next_functions:
            if node is not None:
                counts[node] += 1
                if node not in seen:
                    seen.add(node)
                    pending.append(node)
    return counts


def _tensors(outputs: Any) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, Mapping):
        for value in outputs.values():
            yield from _tensors(value)
    elif isinstance(outputs, list | tuple):
        for value in outputs:
            yield from _tensors(value)
