"""The channel shuffle of ShuffleNet. Sizes and maps of the whole network: test_published_sizes.py."""

import pytest
import torch

from stillhouse.models.registry import sketch_model
from stillhouse.models.shufflenet_v1 import shuffle_channels


def test_a_shuffle_gives_every_group_a_channel_of_each_group() -> None:
    """arXiv 1707.01083, figure 1: (groups, channels per group) is transposed."""
    maps = torch.arange(6.0).reshape(1, 6, 1, 1)
    assert shuffle_channels(maps, 3).flatten().tolist() == [0, 2, 4, 1, 3, 5]


def test_shuffling_back_restores_the_channels() -> None:
    maps = torch.randn(2, 12, 3, 3)
    torch.testing.assert_close(shuffle_channels(shuffle_channels(maps, 3), 4), maps, rtol=0, atol=0)


@pytest.mark.parametrize("width", [0.01, 0.15, 0.5, 1.3])
def test_every_width_has_channels_that_three_groups_divide(width: float) -> None:
    sketch = sketch_model("shufflenet_v1", num_classes=10, input_shape=(3, 32, 32), width=width)
    assert {module.groups for module in sketch.modules() if isinstance(module, torch.nn.Conv2d)} >= {1, 3}
