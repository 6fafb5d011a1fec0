"""Shared weights: values per layer, training of centroids, the stored file, and what is refused."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from stillhouse.compress.chain import Chain, ChainError
from stillhouse.compress.operator import Context, Moment, OperatorError
from stillhouse.compress.prune import Prune
from stillhouse.compress.quantize import Quantize
from stillhouse.compress.share_weights import ShareWeights
from stillhouse.models.registry import build_model
from stillhouse.testing import check_operator

SHAPE = (3, 16, 16)
TRAINED = Context(num_classes=5, input_shape=SHAPE, trained=True)
START = Moment(progress=0, epoch=0, step=0)


def network(name: str = "resnet8") -> nn.Module:
    torch.manual_seed(0)
    return build_model(name, num_classes=5, input_shape=SHAPE)


def num_values(model: nn.Module, layer: str) -> int:
    return len(set(model.get_parameter(f"{layer}.weight").flatten().tolist()))


@pytest.mark.parametrize("options", ShareWeights.examples, ids=str)
def test_it_passes_every_check_of_operators(options: Mapping[str, Any]) -> None:
    check_operator(ShareWeights(**options))


def test_each_layer_has_at_most_k_values_and_is_the_nearest_of_them() -> None:
    before = network()
    original = {name: weight.detach().clone() for name, weight in before.named_parameters()}
    conversion = ShareWeights(k=6).convert(before, TRAINED)
    for name in conversion.history["layers"]:
        weight = conversion.model.get_parameter(f"{name}.weight").detach()
        values = weight.unique()
        assert len(values) <= 6
        distances = (original[f"{name}.weight"].flatten()[:, None] - values).abs()
        torch.testing.assert_close((original[f"{name}.weight"] - weight).abs().flatten(), distances.amin(1))


def test_a_step_moves_each_centroid_by_the_mean_gradient_of_its_weights() -> None:
    operator = ShareWeights(k=3)
    model = operator.convert(
        nn.Sequential(nn.Linear(40, 30)), Context(num_classes=30, input_shape=(1, 5, 8), trained=True)
    ).model
    weight = model.get_parameter("0.weight")
    before, gradient = weight.detach().clone(), torch.randn(30, 40, generator=torch.Generator().manual_seed(1))
    operator.before_step(model, START)
    with torch.no_grad():
        weight.sub_(0.1 * gradient)
    operator.after_step(model, START)
    for value in before.unique():
        own = before == value
        torch.testing.assert_close(weight.detach()[own], (value - 0.1 * gradient[own].mean()).expand(int(own.sum())))


@pytest.mark.parametrize(("trained", "share_at", "expected"), [(True, None, 0.0), (False, None, 0.5), (False, 0.25, 0.25)])
def test_weights_are_shared_when_their_time_has_come(trained: bool, share_at: float | None, expected: float) -> None:
    operator = ShareWeights(k=4, share_at=share_at)
    model = operator.convert(network(), Context(num_classes=5, input_shape=SHAPE, trained=trained)).model
    shared_from = None
    for step in range(8):
        moment = Moment(progress=step / 8, epoch=0, step=step)
        operator.before_step(model, moment)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(step)), alpha=0.01)
        operator.after_step(model, moment)
        if shared_from is None and num_values(model, "layer3.0.conv1") <= 4:
            shared_from = step / 8
    assert shared_from == expected


def test_a_training_that_ends_early_is_shared_at_its_end() -> None:
    operator = ShareWeights(k=4, share_at=0.9)
    model = operator.convert(network(), TRAINED).model
    operator.before_step(model, START)
    assert num_values(model, "layer3.0.conv1") > 4
    operator.finalise(model)
    assert num_values(model, "layer3.0.conv1") <= 4
    assert list(model.state_dict()) == list(network().state_dict())


@pytest.mark.parametrize(("k", "bits"), [(2, 1), (3, 2), (16, 4), (17, 5), (256, 8)])
def test_the_file_has_a_codebook_and_places_of_log2_k_bits(k: int, bits: int) -> None:
    operator = ShareWeights(k=k)
    assert operator.weight_bits == bits
    conversion = operator.convert(network(), TRAINED)
    operator.finalise(conversion.model)
    state = conversion.model.state_dict()
    packed = operator.pack(conversion.model, state, conversion.history)
    count = 64 * 64 * 9
    assert packed["layer3.0.conv2.weight.codebook"].shape == (k,)
    assert packed["layer3.0.conv2.weight.indices"].shape == (count * bits // 8,)
    assert "layer3.0.conv2.weight" not in packed
    unpacked = operator.unpack(conversion.model, packed, conversion.history)
    assert unpacked.keys() == state.keys()
    assert all(torch.equal(unpacked[name], value) for name, value in state.items())


def test_layers_that_would_take_no_fewer_bytes_are_left_alone_and_listed() -> None:
    conversion = ShareWeights(k=256).convert(network(), TRAINED)
    # 64 x 5 weights: 320 bytes of places and 1024 of codebook are more than 1280.
    assert "fc" not in conversion.history["layers"]
    assert "fc" in conversion.notes[0]
    assert "fc" in ShareWeights(k=128).convert(network(), TRAINED).history["layers"]


def test_a_shared_network_can_be_quantized_and_the_file_has_the_quantized_numbers() -> None:
    chain = Chain(("share_weights", "quantize"), (ShareWeights(k=4), Quantize(weight_bits=4, activation_bits=32)))
    conversion = chain.convert(network(), TRAINED)
    for step in range(3):
        moment = Moment(progress=step / 3, epoch=0, step=step)
        chain.before_step(conversion.model, moment)
        conversion.model(torch.randn(4, *SHAPE)).square().sum().backward()
        torch.optim.SGD(conversion.model.parameters(), lr=0.01).step()
        chain.after_step(conversion.model, moment)
    assert num_values(conversion.model, "layer3.0.conv1") <= 4
    chain.finalise(conversion.model)
    packed = chain.pack(conversion.model, conversion.model.state_dict(), conversion.history)
    assert "layer3.0.conv1.weight.packed" in packed
    assert "conv1.weight.indices" in packed, "the first layer is not quantized, so its values are stored as shared ones"
    unpacked = chain.unpack(conversion.model, packed, conversion.history)
    assert all(torch.equal(unpacked[name], value) for name, value in conversion.model.state_dict().items())


def test_pruned_weights_stay_zero_and_are_shared_after_pruning_only() -> None:
    prune, share = Prune(ratio=0.05, pattern="unstructured"), ShareWeights(k=4)
    chain = Chain(("prune", "share_weights"), (prune, share))
    chain.check_order()
    conversion = chain.convert(network(), TRAINED)
    pruned = conversion.model.get_parameter("layer3.0.conv1.weight") == 0
    assert 0.04 < float(pruned.float().mean()) < 0.06
    chain.before_step(conversion.model, START)
    with torch.no_grad():
        for weight in conversion.model.parameters():
            weight.add_(0.1)
    chain.after_step(conversion.model, START)
    chain.finalise(conversion.model)
    assert bool((conversion.model.get_parameter("layer3.0.conv1.weight")[pruned] == 0).all())
    assert num_values(conversion.model, "layer3.0.conv1") <= 4
    with pytest.raises(ChainError, match="prune must come before share_weights"):
        Chain(("share_weights", "prune"), (share, prune)).check_order()


@pytest.mark.parametrize("options", [{"k": 1}, {"k": 257}, {"share_at": 1}, {"share_at": -0.1}, {"start": "random"}])
def test_values_out_of_their_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        ShareWeights(**options)


def test_networks_without_a_layer_to_share_are_refused() -> None:
    with pytest.raises(OperatorError, match="needs a convolution or a linear layer"):
        ShareWeights().convert(nn.Flatten(), TRAINED)
    with pytest.raises(OperatorError, match="lower k") as error:
        ShareWeights(k=256).convert(nn.Sequential(nn.Flatten(), nn.Linear(10, 5)), TRAINED)
    assert error.value.option == "k"
