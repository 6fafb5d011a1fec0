"""GhostNet against the authors' model: outputs and gradients of the modules; layers, parameters and MACs of the network."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from stillhouse.models.architecture import describe
from stillhouse.models.ghost import GhostBottleneck, GhostModule
from stillhouse.models.registry import sketch_model
from stillhouse.models.size import measure_size
from stillhouse.testing import ReferenceCase

CASES = Path(__file__).parents[1] / "reference" / "cases"
IMAGENET = (3, 224, 224)


def check_module(module: nn.Module, case: ReferenceCase, dtype: torch.dtype) -> None:
    """Compares the output, and the gradients of images and weights, with those of the authors' module of the same weights."""
    module.to(dtype)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            weight.copy_(case[f"w.{name}"])
    output = module(case["in.x"])
    loss = (output * case["in.R"]).sum()
    case.check(output, "out.y")
    case.check(loss)
    case.check_gradients(loss, "x")
    loss.backward()
    for name, weight in module.named_parameters():
        assert weight.grad is not None
        case.check(weight.grad, f"grad.w.{name}")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_a_ghost_module_computes_what_the_authors_does(dtype: torch.dtype) -> None:
    case = ReferenceCase(CASES / "ghostnet-ghostmodule.npz", dtype)
    ratio, dw_size = int(case.number("ratio")), int(case.number("dw_size"))
    check_module(GhostModule(6, 8, kernel_size=1, ratio=ratio, dw_size=dw_size), case, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_a_ghost_bottleneck_computes_what_the_authors_does(dtype: torch.dtype) -> None:
    case = ReferenceCase(CASES / "ghostnet-ghostbottleneck.npz", dtype)
    channels = [int(case.number(name)) for name in ("in_chs", "mid_chs", "out_chs")]
    check_module(GhostBottleneck(*channels, dw_size=3, stride=1), case, dtype)


def test_ghostnet_has_the_parameters_macs_and_names_of_the_authors_model() -> None:
    with np.load(CASES / "ghostnet-model.npz") as reference:
        model = sketch_model("ghostnet", num_classes=1000, input_shape=IMAGENET)
        size = measure_size(model, IMAGENET)
        assert size.parameters == int(reference["w1.0.params"]) == 5182508
        assert size.macs == int(reference["w1.0.macs_224"]) == 141150512
        theirs = dict(zip(reference["w1.0.param_names"].tolist(), reference["w1.0.param_numel"].tolist(), strict=True))
        assert {name: weight.numel() for name, weight in model.named_parameters()} == theirs
        buffers = [buffer for name, buffer in model.named_buffers() if not name.endswith("num_batches_tracked")]
        counted = sum(buffer.numel() for buffer in buffers)
        assert int(reference["w1.0.buffers"]) in (counted, counted + len(buffers) // 2)


def test_ghostnet_has_the_map_shapes_of_the_authors_model() -> None:
    with np.load(CASES / "ghostnet-model.npz") as reference:
        shapes = dict(zip(reference["w1.0.layer_names"].tolist(), reference["w1.0.layer_out_chw"].tolist(), strict=True))
    model = sketch_model("ghostnet", num_classes=1000, input_shape=IMAGENET)
    ours = describe(model, name="ghostnet", input_shape=IMAGENET).shapes
    points = {"global_pool", "classifier"}
    assert {layer: (*ours[layer], 1, 1) if layer in points else ours[layer] for layer in shapes} == {
        layer: tuple(shape) for layer, shape in shapes.items()
    }


@pytest.mark.parametrize("ratio", [1, 2, 3, 4])
def test_a_module_of_any_ratio_returns_the_requested_channels(ratio: int) -> None:
    module = GhostModule(5, 7, kernel_size=3, ratio=ratio, dw_size=5, stride=2)
    assert module(torch.randn(2, 5, 9, 9)).shape == (2, 7, 5, 5)
    primary = -(-7 // ratio)
    weights = 5 * primary * 9 + primary * (ratio - 1) * 25 + 2 * primary * ratio
    assert sum(weight.numel() for weight in module.parameters()) == weights


def test_the_first_maps_are_those_of_the_primary_convolution() -> None:
    torch.manual_seed(0)
    module = GhostModule(4, 6, kernel_size=3)
    maps = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(module(maps)[:, :3], module.primary_conv(maps))
