"""Which normalisations can be folded, and that a folded network computes the same."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.compress.parts.folding import fold, following_norms
from stillhouse.compress.parts.quantized_layers import finalise_layer, numbers_of, quantized_layer
from stillhouse.models.registry import sketch_model


class Network(nn.Module):
    """One foldable pair, and pairs that cannot be folded: read twice, run twice, by a function in between."""

    def __init__(self) -> None:
        super().__init__()
        self.good, self.good_norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.read_twice, self.read_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.run_twice, self.run_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.apart, self.apart_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.fc, self.fc_norm = nn.Linear(4, 6), nn.BatchNorm1d(6)

    def forward(self, images: Tensor) -> Tensor:
        maps = F.relu(self.good_norm(self.good(images)))
        read = self.read_twice(maps)
        maps = F.relu(self.read_norm(read) + read)
        maps = self.run_norm(self.run_twice(self.run_twice(maps)))
        maps = self.apart_norm(F.relu(self.apart(maps)))
        output: Tensor = self.fc_norm(self.fc(maps.mean((2, 3))))
        return output


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_only_a_normalisation_that_alone_reads_a_layer_is_found(device: str) -> None:
    with torch.device(device):
        model, example = Network(), torch.zeros(2, 3, 5, 5)
    assert following_norms(model, example) == {"good": "good_norm", "fc": "fc_norm"}
    assert model.training


def test_all_normalisations_of_a_resnet_are_found() -> None:
    model = sketch_model("resnet8", num_classes=4, input_shape=(3, 8, 8))
    found = following_norms(model, torch.zeros(2, 3, 8, 8, device="meta"))
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert set(found.values()) == norms
    assert found["layer2.0.downsample.0"] == "layer2.0.downsample.1"


def test_the_second_normalisation_of_a_preactivation_network_is_found_only() -> None:
    found = following_norms(
        sketch_model("wrn_16_1", num_classes=4, input_shape=(3, 8, 8)), torch.zeros(2, 3, 8, 8, device="meta")
    )
    assert {norm.rpartition(".")[2] for norm in found.values()} == {"bn2"}


def trained_norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels).eval()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.5, -0.7, 0.0, 2.0])[:channels])
        norm.bias.copy_(torch.randn(channels))
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(torch.randn(channels))
        norm.running_var.copy_(torch.rand(channels) + 0.5)
    return norm


@pytest.mark.parametrize("bias", [True, False])
def test_a_folded_layer_computes_what_both_did_with_the_same_whole_numbers_up_to_their_sign(bias: bool) -> None:
    torch.manual_seed(0)
    quantized = quantized_layer(nn.Conv2d(3, 4, 3, bias=bias), weight_bits=3, activation_bits=32, learnt=False, train=True)
    finalise_layer(quantized)
    norm, images = trained_norm(4), torch.randn(2, 3, 6, 6)
    before, numbers = norm(quantized(images)), numbers_of(quantized.weight, quantized.get_buffer("weight_scale"), 3)
    fold(quantized, norm, 3)
    torch.testing.assert_close(quantized(images), before, rtol=1e-5, atol=1e-5)
    after = numbers_of(quantized.weight, quantized.get_buffer("weight_scale"), 3)
    # gamma is 1.5, -0.7, 0 and 2.
    for channel, sign in enumerate((1, -1, 0, 1)):
        assert torch.equal(after[channel], sign * numbers[channel])
