"""Generated images as 8-bit pixels and as a PNG file."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from stillhouse.tasks._pictures import as_pixels, strip


def test_minus_one_is_black_one_is_white_and_values_outside_are_cut() -> None:
    assert as_pixels(torch.tensor([-1.0, 1.0, 0.0, -3.0, 2.0])).tolist() == [0, 255, 128, 0, 255]


@pytest.mark.parametrize("channels", [1, 3])
def test_images_stand_side_by_side_in_the_file(channels: int) -> None:
    images = torch.rand(3, channels, 4, 5, generator=torch.Generator().manual_seed(0)) * 2 - 1
    read = np.asarray(Image.open(io.BytesIO(base64.b64decode(strip(images)))))
    expected = torch.cat(list(as_pixels(images)), 2).permute(1, 2, 0).numpy().astype(np.uint8)
    assert np.array_equal(read.reshape(expected.shape), expected)
