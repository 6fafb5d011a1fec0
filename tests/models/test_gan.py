"""DCGAN's generator and critic: sizes by hand, shapes for the data sets' images, what they read, their initial weights."""

import pytest
import torch

from stillhouse.errors import UsageError
from stillhouse.models.architecture import describe
from stillhouse.models.gan import Generator, critic, dcgan
from stillhouse.models.registry import all_model_names, build_model, model_names, sketch_model
from stillhouse.models.size import measure_size

Shape = tuple[int, int, int]


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 28, 28), (3, 32, 32), (1, 30, 42), (3, 64, 64)], ids=str)
def test_a_generator_makes_images_of_the_data_set_between_minus_one_and_one(shape: Shape) -> None:
    torch.manual_seed(0)
    images = dcgan(num_classes=10, input_shape=shape, width=0.125)(torch.randn(3, 100))
    assert images.shape == (3, *shape)
    assert images.min() >= -1
    assert images.max() <= 1


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)], ids=str)
def test_a_critic_gives_one_number_for_each_image(shape: Shape) -> None:
    assert critic(input_shape=shape, width=0.125)(torch.zeros(3, *shape)).shape == (3,)
    assert critic(input_shape=shape, width=0.125, num_classes=10)(torch.zeros(3, *shape), torch.eye(10)[:3]).shape == (3,)


def test_the_parameters_are_those_of_its_layers() -> None:
    """For 28x28: 100 x 128*7*7, BatchNorm of 128, 4x4 from 128 to 64, BatchNorm of 64, 4x4 from 64 to 1 and its bias."""
    expected = 100 * 128 * 49 + 2 * 128 + 16 * 128 * 64 + 2 * 64 + 16 * 64 + 1
    assert measure_size(sketch_model("dcgan", num_classes=10, input_shape=(1, 28, 28)), (1, 28, 28)).parameters == expected


def test_the_class_follows_the_noise_of_a_conditional_generator() -> None:
    sketch = sketch_model("dcgan", num_classes=10, input_shape=(3, 32, 32), conditional=True)
    described = describe(sketch, name="dcgan", input_shape=(3, 32, 32))
    assert described.reads == (110,)
    assert described.returns == (3, 32, 32)
    assert described.num_classes == 10


def test_its_maps_grow_from_layer_to_layer() -> None:
    described = describe(dcgan(num_classes=10, input_shape=(3, 32, 32)), name="dcgan", input_shape=(3, 32, 32))
    assert [described.shape(stage) for stage in described.stages] == [(256, 4, 4), (128, 8, 8), (64, 16, 16)]
    assert described.pooled is None


def test_weights_begin_as_the_paper_says() -> None:
    torch.manual_seed(0)
    made = dcgan(num_classes=10, input_shape=(1, 28, 28))
    weights = made.state_dict()["growing.0.0.weight"]
    assert float(weights.std()) == pytest.approx(0.02, rel=0.02)
    assert float(weights.mean()) == pytest.approx(0.0, abs=2e-4)


def test_images_with_an_odd_side_are_refused_in_one_sentence() -> None:
    with pytest.raises(UsageError, match=r"images of 27x28 cannot be made by doubling smaller maps; .*set dataset.size"):
        build_model("dcgan", num_classes=10, input_shape=(1, 27, 28))


def test_it_is_listed_beside_the_classifiers_and_not_among_them() -> None:
    assert "dcgan" in all_model_names()
    assert "dcgan" not in model_names()


def test_a_generator_of_ones_own_says_what_it_reads() -> None:
    class Mine(Generator):
        def __init__(self) -> None:
            super().__init__(num_classes=10, noise=7)
            self.linear = torch.nn.Linear(7, 64)

        def forward(self, noise: torch.Tensor) -> torch.Tensor:
            images: torch.Tensor = self.linear(noise).view(-1, 1, 8, 8)
            return images

    described = describe(Mine(), name="mine", input_shape=(1, 8, 8))
    assert (described.reads, described.returns) == ((7,), (1, 8, 8))
