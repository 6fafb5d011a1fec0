"""Decoding of single images: colours, cropping, and files that must not be used."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stillhouse.data.decode import ImageTraits, decode_image, decoder_identity, probe_image
from stillhouse.errors import UsageError


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def test_pixels_are_channels_first_and_unchanged() -> None:
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    decoded, _ = decode_image(encoded(Image.fromarray(pixels)), size=None, grey=False, where="x")
    assert decoded.shape == (3, 2, 3)
    assert np.array_equal(decoded, pixels.transpose(2, 0, 1))


def test_grey_is_the_weighted_sum_of_itu_r_bt_601() -> None:
    image = Image.new("RGB", (4, 4), (200, 100, 50))
    decoded, _ = decode_image(encoded(image), size=None, grey=True, where="x")
    assert decoded.shape == (1, 4, 4)
    assert abs(int(decoded[0, 0, 0]) - (0.299 * 200 + 0.587 * 100 + 0.114 * 50)) < 1


def test_a_grey_file_has_three_equal_channels_in_colour() -> None:
    decoded, _ = decode_image(encoded(Image.new("L", (2, 2), 77)), size=None, grey=False, where="x")
    assert decoded.tolist() == [[[77, 77], [77, 77]]] * 3


def test_the_middle_square_is_cut_out() -> None:
    pixels = np.zeros((3, 9), np.uint8)
    pixels[:, 3:6] = 255
    decoded, _ = decode_image(encoded(Image.fromarray(pixels)), size=3, grey=True, where="x")
    assert decoded.tolist() == [[[255] * 3] * 3]


def test_a_file_and_its_bytes_give_the_same_pixels(tmp_path: Path) -> None:
    content = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)), "JPEG")
    (tmp_path / "a.jpg").write_bytes(content)
    from_file, _ = decode_image(tmp_path / "a.jpg", size=8, grey=False, where="x")
    assert np.array_equal(from_file, decode_image(content, size=8, grey=False, where="x")[0])


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_probing_returns_width_and_height(form: str) -> None:
    traits = probe_image(encoded(Image.new("RGB", (30, 20)), form), where="x")
    assert traits == ImageTraits(width=30, height=20, rotated=False, transparent=False)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_truncated_images_are_refused_by_both(form: str) -> None:
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 40, 3), np.uint8))
    content = encoded(noise, form)[:-400]
    with pytest.raises(UsageError, match="the file x is not a readable image; repair or remove it"):
        decode_image(content, size=None, grey=False, where="the file x")
    with pytest.raises(UsageError, match="the file x is not a readable image"):
        probe_image(content, where="the file x")


def test_images_of_16_bits_are_refused_by_both() -> None:
    content = encoded(Image.fromarray(np.full((4, 4), 40_000, np.uint16)))
    with pytest.raises(UsageError, match="more than 8 bits per channel"):
        decode_image(content, size=None, grey=True, where="x")
    with pytest.raises(UsageError, match="more than 8 bits per channel"):
        probe_image(content, where="x")


def test_the_identity_names_the_libraries_that_determine_the_pixels() -> None:
    import PIL

    assert decoder_identity().keys() == {"pillow", "jpeg", "turbo"}
    assert decoder_identity()["pillow"] == PIL.__version__
