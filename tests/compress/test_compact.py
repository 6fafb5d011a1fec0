"""Compact convolutions in networks: which convolutions become others, at which size, and which stay."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from stillhouse.compress.compact import Compact
from stillhouse.compress.operator import Context, OperatorError
from stillhouse.compress.parts.compact_convolutions import GhostConvolution
from stillhouse.models.registry import build_model, sketch_model
from stillhouse.models.size import measure_size
from stillhouse.testing import check_operator

SHAPE = (3, 32, 32)
CONTEXT = Context(num_classes=10, input_shape=SHAPE)


def converted(model: str, **options: Any) -> nn.Module:
    return Compact(**options).convert(sketch_model(model, num_classes=10, input_shape=SHAPE), CONTEXT).model


@pytest.mark.parametrize("options", Compact.examples, ids=str)
def test_it_passes_every_check_of_operators(options: Mapping[str, Any]) -> None:
    check_operator(Compact(**options))


def test_the_weights_are_those_of_ghost_resnet_without_its_normalisation() -> None:
    def convolutions(model: nn.Module) -> list[int]:
        layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)]
        return [layer.weight.numel() for name, layer in layers if "downsample" not in name]

    published = sketch_model("ghost_resnet20", num_classes=10, input_shape=SHAPE)
    assert convolutions(converted("resnet20")) == convolutions(published)


def test_the_first_convolution_and_those_in_groups_remain_and_are_listed() -> None:
    conversion = Compact().convert(sketch_model("mobilenet_v2", num_classes=10, input_shape=SHAPE), CONTEXT)
    notes = "; ".join(conversion.notes)
    assert "conv1.0, since it is the first convolution" in notes
    assert "in groups already" in notes
    assert not isinstance(conversion.model.get_submodule("conv1.0"), GhostConvolution)


@pytest.mark.parametrize("kind", ["ghost", "depthwise_separable", "grouped"])
@pytest.mark.parametrize("model", ["resnet8", "vgg8", "nin", "wrn_16_1"])
def test_networks_become_smaller_and_cheaper(model: str, kind: str) -> None:
    before = measure_size(sketch_model(model, num_classes=10, input_shape=SHAPE), SHAPE)
    after = measure_size(converted(model, kind=kind), SHAPE)
    assert after.parameters < before.parameters
    assert after.macs < before.macs


def test_a_larger_ratio_is_a_smaller_network() -> None:
    for kind in ("ghost", "grouped"):
        counts = [measure_size(converted("resnet8", kind=kind, ratio=ratio), SHAPE).parameters for ratio in (1, 2, 4)]
        assert counts == sorted(set(counts), reverse=True)


def test_channels_that_cannot_be_divided_remain_and_are_listed() -> None:
    conversion = Compact(kind="grouped", ratio=32).convert(sketch_model("resnet8", num_classes=10, input_shape=SHAPE), CONTEXT)
    assert any("layer1.0.conv1" in note and "cannot be divided into 32 groups" in note for note in conversion.notes)
    assert isinstance(conversion.model.get_submodule("layer3.0.conv2"), nn.Sequential)


def test_names_of_layers_that_methods_read_remain() -> None:
    before = dict(sketch_model("resnet8", num_classes=10, input_shape=SHAPE).named_modules())
    assert before.keys() <= dict(converted("resnet8").named_modules()).keys()


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("mlp", {}, "needs a convolution"),
        ("resnet8", {"kind": "grouped", "ratio": 7}, "can replace no convolution of this network"),
    ],
)
def test_networks_in_which_nothing_can_be_replaced_are_refused(model: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(OperatorError, match=words):
        converted(model, **options)


@pytest.mark.parametrize("options", [{"kind": "shift"}, {"ratio": 0}, {"dw_size": 2}, {"dw_size": 0}])
def test_values_out_of_their_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Compact(**options)


def test_a_setting_without_effect_warns() -> None:
    with pytest.warns(UserWarning, match="ratio has no effect with kind='depthwise_separable'"):
        Compact(kind="depthwise_separable", ratio=3)
    with pytest.warns(UserWarning, match="dw_size has no effect with kind='grouped'"):
        Compact(kind="grouped", dw_size=5)


def test_the_seed_decides_fresh_weights() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(0)
        model = build_model("resnet8", num_classes=10, input_shape=SHAPE)
        context = Context(num_classes=10, input_shape=SHAPE, seed=seed)
        parts = Compact().convert(model, context).model.parameters()
        return torch.cat([part.detach().flatten() for part in parts])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
