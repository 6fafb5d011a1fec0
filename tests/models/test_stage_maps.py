"""Maps of layers that return tokens or channels last, and which of them are stages."""

import copy

import torch
from torch import Tensor, nn

from stillhouse.models.architecture import describe
from stillhouse.models.features import FeatureReader
from stillhouse.models.stage_maps import ChannelsFirst, Stage, TokenMap, add_stage_maps, output_shapes

IMAGES = (1, 4, 6)


class Tokens(nn.Module):
    """Patches of 2 x 2 pixels after a class token, through `depth` layers; the pixels are the tokens' numbers."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Identity() for _ in range(depth))
        self.head = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        patches = nn.functional.unfold(images, 2, stride=2).mT
        tokens = torch.cat([torch.zeros_like(patches[:, :1]), patches], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        logits: Tensor = self.head(tokens[:, 0])
        return logits


def network(depth: int) -> Tokens:
    net = Tokens(depth)
    stages = [Stage(f"blocks.{number}", 4, 2) for number in range(depth)]
    add_stage_maps(net, stages, output_shapes(net, IMAGES), IMAGES)
    return net


def test_tokens_are_read_row_by_row_without_the_first_ones() -> None:
    tokens = torch.tensor([[[9.0], [1.0], [2.0], [3.0], [4.0], [5.0], [6.0]]])
    assert TokenMap(1, 2, 3)(tokens).tolist() == [[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]]
    assert ChannelsFirst()(torch.zeros(2, 3, 4, 5)).shape == (2, 5, 3, 4)


def test_a_map_of_tokens_has_the_pixels_where_the_image_has_them() -> None:
    net, images = network(1), torch.arange(24.0).view(1, *IMAGES)
    (stage,) = describe(net, name="tokens", input_shape=IMAGES).stages
    with FeatureReader(net, [stage]) as read:
        _, features = read(images)
    # The first number of each patch is its upper left pixel.
    assert features[stage][0, 0].tolist() == [[0.0, 2.0, 4.0], [12.0, 14.0, 16.0]]


def test_of_a_single_resolution_some_stages_divide_the_depth() -> None:
    stages = describe(network(12), name="tokens", input_shape=IMAGES).stages
    assert stages == ("stage_maps.blocks_3", "stage_maps.blocks_7", "stage_maps.blocks_11")


def test_a_copy_has_maps_of_its_own_and_no_weight_is_added() -> None:
    net = network(1)
    (stage,) = describe(net, name="tokens", input_shape=IMAGES).stages
    other = copy.deepcopy(net)
    assert other.state_dict().keys() == Tokens(1).state_dict().keys()
    with FeatureReader(net, [stage]) as read, FeatureReader(other, [stage]) as read_other:
        _, one = read(torch.ones(1, *IMAGES))
        _, two = read_other(torch.zeros(1, *IMAGES))
    assert one[stage].mean() == 1
    assert two[stage].mean() == 0
