"""Reductions that read the teacher's own parameters and buffers."""

import pickle

import pytest
import torch
from torch import Tensor, nn

from stillhouse.distill.sources import compute_knowledge
from stillhouse.knowledge.kinds import reduced
from stillhouse.models.architecture import UnknownLayer
from stillhouse.models.features import FeatureReader


def scaled_and_shifted(maps: Tensor, scale: Tensor, shift: Tensor, *, power: int) -> Tensor:
    return (maps * scale[:, None, None] + shift[:, None, None]).pow(power)


def network() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2)).eval()
    with torch.no_grad():
        net.get_parameter("1.weight").copy_(torch.tensor([1.0, 2.0, 3.0]))
        net.get_buffer("1.running_mean").copy_(torch.tensor([4.0, 5.0, 6.0]))
    return net


def test_a_reduction_receives_parameters_and_buffers_after_the_layers_outputs() -> None:
    kind = reduced(scaled_and_shifted, "0", weights=("1.weight", "1.running_mean"), power=2)
    images, net = torch.randn(5, 1, 2, 2), network()
    with FeatureReader(net, ["0"]) as reader:
        made = compute_knowledge(reader, {"x": kind}, images)["x"]
    maps = net.get_submodule("0")(images)
    expected = (maps * torch.tensor([1.0, 2.0, 3.0])[:, None, None] + torch.tensor([4.0, 5.0, 6.0])[:, None, None]) ** 2
    torch.testing.assert_close(made, expected.detach())
    assert not made.requires_grad


def test_weights_are_part_of_the_identity_and_survive_a_pickle() -> None:
    one, other = (
        reduced(scaled_and_shifted, "0", weights=("1.weight", name), power=2) for name in ("1.bias", "1.running_mean")
    )
    assert one.identity() != other.identity()
    assert pickle.loads(pickle.dumps(one)) == one
    assert "weights" not in reduced(scaled_and_shifted, "0", power=2).identity()


@pytest.mark.parametrize("name", ["1.gamma", "7.weight", "1", "forward"])
def test_a_weight_that_does_not_exist_is_reported(name: str) -> None:
    with FeatureReader(network(), ["0"]) as reader, pytest.raises(UnknownLayer, match=f"the model has no weight '{name}'"):
        reader.weight(name)
