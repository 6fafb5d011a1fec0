"""Degraded images against hand values, an implementation of the noise in plain integers, and Pillow's JPEG."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from stillhouse.data.datasets import load_dataset
from stillhouse.data.degradations import DEGRADATIONS, blur, degraded, jpeg, noise
from stillhouse.data.hashing import derive_key
from stillhouse.data.images import Split
from stillhouse.distill.evaluation import evaluate
from stillhouse.models.registry import build_model

_WORD = (1 << 64) - 1


def splitmix(key: int, counter: int) -> int:
    """SplitMix64's finaliser, in Python's own integers."""
    word = (counter * 0x9E3779B97F4A7C15 + key) & _WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return word ^ (word >> 31)


def added(sample: int, value: int, values: int) -> int:
    """The noise of one value: four bytes of a hash of its place in the split."""
    word = splitmix(derive_key("degradation", 1, "noise"), sample * -(-values // 2) + value // 2)
    total = sum((word >> (8 * (4 * (value % 2) + byte))) & 0xFF for byte in range(4))
    return ((total - 510) * 69 + 256) >> 9


def test_noise_is_a_function_of_the_place_in_the_split() -> None:
    images = torch.full((3, 1, 3, 3), 128, dtype=torch.uint8)
    expected = [[128 + added(sample, value, 9) for value in range(9)] for sample in (5, 6, 7)]
    assert noise(images, 5).view(3, 9).tolist() == expected
    assert noise(images[1:2], 6).view(9).tolist() == expected[1]


def test_noise_has_no_mean_and_a_deviation_of_20() -> None:
    found = noise(torch.full((200, 3, 32, 32), 128, dtype=torch.uint8), 0).double() - 128
    assert abs(float(found.mean())) < 3 * 20 / math.sqrt(found.numel()) + 0.02
    assert float(found.std()) == pytest.approx(20, abs=0.2)


def test_noise_ends_at_black_and_white() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2).expand(500, 1, 1, 2)
    found = noise(images, 0).view(-1, 2)
    assert (found[:, 0] == 0).double().mean() > 0.4
    assert (found[:, 1] == 255).double().mean() > 0.4


def test_blur_spreads_a_point_by_the_binomial_weights() -> None:
    images = torch.zeros(1, 1, 5, 5, dtype=torch.uint8)
    images[0, 0, 2, 2] = 160
    rows = [[0, 10, 20, 10, 0], [0, 20, 40, 20, 0], [0, 10, 20, 10, 0]]
    assert blur(images)[0, 0].tolist() == [[0] * 5, *rows, [0] * 5]


def test_blur_repeats_the_border_and_grows_with_the_image() -> None:
    assert torch.equal(blur(torch.full((2, 3, 7, 9), 77, dtype=torch.uint8)), torch.full((2, 3, 7, 9), 77, dtype=torch.uint8))
    point = torch.zeros(1, 1, 32, 33, dtype=torch.uint8)
    point[0, 0, 16, 16] = 255
    # Two passes at 32 pixels: the middle keeps (6 / 16)^2 of the point.
    assert int(blur(point)[0, 0, 16, 16]) == pytest.approx(255 * 36 / 256, abs=1)


@pytest.mark.parametrize(("pixel", "restored"), [(128, 128), (100, 100), (101, 100), (129, 128), (255, 255)])
def test_jpeg_rounds_a_plain_block_to_steps_of_the_first_coefficient(pixel: int, restored: int) -> None:
    # The first coefficient is 8 (pixel - 128), and its step at quality 25 is 32: 101 gives -216, rounded to -7 steps.
    # 255 gives 1016, rounded to 32 steps of 32 = 1024: white.
    images = torch.full((1, 1, 8, 8), pixel, dtype=torch.uint8)
    assert jpeg(images).unique().tolist() == [restored]


def test_jpeg_does_what_a_jpeg_file_of_quality_25_does() -> None:
    rows, columns = np.mgrid[0:40, 0:56]
    picture = (128 + 60 * np.sin(rows / 5) + 50 * np.cos(columns / 3 + rows / 7)).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=25)
    theirs = np.asarray(Image.open(file)).astype(int)
    ours = jpeg(torch.from_numpy(picture)[None, None])[0, 0].numpy().astype(int)
    assert np.abs(theirs - picture).mean() > 1
    # Both round; where a coefficient is near the middle of two steps they may choose differently.
    assert (np.abs(ours - theirs) <= 1).mean() > 0.9


def test_images_that_are_no_multiple_of_8_are_extended_and_cut_again() -> None:
    images = torch.full((2, 3, 9, 13), 100, dtype=torch.uint8)
    assert torch.equal(jpeg(images), images)


@pytest.mark.parametrize("name", sorted(DEGRADATIONS))
def test_an_evaluation_of_a_degraded_split_sees_the_degraded_images(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The second batch begins elsewhere than the split.
    monkeypatch.setattr("stillhouse.distill.evaluation._BATCH", 100)
    data = load_dataset("digits", options={"limit": 100}, validation=20)
    torch.manual_seed(0)
    model = build_model("mlp", num_classes=10, input_shape=(1, 8, 8), hidden=[16])
    whole = Split(DEGRADATIONS[name](data.test.images, 0), data.test.labels)
    assert evaluate(model, data, degraded(data.test, name), "cpu") == evaluate(model, data, whole, "cpu")


def test_only_whole_batches_are_read() -> None:
    split = degraded(Split(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)), "noise")
    with pytest.raises(ValueError, match="consecutive"):
        split.images[::2]
