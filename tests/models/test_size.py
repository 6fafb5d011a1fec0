"""Sizes against hand values, latency by its properties."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.models.registry import build_model, sketch_model
from stillhouse.models.size import measure_latency, measure_size, peak_memory
from stillhouse.models.weights import save_weights


def test_macs_of_a_linear_layer_are_inputs_times_outputs() -> None:
    size = measure_size(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), (3, 2, 2))
    assert size.macs == 12 * 5
    assert size.parameters == 12 * 5 + 5


def test_macs_of_a_grouped_convolution_are_counted_by_group() -> None:
    # 6 -> 4 channels in 2 groups, 3x3 kernel, stride 2 on 8x8 with padding 1: 4x4 outputs.
    net = nn.Sequential(nn.Conv2d(6, 4, 3, stride=2, padding=1, groups=2), nn.Flatten())
    assert measure_size(net, (6, 8, 8)).macs == 4 * 4 * 4 * (6 // 2) * 9


def test_batch_normalisation_and_activations_count_no_macs() -> None:
    assert measure_size(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten()), (3, 8, 8)).macs == 0


def test_frozen_parameters_are_not_trainable() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Linear(3, 2))
    net[1].requires_grad_(False)
    size = measure_size(net, (1, 2, 2))
    assert (size.parameters, size.trainable_parameters) == (4 * 3 + 3 + 3 * 2 + 2, 3 * 2 + 2)


@pytest.mark.parametrize("model", ["mlp", "lenet", "resnet8", "mobilenet_v2"])
def test_size_bytes_is_the_length_of_the_file(model: str, tmp_path: Path) -> None:
    sketch = sketch_model(model, num_classes=10, input_shape=(1, 8, 8))
    net = build_model(model, num_classes=10, input_shape=(1, 8, 8))
    save_weights(net, tmp_path / "weights.safetensors")
    expected = (tmp_path / "weights.safetensors").stat().st_size
    assert measure_size(sketch, (1, 8, 8)).size_bytes == expected
    assert measure_size(net, (1, 8, 8)).size_bytes == expected


def test_size_bytes_holds_for_every_dtype_and_for_names_beyond_ascii(tmp_path: Path) -> None:
    net = nn.Module()
    dtypes = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.float16, torch.bfloat16, torch.int32, torch.float32]
    for number, dtype in enumerate([*dtypes, torch.float64, torch.int64, torch.complex64, torch.float8_e4m3fn]):
        net.register_buffer(f"größe_{number}", torch.zeros(number * 37 + 1, dtype=dtype))
    net.register_buffer("scalar", torch.tensor(1.0))
    net.register_buffer("empty", torch.zeros(0, 3))
    net.forward = lambda images: images.flatten(1)
    save_weights(net, tmp_path / "weights.safetensors")
    assert measure_size(net, (1, 2, 2)).size_bytes == (tmp_path / "weights.safetensors").stat().st_size


def test_measuring_does_not_change_modes_and_random_generator() -> None:
    net = build_model("resnet8", num_classes=10, input_shape=(1, 8, 8)).train()
    net.bn1.eval()  # type: ignore[union-attr]
    before, mean = torch.get_rng_state(), net.bn1.running_mean.clone()  # type: ignore[union-attr,operator]
    measure_size(net, (1, 8, 8))
    measure_latency(net, (1, 8, 8), batch_sizes=(2,), warmup=1, repeats=2)
    assert net.training
    assert not net.bn1.training  # type: ignore[union-attr]
    assert net.layer1.training  # type: ignore[union-attr]
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(mean, net.bn1.running_mean)  # type: ignore[union-attr,arg-type]


def test_latency_has_a_positive_median_and_a_larger_tail() -> None:
    net = build_model("mlp", num_classes=10, input_shape=(1, 8, 8))
    latencies = measure_latency(net, (1, 8, 8), batch_sizes=(1, 4), warmup=1, repeats=5)
    assert list(latencies) == [1, 4]
    for batch_size, latency in latencies.items():
        assert latency.batch_size == batch_size
        assert 0 < latency.p50_ms <= latency.p95_ms


def test_a_spent_budget_ends_the_timing_after_three_passes() -> None:
    passes = []
    net = build_model("mlp", num_classes=10, input_shape=(1, 8, 8))
    net.register_forward_hook(lambda _module, _inputs, _output: passes.append(1))
    measure_latency(net, (1, 8, 8), batch_sizes=(1,), warmup=2, repeats=50, budget_s=0)
    assert len(passes) == 2 + 3


@pytest.mark.parametrize("batch", [1, 64])
def test_the_peak_of_a_chain_is_its_weights_with_the_two_largest_neighbours(batch: int) -> None:
    """Flattening copies nothing; the input outlives the pass, and while ReLU runs, it and the result hold 100 numbers each."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 100, bias=False), nn.ReLU(), nn.Linear(100, 10, bias=False))
    assert peak_memory(model, (1, 8, 8), batch) == 4 * (64 * 100 + 100 * 10) + 4 * batch * (64 + 100 + 100)


def test_memory_that_is_freed_and_taken_again_counts_once() -> None:
    layers = [nn.ReLU() for _ in range(50)]
    assert peak_memory(nn.Sequential(*layers), (1, 10, 10)) == peak_memory(nn.Sequential(*layers[:2]), (1, 10, 10)) == 4 * 300


def test_a_weight_that_two_layers_share_counts_once_and_an_operation_in_place_adds_nothing() -> None:
    first = nn.Linear(10, 10, bias=False)
    assert peak_memory(nn.Sequential(first, nn.ReLU(inplace=True), first), (10,)) == 4 * (100 + 10 + 10 + 10)


class _Attention(nn.Module):
    """One head on 4 tokens of width 8, by torch's fused function or its module."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.module = None if fused else nn.MultiheadAttention(8, 1, bias=False, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        tokens = images.flatten(2).mT
        if self.module is None:
            return F.scaled_dot_product_attention(tokens, tokens, tokens).flatten(1)
        mixed: Tensor = self.module(tokens, tokens, tokens, need_weights=False)[0]
        return mixed.flatten(1)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("fused", [True, False])
def test_attention_is_counted_on_every_device(device: str, fused: bool) -> None:
    # Scores and mixture: 2 x 4 x 4 x 8; the module's four projections: 4 x 4 x 8 x 8.
    expected = 2 * 4 * 4 * 8 + (0 if fused else 4 * 4 * 8 * 8)
    assert measure_size(_Attention(fused).to(device), (8, 2, 2)).macs == expected
