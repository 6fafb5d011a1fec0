"""Transparent images: black glyphs on a transparent ground must not become black images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stillhouse.data.datasets import dataset_problems, load_dataset
from stillhouse.data.decode import decode_image, probe_image
from stillhouse.data.description import notes_on_test, training_notes
from stillhouse.data.images import ImageData
from stillhouse.data.packing import pack_folder

SIDE = 8


def glyph(*, cross: bool) -> Image.Image:
    """A black bar, or a cross, on a transparent ground."""
    pixels = np.zeros((SIDE, SIDE, 4), np.uint8)
    pixels[3:5, :, 3] = 255
    if cross:
        pixels[:, 3:5, 3] = 255
    return Image.fromarray(pixels)


def as_mode(image: Image.Image, mode: str) -> tuple[Image.Image, dict[str, Any]]:
    """The image in another mode with transparency, and the arguments with which PIL stores it."""
    alpha = image.getchannel("A")
    match mode:
        case "LA" | "PA" | "RGBA":
            return image.convert(mode), {}
        case "P":
            # Entry 0 of the palette is transparent, entry 1 is black.
            indices = Image.fromarray((np.asarray(alpha) > 0).astype(np.uint8), "P")
            indices.putpalette([9, 200, 9, 0, 0, 0])
            return indices, {"transparency": 0}
        case "L" | "RGB" | "1":
            # The colour of the ground is declared to be transparent.
            colours = Image.new(mode, image.size, "white" if mode != "RGB" else (1, 2, 3))
            colours.paste("black" if mode != "RGB" else (0, 0, 0), mask=alpha)
            return colours, {"transparency": {"L": 255, "RGB": (1, 2, 3), "1": 1}[mode]}
    raise AssertionError(mode)


def expected(ground: int, *, cross: bool) -> np.ndarray:
    return np.where(np.asarray(glyph(cross=cross))[:, :, 3] > 0, 0, ground)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB", "1"])
@pytest.mark.parametrize("form", ["png", "gif", "webp", "tif"])
def test_a_glyph_is_black_on_the_ground_in_every_mode_and_format(mode: str, form: str, tmp_path: Path) -> None:
    image, arguments = as_mode(glyph(cross=True), mode)
    if form == "webp" and mode == "RGBA":
        arguments["lossless"] = True
    elif (form, mode) not in {("gif", "P"), ("tif", "RGBA"), ("tif", "LA")} and form != "png":
        pytest.skip(f"{form} stores no transparency of mode {mode}")
    image.save(tmp_path / f"x.{form}", **arguments)
    for ground in (255, 0, 77):
        colour = (ground, ground, ground)
        for grey in (False, True):
            pixels, transparent = decode_image(tmp_path / f"x.{form}", size=None, grey=grey, where="x", ground=colour)
            assert transparent
            assert (pixels == expected(ground, cross=True)).all()
    assert probe_image((tmp_path / f"x.{form}").read_bytes(), where="x").transparent


def test_a_pixel_that_is_half_transparent_is_half_the_ground(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (200, 100, 0, 51)).save(tmp_path / "x.png")
    pixels, _ = decode_image(tmp_path / "x.png", size=None, grey=False, where="x", ground=(100, 100, 50))
    # 51 / 255 is a fifth: (200 + 4 * 100) / 5, (100 + 4 * 100) / 5, (0 + 4 * 50) / 5.
    assert pixels[:, 0, 0].tolist() == [120, 100, 40]


def test_an_opaque_alpha_channel_changes_no_pixel(tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8))
    image.convert("RGBA").save(tmp_path / "x.png")
    pixels, transparent = decode_image(tmp_path / "x.png", size=None, grey=False, where="x")
    assert np.array_equal(pixels, np.asarray(image).transpose(2, 0, 1))
    assert not transparent


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("cross", "bar"):
        (tmp_path / "glyphs" / name).mkdir(parents=True)
        for number in range(8):
            glyph(cross=name == "cross").save(tmp_path / "glyphs" / name / f"{number}.png")
    return tmp_path / "glyphs"


def load(name: str, root: Path, **options: object) -> ImageData:
    return load_dataset(name, root=root, validation=2, options=options, cache=root.parent / "cache")


@pytest.mark.parametrize("name", ["image_folder", "pack"])
def test_classes_of_glyphs_differ_and_the_ground_is_an_option(name: str, root: Path, tmp_path: Path) -> None:
    if name == "pack":
        pack_folder(root, tmp_path / "pack")
        root = tmp_path / "pack"
    loaded = {}
    for ground, value in (("white", 255), ("black", 0), (77, 77), ([255, 255, 255], 255)):
        data = load(name, root, ground=ground)
        for split in (data.train, data.validation, data.test):
            for image, label in zip(split.images[:], split.labels.tolist(), strict=True):
                assert torch.equal(image, torch.from_numpy(expected(value, cross=label == 1)).to(torch.uint8).expand(3, -1, -1))
        loaded[str(ground)] = data.fingerprint
    assert loaded["white"] == loaded["[255, 255, 255]"] == load(name, root).fingerprint
    assert len(set(loaded.values())) == 3


@pytest.mark.parametrize("name", ["image_folder", "pack"])
def test_the_user_reads_that_images_are_transparent(name: str, root: Path, tmp_path: Path) -> None:
    if name == "pack":
        pack_folder(root, tmp_path / "pack")
        root = tmp_path / "pack"
    for _ in ("decoded", "from the cache"):
        data = load(name, root)
        notes = [*training_notes(data), *notes_on_test(data)]
        assert any("images have transparent parts, shown on the ground [255, 255, 255]" in note for note in notes)
        assert any("set dataset.options.ground" in note for note in notes)


@pytest.mark.parametrize("value", ["red", -1, 256, 1.5, True, [1, 2], [1, 2, 300], None])
def test_a_ground_that_is_no_colour_is_refused(value: object, root: Path) -> None:
    (problem,) = dataset_problems("image_folder", root=root, options={"ground": value})
    assert str(problem).startswith("dataset.options.ground must be white, black, a grey value in 0..255, or [red, green, blue]")
