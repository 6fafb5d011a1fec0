"""Which layers an operator may replace, and that a replacement reaches every place of a layer."""

import torch
from torch import nn

from stillhouse.compress.parts.layer_replacement import convolution_like, listed, plain_layers, replace_layers


class Tied(nn.Module):
    """A layer under two names, two layers with one weight, attention, and an ordinary layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4)
        self.again = self.one
        self.decoder = nn.Linear(4, 6, bias=False)
        self.embedding = nn.Linear(4, 6, bias=False)
        self.embedding.weight = self.decoder.weight
        self.attention = nn.MultiheadAttention(4, 2)
        self.inner = nn.Sequential(nn.Linear(4, 2))


def test_layers_with_a_shared_weight_and_those_inside_attention_are_left_out() -> None:
    assert list(plain_layers(Tied(), nn.Linear)) == ["one", "inner.0"]


def test_a_replacement_has_every_name_and_the_mode_of_the_old_layer() -> None:
    model = Tied().eval()
    new = nn.Linear(4, 4)
    replace_layers(model, {model.one: new})
    assert model.one is new
    assert model.again is new
    assert not new.training


def test_a_similar_convolution_differs_in_its_channels_only() -> None:
    layer = nn.Conv2d(4, 6, (3, 5), stride=2, padding=(1, 2), dilation=2, padding_mode="reflect", dtype=torch.float64)
    other = convolution_like(layer, 8, 2, groups=2, bias=True)
    assert (other.in_channels, other.out_channels, other.groups) == (8, 2, 2)
    assert other.bias is not None
    assert other.weight.dtype == torch.float64
    for attribute in ("kernel_size", "stride", "padding", "dilation", "padding_mode"):
        assert getattr(other, attribute) == getattr(layer, attribute)


def test_long_lists_are_cut() -> None:
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert listed(list("abcdef")) == "a, b, c, d and 2 more"
