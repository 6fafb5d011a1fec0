"""What a model costs: parameters, stored bytes, multiply-accumulates, memory, latency."""

import copy
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from stillhouse.models.example_input import example_input
from stillhouse.models.layers import Shape
from stillhouse.models.modes import evaluating
from stillhouse.models.weights import stored_bytes


@dataclass(frozen=True)
class ModelSize:
    """Attributes:
    parameters: number of all parameters, frozen ones included.
    size_bytes: length of the safetensors file of the weights, without metadata.
    macs: multiply-accumulates of convolutions and matrix products for one sample.
    """

    parameters: int
    trainable_parameters: int
    size_bytes: int
    macs: int


@dataclass(frozen=True)
class Latency:
    """Median and 95th percentile of the time of one forward pass of a batch."""

    batch_size: int
    p50_ms: float
    p95_ms: float


def measure_size(model: nn.Module, input_shape: Shape) -> ModelSize:
    """The size of `model` for one sample of `input_shape`; the model may be on the meta device and is not changed."""
    counter = FlopCounterMode(display=False, custom_mapping=_RECURRENT)
    with evaluating(model), torch.no_grad(), _plain_attention(), counter:
        model(example_input(model, 1, input_shape))
    parameters = list(model.parameters())
    return ModelSize(
        parameters=sum(parameter.numel() for parameter in parameters),
        trainable_parameters=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        size_bytes=stored_bytes(model),
        macs=counter.get_total_flops() // 2,
    )


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention as matrix products: the counter knows only some of the fused kernels, and each device has others."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _layer_on_cpu(inputs: Sequence[int], first: Sequence[int], second: Sequence[int], *_others: Any, **_more: Any) -> int:
    """Of one recurrent layer: input [L, B, K] and the weights for the input and for the state; each is used at every place."""
    return 2 * inputs[0] * inputs[1] * (first[0] * first[1] + second[0] * second[1])


def _layers_on_gpu(inputs: Sequence[int], weights: Sequence[Sequence[int]], *_others: Any, **_more: Any) -> int:
    """As `_layer_on_cpu`, of all layers and directions."""
    return 2 * inputs[0] * inputs[1] * sum(each[0] * each[1] for each in weights if len(each) == 2)


# Recurrent layers are one operation there, which the counter does not know; on the meta device they are matrix products.
_RECURRENT: dict[Any, Any] = {
    torch.ops.aten.mkldnn_rnn_layer: _layer_on_cpu,
    torch.ops.aten._cudnn_rnn: _layers_on_gpu,
}


class _LiveBytes(TorchDispatchMode):
    """Adds up the storages that operations make while they live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()
        self.now = 0
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self.watch, result)
        return result

    def watch(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        weakref.finalize(storage, self._gone, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _gone(self, size: int) -> None:
        self.now -= size


def peak_memory(model: nn.Module, input_shape: Shape, batch_size: int = 1) -> int:
    """The largest number of bytes that weights, buffers, inputs and results of operations hold together in one forward pass.

    Memory that one operation uses inside, such as the workspace of a convolution, and what an allocator holds in reserve are
    not in it, so that it does not depend on the machine.

    Args:
        model: is not changed; not on the meta device.
    """
    with evaluating(model), torch.no_grad(), _LiveBytes() as live:
        for tensor in (*model.parameters(), *model.buffers()):
            live.watch(tensor)
        images = example_input(model, batch_size, input_shape)
        live.watch(images)
        model(images)
    return int(live.peak)


def measure_latency(
    model: nn.Module,
    input_shape: Shape,
    *,
    device: str | torch.device = "cpu",
    batch_sizes: Sequence[int] = (1, 64),
    warmup: int = 5,
    repeats: int = 30,
    budget_s: float = 5.0,
) -> dict[int, Latency]:
    """Times forward passes of a copy of `model` in evaluation mode on `device`, by batch size.

    Args:
        model: is not changed; must not be on the meta device.
        input_shape: (channels, height, width).
        device: of the copy.
        batch_sizes: one result for each.
        warmup: passes that are not timed.
        repeats: passes that are timed.
        budget_s: seconds for each batch size after which the warm-up ends, and again for the timed passes; each has at least
            three passes.
    """
    device = torch.device(device)
    probe = copy.deepcopy(model).to(device).eval()
    latencies = {}
    with torch.no_grad():
        for batch_size in batch_sizes:
            images = example_input(probe, batch_size, input_shape).to(device)
            _timed_ms(probe, images, repeats=warmup, budget_s=budget_s)
            times_ms = _timed_ms(probe, images, repeats=repeats, budget_s=budget_s)
            p50, p95 = np.percentile(times_ms, (50, 95))
            latencies[batch_size] = Latency(batch_size, float(p50), float(p95))
    return latencies


def _timed_ms(model: nn.Module, images: Tensor, *, repeats: int, budget_s: float) -> list[float]:
    times_ms: list[float] = []
    _synchronise(images.device)
    end = time.perf_counter() + budget_s
    while len(times_ms) < repeats and (len(times_ms) < 3 or time.perf_counter() < end):
        start = time.perf_counter()
        model(images)
        _synchronise(images.device)
        times_ms.append(1000 * (time.perf_counter() - start))
    return times_ms


def _synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
