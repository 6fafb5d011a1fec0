from collections.abc import Iterator

import numpy as np
import pytest
import torch

from stillhouse.data.datasets import ImageData, load_dataset
from stillhouse.data.images import channel_statistics
from stillhouse.errors import UsageError


@pytest.fixture
def warnings_every_time() -> Iterator[None]:
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(False)


def test_statistics_are_those_of_the_pixels() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2500, 3, 4, 5), dtype=np.uint8)
    mean, std = channel_statistics(images)
    assert mean == pytest.approx((images / 255).mean((0, 2, 3)), rel=1e-12)
    assert std == pytest.approx((images / 255).std((0, 2, 3)), rel=1e-12)


def test_the_deviation_of_a_constant_channel_is_not_zero() -> None:
    assert channel_statistics(np.full((3, 1, 2, 2), 51, np.uint8)) == ((0.2,), (1 / 255,))


def test_normalised_training_images_have_mean_0_and_deviation_1() -> None:
    data = load_dataset("digits")
    pixels = data.normalise(data.train.images)
    assert pixels.dtype == torch.float32
    assert pixels.mean().item() == pytest.approx(0, abs=1e-5)
    assert pixels.std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_normalising_is_a_subtraction_and_a_division_in_single_precision() -> None:
    data = load_dataset("digits")
    mean, std = np.float32(255 * data.mean[0]), np.float32(255 * data.std[0])
    expected = (data.test.images.numpy().astype(np.float32) - mean) / std
    assert np.array_equal(data.normalise(data.test.images).numpy(), expected)


def test_normalising_does_not_change_the_images() -> None:
    data = load_dataset("digits")
    before = data.train.images.clone()
    data.normalise(data.train.images)
    assert torch.equal(data.train.images, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_normalises_to_the_same_bits() -> None:
    data = load_dataset("digits")
    assert torch.equal(data.normalise(data.train.images.cuda()).cpu(), data.normalise(data.train.images))


def test_the_test_split_is_read_when_it_is_used_and_once() -> None:
    data = load_dataset("digits")
    assert data.test_reads == 0
    assert len(data.test) == len(data.test.labels) == 360
    assert data.test_reads == 1


@pytest.mark.usefixtures("warnings_every_time")
def test_a_data_set_is_sent_as_read_only_arrays_without_a_copy() -> None:
    data = load_dataset("digits")
    arrays, facts = data.to_arrays()
    shared = {name: array.copy() for name, array in arrays.items()}
    for array in shared.values():
        array.flags.writeable = False
    arrived = ImageData.from_arrays(shared, facts)
    assert arrived.train.images.data_ptr() == shared["train_images"].ctypes.data
    assert arrived.facts() == data.facts()
    for split in ("train", "validation", "test"):
        assert torch.equal(getattr(arrived, split).images, getattr(data, split).images)
        assert torch.equal(getattr(arrived, split).labels, getattr(data, split).labels)


def test_a_test_split_that_is_left_out_is_not_read() -> None:
    data = load_dataset("digits")
    arrays, facts = data.to_arrays(test=False)
    assert data.test_reads == 0
    assert len(ImageData.from_arrays(arrays, facts, read_test=data.read_test).test) == 360
    with pytest.raises(UsageError, match="left out"):
        _ = ImageData.from_arrays(arrays, facts).test
