"""Nothing of an image folder is left out without a word, and all files that cannot be used are named at once."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stillhouse.data.datasets import load_dataset
from stillhouse.data.description import notes_on_test, training_notes
from stillhouse.data.packing import pack_folder
from stillhouse.errors import UsageError

SPLITS = {"train": 0, "val": 100, "test": 200}


def save(path: Path, *colour: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (colour[0], colour[1], colour[2])).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three splits; the red value is the split, the green value the image, the blue value the class."""
    for split, red in SPLITS.items():
        for label, name in enumerate(("cat", "dog")):
            for number in range({"train": 6, "val": 2, "test": 3}[split]):
                save(tmp_path / "images" / split / name / f"{number}.png", red, number, label)
    return tmp_path / "images"


@pytest.mark.parametrize("kind", ["image_folder", "pack"])
@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_val_folder_beside_train_and_test_is_the_validation_split(name: str, kind: str, root: Path, tmp_path: Path) -> None:
    (root / "val").rename(root / name)
    if kind == "pack":
        pack_folder(root, tmp_path / "pack", shard_bytes=200)
        root = tmp_path / "pack"
    data = load_dataset(kind, root=root, validation=0.3)
    for split, red, count in ((data.train, 0, 12), (data.validation, 100, 4), (data.test, 200, 6)):
        assert split.images[:].shape == (count, 3, 4, 4)
        assert (split.images[:][:, 0] == red).all()
        assert torch.equal(split.images[:][:, 2, 0, 0].long(), split.labels)
    assert any("validation images are those of its own folder; dataset.validation has no effect" in note for note in data.notes)
    again = type(data).from_arrays(*data.to_arrays())
    assert torch.equal(again.validation.images[:], data.validation.images[:])


def test_the_fingerprint_knows_the_validation_images(root: Path) -> None:
    before = load_dataset("image_folder", root=root)
    save(root / "val" / "cat" / "0.png", 100, 77, 0)
    assert load_dataset("image_folder", root=root).fingerprint != before.fingerprint


def test_two_validation_folders_are_refused(root: Path) -> None:
    save(root / "valid" / "cat" / "0.png", 1, 2, 3)
    with pytest.raises(UsageError, match="has the folders val and valid; remove or rename one of them"):
        load_dataset("image_folder", root=root)


def test_validation_images_of_another_size_are_refused(root: Path) -> None:
    for path in (root / "val").rglob("*.png"):
        Image.new("RGB", (5, 5)).save(path)
    with pytest.raises(UsageError, match=r"validation images of .* are 3x5x5 and training images 3x4x4; set dataset\.size"):
        load_dataset("image_folder", root=root)


def test_files_with_other_suffixes_are_counted_by_suffix(root: Path) -> None:
    for number in range(3):
        (root / "train" / "cat" / f"{number}.HEIC").write_bytes(b"heic")
    (root / "test" / "dog" / "readme").write_text("no suffix")
    (root / "train" / "cat" / ".DS_Store").write_text("hidden")
    save(root / "train" / "loose.png", 1, 2, 3)
    save(root / "extra" / "cat" / "0.png", 1, 2, 3)
    notes = "\n".join(training_notes(load_dataset("image_folder", root=root)))
    assert "files whose suffix is not that of an image (4): .heic (3), none (1);" in notes
    assert "images in no class folder (1);" in notes
    assert "folders beside train that are no split (extra)." in notes
    assert ".DS_Store" not in notes


def test_a_class_of_files_with_other_suffixes_is_refused_with_their_number(root: Path) -> None:
    for path in (root / "train" / "cat").iterdir():
        path.rename(path.with_suffix(".heic"))
    with pytest.raises(
        UsageError, match=r"train/cat has no image .*, only 6 files with other suffixes; fill, convert or remove it"
    ):
        load_dataset("image_folder", root=root)


def test_a_folder_of_images_alone_has_no_notes(root: Path) -> None:
    (root / "val").rename(root.parent / "val")
    data = load_dataset("image_folder", root=root, validation=4)
    assert [*training_notes(data), *notes_on_test(data)] == []


@pytest.mark.parametrize("count", [1, 3, 25])
def test_all_damaged_images_are_named_up_to_a_limit(count: int, root: Path, tmp_path: Path) -> None:
    for number in range(count):
        (root / "train" / "dog" / f"broken{number:02d}.png").write_bytes(b"broken")
    for read in (
        lambda: load_dataset("image_folder", root=root),
        lambda: pack_folder(root, tmp_path / "pack", shard_bytes=200),
    ):
        with pytest.raises(UsageError) as caught:
            read()
        message = str(caught.value)
        assert message.count("is not a readable image") == min(count, 20)
        assert ("and 5 more" in message) == (count == 25)
        assert message.startswith(f"{count} images cannot be used:") == (count > 1)


def test_images_of_different_faults_are_named_together(root: Path) -> None:
    (root / "train" / "dog" / "broken.png").write_bytes(b"broken")
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(root / "train" / "cat" / "deep.png")
    with pytest.raises(UsageError) as caught:
        load_dataset("image_folder", root=root)
    assert "dog/broken.png is not a readable image" in str(caught.value)
    assert "cat/deep.png has more than 8 bits per channel" in str(caught.value)


def test_a_class_with_one_image_is_noted(root: Path) -> None:
    save(root / "train" / "yak" / "0.png", 1, 2, 3)
    data = load_dataset("image_folder", root=root)
    notes = "\n".join([*training_notes(data), *notes_on_test(data)])
    assert "Only one training image has class 'yak'" in notes
    assert "The validation split has no image of class 'yak'" in notes
    assert "The test split has no image of class 'yak'" in notes
