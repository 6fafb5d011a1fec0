"""Low-rank factorisation of networks: which layers it changes, and which it leaves as they are."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from stillhouse.compress.low_rank import LowRank
from stillhouse.compress.operator import Context, OperatorError
from stillhouse.compress.parts.factorisation import Form
from stillhouse.models.registry import build_model, sketch_model
from stillhouse.models.size import measure_size
from stillhouse.testing import check_operator

SHAPE = (3, 16, 16)
CONTEXT = Context(num_classes=5, input_shape=SHAPE)


def network(name: str = "resnet8") -> nn.Module:
    torch.manual_seed(0)
    return build_model(name, num_classes=5, input_shape=SHAPE).eval()


@pytest.mark.parametrize("options", LowRank.examples, ids=str)
def test_it_passes_every_check_of_operators(options: Mapping[str, Any]) -> None:
    check_operator(LowRank(**options))


@pytest.mark.parametrize("model", ["mlp", "lenet"])
def test_it_passes_every_check_on_networks_with_large_linear_layers(model: str) -> None:
    check_operator(LowRank(ratio=0.25), model=model)


def test_a_layer_becomes_two_with_the_weights_of_its_rank() -> None:
    model = LowRank(ratio=0.25).convert(network(), CONTEXT).model
    # layer3.0.conv2 is 64 x 64 x 3 x 3: rank 16 of 64, so 16 x (64 x 9 + 64) weights instead of 36864.
    factored = model.get_submodule("layer3.0.conv2")
    assert [tuple(weight.shape) for weight in factored.parameters()] == [(16, 64, 3, 3), (64, 16, 1, 1)]


def test_layers_without_saving_are_left_alone_and_listed() -> None:
    before = network()
    stem, classifier = before.get_submodule("conv1"), before.get_submodule("fc")
    conversion = LowRank(ratio=0.75).convert(before, CONTEXT)
    # 3 x 16 x 3 x 3 at rank 12 of 16: 12 x (27 + 16) = 516 > 432; 64 x 5 at rank 4: 4 x 69 = 276 < 320.
    assert conversion.model.get_submodule("conv1") is stem
    assert conversion.model.get_submodule("fc") is not classifier
    assert "conv1" not in conversion.history["ranks"]
    assert conversion.history["ranks"]["fc"] == [4]
    (note,) = conversion.notes
    assert "conv1" in note
    assert "no fewer weights" in note


def test_channels_in_groups_are_left_alone_and_listed() -> None:
    conversion = LowRank(ratio=0.3).convert(network("mobilenet_v2"), CONTEXT)
    assert any("groups" in note and "blocks.0.0.conv.3" in note for note in conversion.notes)
    depthwise = [module for module in conversion.model.modules() if isinstance(module, nn.Conv2d) and module.groups > 1]
    assert len(depthwise) == 17


def test_ratio_one_and_energy_one_leave_every_layer() -> None:
    for operator in (LowRank(ratio=1), LowRank(energy=1), LowRank(ratio=1, form="spatial"), LowRank(ratio=1, form="tucker2")):
        model = network()
        layers = dict(model.named_modules())
        assert dict(operator.convert(model, CONTEXT).model.named_modules()) == layers


def test_energy_keeps_what_the_singular_values_say() -> None:
    model = network("mlp")
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    before = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    conversion = LowRank(energy=0.6).convert(model, CONTEXT)
    for name, (rank,) in conversion.history["ranks"].items():
        squares = torch.linalg.svdvals(before[name].double()).square()
        assert squares[:rank].sum() >= 0.6 * squares.sum() > squares[: rank - 1].sum()
        first, second = (conversion.model.get_parameter(f"{name}.{part}.weight") for part in ("first", "second"))
        error = (before[name] - second @ first).detach().norm() ** 2
        torch.testing.assert_close(error.double(), squares[rank:].sum(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("form", ["channel", "spatial", "tucker2"])
def test_fewer_ranks_are_fewer_parameters_and_macs(form: Form) -> None:
    sizes = []
    for ratio in (0.1, 0.3, 0.5, 1.0):
        sketch = sketch_model("vgg8", num_classes=5, input_shape=SHAPE)
        sizes.append(measure_size(LowRank(ratio=ratio, form=form).convert(sketch, CONTEXT).model, SHAPE))
    parameters, macs = [size.parameters for size in sizes], [size.macs for size in sizes]
    assert parameters == sorted(set(parameters))
    assert macs == sorted(set(macs))


def test_names_of_layers_that_methods_read_remain() -> None:
    before = dict(network().named_modules())
    after = dict(LowRank(ratio=0.25).convert(network(), CONTEXT).model.named_modules())
    assert before.keys() <= after.keys()


def test_only_energy_lets_weights_decide_the_sizes() -> None:
    assert LowRank().weights_decide_sizes
    assert LowRank(energy=0.9).weights_decide_sizes
    assert not LowRank(ratio=0.5).weights_decide_sizes


def test_a_network_without_layers_to_factorise_is_refused() -> None:
    with pytest.raises(OperatorError, match="needs a convolution or a linear layer"):
        LowRank(ratio=0.5).convert(nn.Sequential(nn.Flatten(), nn.ReLU()), CONTEXT)


@pytest.mark.parametrize("options", [{"energy": 0}, {"energy": 1.1}, {"ratio": 0}, {"ratio": 2}, {"form": "cp"}])
def test_values_out_of_their_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        LowRank(**options)


def test_energy_and_ratio_together_are_refused() -> None:
    with pytest.raises(ValueError, match="energy must not be given together with ratio"):
        LowRank(energy=0.9, ratio=0.5)


def with_singular_values(model: nn.Module, *, equal: bool) -> nn.Module:
    """Every weight, as the matrix [O, I kh kw] that `channel` decomposes, with equal singular values or with one."""
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                matrix = layer.weight.flatten(1)
                matrix.copy_(torch.eye(*matrix.shape) if equal else torch.ones(matrix.shape))
    return model


@pytest.mark.parametrize("energy", [0.3, 0.8, 0.9, 1.0])
def test_the_plan_names_the_fewest_and_the_most_parameters_that_any_weights_give(energy: float) -> None:
    def converted(model: nn.Module) -> tuple[int, str]:
        conversion = LowRank(energy=energy).convert(model, CONTEXT)
        return sum(weight.numel() for weight in conversion.model.parameters()), conversion.notes[0]

    fewest, most = (converted(with_singular_values(network(), equal=equal))[0] for equal in (False, True))
    number, note = converted(network())
    assert note == f"with energy {energy:g}, {fewest:,} to {most:,} parameters, as the weights decide"
    assert fewest <= number <= most


@pytest.mark.parametrize("form", ["spatial", "tucker2"])
def test_other_forms_stay_within_the_sizes_that_the_plan_names(form: Form) -> None:
    conversion = LowRank(energy=0.7, form=form).convert(network(), CONTEXT)
    least, most = (int(number.replace(",", "")) for number in conversion.notes[0].split(", ", 1)[1].split()[:3:2])
    assert least <= sum(weight.numel() for weight in conversion.model.parameters()) <= most
