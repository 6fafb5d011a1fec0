"""Photographs with an EXIF orientation: the same upright pixels in folders and packs, and in the exported example."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stillhouse.data.datasets import load_dataset
from stillhouse.data.decode import decode_image, probe_image, scan_image
from stillhouse.data.packing import pack_folder
from stillhouse.data.packs import Pack
from stillhouse.durable import read_checked, write_checked
from stillhouse.errors import UsageError

# Exif 2.32, section 4.6.4: how a camera stores an upright image for each orientation, as operations on rows and columns.
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: upright.swapaxes(0, 1)[::-1],
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: upright.swapaxes(0, 1)[:, ::-1],
}
UPRIGHT = np.random.default_rng(0).integers(0, 256, (6, 10, 3), np.uint8)


def save(path: Path, orientation: int, upright: np.ndarray = UPRIGHT) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    options: dict[str, Any] = {"lossless": True} if path.suffix == ".webp" else {}
    image.save(path, exif=exif, **options)
    return path


@pytest.mark.parametrize("form", ["png", "webp", "tif"])
@pytest.mark.parametrize("orientation", sorted(STORED))
def test_every_orientation_is_turned_upright(orientation: int, form: str, tmp_path: Path) -> None:
    path = save(tmp_path / f"x.{form}", orientation)
    pixels, _ = decode_image(path, size=None, grey=False, where="x")
    assert np.array_equal(pixels, UPRIGHT.transpose(2, 0, 1))
    for read in (probe_image, scan_image):
        traits = read(path.read_bytes(), where="x")
        assert (traits.width, traits.height) == (10, 6)


def test_jpegs_are_turned_upright(tmp_path: Path) -> None:
    halves = np.zeros((16, 32, 3), np.uint8)
    halves[:, 16:] = 255
    for orientation in STORED:
        path = save(tmp_path / f"{orientation}.jpg", orientation, halves)
        pixels, _ = decode_image(path, size=None, grey=True, where="x")
        assert pixels.shape == (1, 16, 32)
        assert pixels[0, :, :12].max() < 40
        assert pixels[0, :, 20:].min() > 215
        traits = probe_image(path.read_bytes(), where="x")
        assert (traits.width, traits.height, traits.rotated) == (32, 16, orientation != 1)
        assert scan_image(path.read_bytes(), where="x") == traits


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_exif_does_not_define_changes_nothing(value: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    Image.fromarray(UPRIGHT).save(tmp_path / "x.png", exif=exif)
    pixels, _ = decode_image(tmp_path / "x.png", size=None, grey=False, where="x")
    assert np.array_equal(pixels, UPRIGHT.transpose(2, 0, 1))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_damaged_exif_block_leaves_the_pixels(tmp_path: Path) -> None:
    Image.fromarray(UPRIGHT).save(tmp_path / "x.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    pixels, _ = decode_image(tmp_path / "x.png", size=None, grey=False, where="x")
    assert np.array_equal(pixels, UPRIGHT.transpose(2, 0, 1))


def folder(root: Path, orientations: tuple[int, ...]) -> Path:
    rng = np.random.default_rng(1)
    for name in ("a", "b"):
        for number in range(8):
            upright = rng.integers(0, 256, (6, 10, 3), np.uint8)
            save(root / name / f"{number}.png", orientations[number % len(orientations)], upright)
    return root


def test_folder_and_pack_have_the_pixels_of_the_upright_images(tmp_path: Path) -> None:
    upright = load_dataset("image_folder", root=folder(tmp_path / "upright", (1,)), validation=4)
    rotated = load_dataset("image_folder", root=folder(tmp_path / "rotated", (1, 6, 8)), validation=4)
    assert rotated.fingerprint == upright.fingerprint
    for name in ("upright", "rotated"):
        pack_folder(tmp_path / name, tmp_path / f"pack-{name}")
        packed = load_dataset("pack", root=tmp_path / f"pack-{name}", validation=4)
        assert packed.input_shape == (3, 6, 10)
        for split in ("train", "validation", "test"):
            assert torch.equal(getattr(packed, split).images[:], getattr(upright, split).images)


def forget_traits(pack: Path, dimensions: list[int]) -> None:
    """Makes the manifest one of a release that turned no image and recorded no traits."""
    manifest = json.loads(read_checked(pack / "manifest"))
    del manifest["traits"]
    write_checked(pack / "manifest", json.dumps(manifest | {"dimensions": dimensions}).encode())


@pytest.mark.parametrize("orientations", [(1,), (1, 3)])
def test_an_older_pack_has_another_fingerprint_only_if_images_are_rotated(
    orientations: tuple[int, ...], tmp_path: Path
) -> None:
    root = folder(tmp_path / "images", orientations)
    pack_folder(root, tmp_path / "pack")
    new = load_dataset("pack", root=tmp_path / "pack", validation=4, size=8, cache=tmp_path / "cache")
    forget_traits(tmp_path / "pack", [10, 6])
    old = load_dataset("pack", root=tmp_path / "pack", validation=4, size=8, cache=tmp_path / "cache")
    assert old.fingerprint == new.fingerprint
    assert Pack(tmp_path / "pack").scan().rotated == (0 if orientations == (1,) else 8)


def test_an_older_pack_of_rotated_images_without_size_is_packed_again(tmp_path: Path) -> None:
    root = folder(tmp_path / "images", (6,))
    pack_folder(root, tmp_path / "pack")
    forget_traits(tmp_path / "pack", [6, 10])
    with pytest.raises(UsageError, match=r"has rotated images; set dataset\.size, or pack its folder again"):
        load_dataset("pack", root=tmp_path / "pack", validation=4)
    assert pack_folder(root, tmp_path / "pack").written == 0
    assert load_dataset("pack", root=tmp_path / "pack", validation=4).input_shape == (3, 6, 10)
