"""Images that change while size and time of their files stay: archives made reproducibly set every time to 0."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stillhouse.data.datasets import load_dataset
from stillhouse.data.packing import pack_folder
from stillhouse.data.packs import Pack
from stillhouse.errors import UsageError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Uncompressed images, so that all files have one length; dark and light."""
    for name, value in (("dark", 40), ("light", 200)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(10):
            image = Image.fromarray(np.full((4, 4, 3), value + number, np.uint8))
            image.save(tmp_path / "images" / name / f"{number}.bmp")
    reset_times(tmp_path / "images")
    return tmp_path / "images"


def reset_times(root: Path) -> None:
    for path in root.rglob("*.bmp"):
        os.utime(path, (0, 0))


def swap_classes(root: Path) -> None:
    """Exchanges the contents of the two classes in place."""
    for path in (root / "dark").iterdir():
        other = root / "light" / path.name
        dark, light = path.read_bytes(), other.read_bytes()
        assert len(dark) == len(light)
        path.write_bytes(light)
        other.write_bytes(dark)
    reset_times(root)


def test_a_folder_has_the_pixels_of_its_files(root: Path, tmp_path: Path) -> None:
    def darkest_class() -> int:
        data = load_dataset("image_folder", root=root, validation=4, cache=tmp_path / "cache")
        (label,) = {int(label) for image, label in zip(data.train.images, data.train.labels, strict=True) if image.max() < 100}
        return label

    assert darkest_class() == 0
    swap_classes(root)
    assert darkest_class() == 1


def test_a_complete_pack_of_the_earlier_content_is_refused(root: Path, tmp_path: Path) -> None:
    pack_folder(root, tmp_path / "pack")
    swap_classes(root)
    with pytest.raises(UsageError, match="has a pack of other images than"):
        pack_folder(root, tmp_path / "pack")


def test_packing_that_was_interrupted_does_not_use_shards_of_the_earlier_content(root: Path, tmp_path: Path) -> None:
    pack_folder(root, tmp_path / "pack", shard_bytes=300)
    (tmp_path / "pack" / "manifest").unlink()
    swap_classes(root)
    packed = pack_folder(root, tmp_path / "pack", shard_bytes=300)
    assert packed.written == packed.shards
    first, where = Pack(tmp_path / "pack").encoded("train", 0)
    assert first == (root / where.partition(": ")[2]).read_bytes()
