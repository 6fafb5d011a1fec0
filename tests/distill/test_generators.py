"""The generator of data-free methods, and the length of their training."""

import pytest
import torch

from stillhouse.distill.generators import DataFreeMethod, Generator
from stillhouse.distill.method import Setup, Stage
from stillhouse.models.architecture import Architecture
from stillhouse.testing import make_step

NET = Architecture(name="net", num_classes=4, input_shape=(1, 8, 8), shapes={})


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 7, 10), (2, 3, 5)], ids=str)
def test_generated_images_have_the_shape_and_the_statistics_of_normalised_ones(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    made = Generator(20, 8, shape)(torch.randn(64, 20))
    assert made.shape == (64, *shape)
    dims = (0, 2, 3)
    torch.testing.assert_close(made.mean(dims), torch.zeros(shape[0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(made.var(dims, correction=0), torch.ones(shape[0]), atol=1e-3, rtol=0)


def test_the_generators_parameters_are_those_of_the_published_one() -> None:
    # With z of 256, 64 channels and images of 3x32x32: linear, BatchNorm, three convolutions, two BatchNorms.
    expected = (256 * 128 * 64 + 128 * 64) + 256 + (128 * 128 * 9 + 128) + 256 + (128 * 64 * 9 + 64) + 128 + (64 * 3 * 9 + 3)
    assert sum(weights.numel() for weights in Generator(256, 64, (3, 32, 32)).parameters()) == expected


@pytest.mark.parametrize(("epochs", "per_epoch"), [(1, 100), (4, 25), (8, 13), (200, 1)])
def test_the_training_has_the_requested_generator_steps_whatever_the_size_of_the_data_set(epochs: int, per_epoch: int) -> None:
    for samples in (10, 60000):
        setup = Setup(teacher=NET, student=NET, new_student=torch.nn.Identity, num_samples=samples, epochs=epochs)
        stages = DataFreeMethod(generator_steps=100).stages(setup)
        assert list(stages) == [Stage(epochs=epochs, data_free=True, steps_per_epoch=per_epoch, samples_per_step=128)]


def test_a_generated_batch_has_its_own_size() -> None:
    method = DataFreeMethod(generated_batch=7, noise_size=5)
    generator = Generator(5, 4, (1, 8, 8))
    step = make_step(labels=torch.zeros(3, dtype=torch.int64), modules={"generator": generator}, seed=3)
    expected = generator(torch.randn(7, 5, generator=torch.Generator().manual_seed(3)))
    torch.testing.assert_close(method.generate(step), expected)
