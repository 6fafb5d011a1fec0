"""Which channels of a layer's output remained after others were removed."""

import copy

import pytest
import torch
from torch import Tensor, nn

from stillhouse.compress.operator import Context
from stillhouse.compress.parts.channels import Cut, remove_channels
from stillhouse.compress.parts.kept_channels import followed_channels
from stillhouse.models.architecture import describe
from stillhouse.models.registry import build_model

SHAPE = (3, 32, 32)
IMAGES = torch.zeros(2, 3, 4, 4)


def without(model: nn.Module, kept: dict[str, list[int]]) -> nn.Module:
    """The whole network, whose channels that do not remain are zero behind every layer that lost some."""
    for name, channels in kept.items():
        layer = model.get_submodule(name)
        for weight in layer.parameters():
            gone = torch.ones(len(weight), dtype=torch.bool)
            gone[channels] = False
            weight.data[gone] = 0
    return model


def outputs(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    watched = copy.deepcopy(model).eval()
    for name, layer in watched.named_modules():
        layer.register_forward_hook(lambda _layer, _inputs, output, name=name: found.update({name: output}))
    with torch.no_grad():
        watched(images)
    return found


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "mobilenet_v2", "lenet", "nin"])
def test_a_pruned_network_returns_the_channels_that_it_names_of_the_whole_network(name: str) -> None:
    """A network whose removed channels are zero behind each layer computes what the pruned one does: an outside check."""
    torch.manual_seed(0)
    whole = build_model(name, num_classes=5, input_shape=SHAPE).eval()
    for layer in whole.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
    model, context = copy.deepcopy(whole), Context(num_classes=5, input_shape=SHAPE)
    cut = Cut(ratio=0.5, of="channels", importance="l2", is_global=False, round_to=1)
    _removed, _whole, kept = remove_channels(model, context, cut)
    followed = followed_channels(model, kept, context.example(model, 2))
    images = torch.randn(2, *SHAPE)
    ours, theirs = outputs(model, images), outputs(without(whole, kept), images)
    assert set(describe(model, name=name, input_shape=SHAPE).stages) <= set(followed), "methods compare these maps by default"
    for place, channels in followed.items():
        torch.testing.assert_close(ours[place], theirs[place][:, list(channels)], rtol=1e-3, atol=1e-4)


class Branches(nn.Module):
    """Layers through which channels can be followed, and some through which they cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)
        self.relu = nn.ReLU()
        self.shuffle = nn.ChannelShuffle(2)
        self.block = nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1))
        self.fc = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.relu(self.conv(images))
        maps = torch.cat([self.shuffle(maps), self.block(maps)], dim=1)
        logits: Tensor = self.fc(self.relu(maps).mean(dim=(2, 3)))
        return logits


def test_channels_are_followed_only_where_it_is_certain() -> None:
    found = followed_channels(Branches(), {"conv": [1, 3], "block.0": [0, 2]}, IMAGES)
    # The ReLU runs twice, the shuffle mixes channels, and the block ends with a layer that lost none.
    assert found == {"conv": (1, 3), "block.0": (0, 2), "block.1": (0, 2)}


def test_a_block_has_the_channels_of_its_last_layer_if_it_returns_as_many() -> None:
    model = Branches()
    assert followed_channels(model, {"block.2": [0, 5]}, IMAGES)["block"] == (0, 5)
    assert "block" not in followed_channels(model, {"block.2": [0, 3, 5]}, IMAGES), "the block returns two"


def test_a_network_without_storage_can_be_followed() -> None:
    model = Branches().to("meta")
    assert followed_channels(model, {"conv": [0, 1]}, IMAGES.to("meta"))["conv"] == (0, 1)
