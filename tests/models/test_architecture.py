"""What is known of a network before it is trained."""

import pytest
import torch
from torch import Tensor, nn

from stillhouse.models.architecture import UnknownLayer, describe


class Plain(nn.Module):
    """No useful layers named: 8x8 maps, 4x4 maps, a 1x1 map, an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 2, 3, padding=1)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(2, 3, 3, padding=1, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.embed = nn.Linear(3, 5)
        self.out = nn.Linear(5, 4)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.pool(self.conv2(self.relu1(self.conv1(images))))
        logits: Tensor = self.out(self.embed(maps.flatten(1)))
        return logits


def test_useful_layers_are_found_by_their_shapes() -> None:
    architecture = describe(Plain(), name="plain", input_shape=(1, 8, 8))
    assert architecture.num_classes == 4
    assert architecture.stages == ("relu1", "conv2")
    assert architecture.pooled == "embed"
    assert architecture.shape("pool") == (3, 1, 1)


def test_useful_layers_that_a_model_names_take_precedence() -> None:
    net = Plain()
    net.stage_layers = ("conv1", "pool")  # type: ignore[assignment]
    net.pooled_layer = "out"  # type: ignore[assignment]
    architecture = describe(net, name="plain", input_shape=(1, 8, 8))
    assert architecture.stages == ("conv1",), "a 1x1 map has nothing spatial left"
    assert architecture.pooled == "out"


def test_describing_does_not_change_modes_statistics_and_hooks() -> None:
    net = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(4, 2), nn.BatchNorm1d(2)).train()
    net[0].eval()
    describe(net, name="net", input_shape=(1, 2, 2))
    assert [module.training for module in net] == [False, True, True, True]
    assert isinstance(net[3], nn.BatchNorm1d)
    assert net[3].num_batches_tracked == 0
    assert not any(module._forward_hooks for module in net.modules())


def test_half_precision_models_are_described() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).to(torch.bfloat16)
    assert describe(net, name="net", input_shape=(1, 2, 2)).num_classes == 2


@pytest.mark.parametrize("net", [nn.Identity(), nn.Flatten(0)])
def test_a_model_without_logits_is_refused(net: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"net must return logits \[batch, classes\], got"):
        describe(net, name="net", input_shape=(1, 2, 2))


def test_an_unknown_layer_is_reported_with_the_useful_ones() -> None:
    architecture = describe(Plain(), name="plain", input_shape=(1, 8, 8))
    with pytest.raises(UnknownLayer, match="plain has no layer 'relu2'; did you mean 'relu1'"):
        architecture.shape("relu2")
