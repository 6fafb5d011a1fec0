"""Feature access by layer name."""

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

from stillhouse.models.architecture import UnknownLayer
from stillhouse.models.features import FeatureReader, UnreadableLayer


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3)
        self.relu = nn.ReLU(inplace=True)
        self.second = nn.Linear(3, 2)
        self.calls = 0

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.relu(self.first(inputs))
        self.calls += 1
        logits: Tensor = self.second(hidden)
        return logits


class Pair(nn.Module):
    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        return inputs, inputs


def test_outputs_are_those_of_the_layers_and_carry_gradients() -> None:
    torch.manual_seed(0)
    net, inputs = Net(), torch.randn(5, 4)
    with FeatureReader(net, ["relu", "second"]) as read:
        logits, features = read(inputs)
    assert logits is not None
    torch.testing.assert_close(features["relu"], torch.relu(inputs @ net.first.weight.T + net.first.bias))
    torch.testing.assert_close(features["second"], logits)
    torch.autograd.backward(features["relu"].sum())
    assert net.first.weight.grad is not None
    assert net.second.weight.grad is None


def test_nothing_is_computed_after_the_last_requested_layer() -> None:
    net = Net()
    with FeatureReader(net, ["relu"], until="relu") as read:
        logits, features = read(torch.randn(5, 4))
    assert logits is None
    assert features["relu"].shape == (5, 3)
    assert net.calls == 0


def test_a_model_that_is_dropped_with_its_reader_is_freed_at_once() -> None:
    """On a GPU it would keep its memory until the garbage collector finds the cycle."""
    gc.disable()
    try:
        net = Net()
        reader = FeatureReader(net, ["relu"], until="second")
        reader(torch.randn(5, 4))
        watched = weakref.ref(net)
        del net, reader
        assert watched() is None
    finally:
        gc.enable()


def test_a_model_whose_reader_is_gone_runs_as_before() -> None:
    net, inputs = Net(), torch.randn(5, 4)
    FeatureReader(net, ["relu"], until="relu")
    assert net(inputs).shape == (5, 2)


def test_closing_removes_the_hooks() -> None:
    net = Net()
    reader = FeatureReader(net, ["relu"], until="second")
    reader.close()
    assert net(torch.randn(5, 4)).shape == (5, 2)
    assert not any(module._forward_hooks for module in net.modules())


def test_a_layer_that_is_overwritten_in_place_is_refused() -> None:
    with FeatureReader(Net(), ["first"]) as read, pytest.raises(UnreadableLayer, match="layer 'first' is overwritten in place"):
        read(torch.randn(5, 4))


def test_a_layer_that_returns_two_tensors_is_refused() -> None:
    net = nn.Sequential(Pair())
    with FeatureReader(net, ["0"]) as read, pytest.raises(UnreadableLayer, match="layer '0' must return one tensor, got tuple"):
        read(torch.randn(5, 4))


def test_features_can_be_read_in_inference_mode() -> None:
    with torch.inference_mode(), FeatureReader(Net(), ["relu"]) as read:
        _, features = read(torch.randn(5, 4))
    assert features["relu"].is_inference()


@pytest.mark.parametrize("layer", ["relu1", "", "second.weight"])
def test_an_unknown_layer_is_reported_with_a_suggestion(layer: str) -> None:
    with pytest.raises(UnknownLayer, match=f"no layer '{layer}'.*available: first, relu, second"):
        FeatureReader(Net(), [layer])
    with pytest.raises(UnknownLayer):
        FeatureReader(Net(), until=layer)
