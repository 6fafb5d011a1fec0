"""Inputs for a model by what it says of itself."""

import pytest
import torch
from torch import Tensor, nn

from stillhouse.export.program import make_program
from stillhouse.models.architecture import describe
from stillhouse.models.example_input import example_input
from stillhouse.models.size import measure_latency, measure_size, peak_memory


class Bag(nn.Module):
    """The mean of word vectors, and a linear layer: 50 * 4 + 4 * 3 + 3 = 215 parameters."""

    input_dtype = torch.int64

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 4)
        self.fc = nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        pooled = self.words(ids).mean(1)
        logits: Tensor = self.fc(pooled)
        return logits


class Painter(nn.Module):
    """From noise [B, 5] to images [B, 1, 4, 4]."""

    num_outputs = 16

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 16)

    def example_input(self, count: int) -> Tensor:
        return torch.zeros(count, 5, device=self.fc.weight.device)

    def forward(self, noise: Tensor) -> Tensor:
        images: Tensor = self.fc(noise).unflatten(1, (1, 4, 4))
        return images


def test_images_are_floating_zeros_on_the_models_device() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten())
    example = example_input(model, 4, (3, 8, 8))
    assert (example.shape, example.dtype, example.device.type) == ((4, 3, 8, 8), torch.float32, "meta")
    assert example_input(nn.Flatten(), 2, (1, 2, 2)).shape == (2, 1, 2, 2)


def test_a_model_of_token_ids_is_described_measured_and_exported() -> None:
    model = Bag().eval()
    assert example_input(model, 2, (7,)).dtype == torch.int64
    described = describe(model, name="bag", input_shape=(7,))
    assert described.num_classes == 3
    assert described.shapes == {"words": (7, 4), "fc": (3,)}
    size = measure_size(model, (7,))
    assert (size.parameters, size.macs) == (215, 12)
    assert peak_memory(model, (7,)) >= 4 * 215 + 8 * 7
    assert measure_latency(model, (7,), batch_sizes=(1,), warmup=1, repeats=3)[1].p50_ms > 0
    ids = torch.randint(50, (5, 7))
    torch.testing.assert_close(make_program(model, (7,)).module()(ids), model(ids))


def test_a_model_may_make_its_input_and_return_an_image() -> None:
    model = Painter()
    described = describe(model, name="painter", input_shape=(1, 4, 4))
    assert (described.num_classes, described.shapes) == (16, {"fc": (16,)})
    assert measure_size(model, (1, 4, 4)).macs == 80


def test_an_image_without_num_outputs_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must return logits \[batch, classes\], got \[2, 3, 8, 8\]"):
        describe(nn.Conv2d(3, 3, 1), name="filter", input_shape=(3, 8, 8))
