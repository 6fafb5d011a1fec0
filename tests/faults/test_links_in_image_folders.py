"""Links in image folders: circles, images that are reachable twice, images in two classes and in two splits."""

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from stillhouse.data.datasets import load_dataset
from stillhouse.data.description import notes_on_test, training_notes
from stillhouse.data.images import ImageData
from stillhouse.data.packing import pack_folder
from stillhouse.errors import UsageError

PER_CLASS = 10


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes in one folder; every image has its own colour."""
    root = tmp_path / "images"
    for label, name in enumerate(("dark", "light")):
        (root / name).mkdir(parents=True)
        for number in range(PER_CLASS):
            Image.new("RGB", (4, 4), (100 * label, number, 50)).save(root / name / f"{number}.png")
    return root


def load(root: Path) -> ImageData:
    return load_dataset("image_folder", root=root, validation=4)


def pixels(data: ImageData) -> list[tuple[int, ...]]:
    images = torch.cat([split.images[:, :, 0, 0] for split in (data.train, data.validation, data.test)])
    return sorted(tuple(image) for image in images.tolist())


@pytest.mark.parametrize("target", ["..", ".", "../..", "../../images"])
def test_a_link_to_a_folder_around_it_is_not_followed(root: Path, target: str) -> None:
    before = load(root)
    (root / "dark" / "up").symlink_to(target)
    data = load(root)
    assert pixels(data) == pixels(before)
    assert data.fingerprint == before.fingerprint
    assert any("left out: links to a folder around them (1)" in note for note in data.notes)


def test_two_folders_that_link_to_each_other_end(root: Path) -> None:
    for one, other in (("a", "b"), ("b", "a")):
        (root / "dark" / one).mkdir()
        (root / "dark" / one / "other").symlink_to(f"../{other}")
    assert len(pixels(load(root))) == 2 * PER_CLASS


def test_a_file_and_a_link_to_it_are_one_image(root: Path) -> None:
    (root / "dark" / "zz.png").symlink_to("3.png")
    os.link(root / "dark" / "4.png", root / "dark" / "zzz.png")
    data = load(root)
    assert len(pixels(data)) == 2 * PER_CLASS
    assert any("left out: links to images that are already in the same split (2)" in note for note in data.notes)


def test_linked_folders_and_files_are_images_of_the_class(root: Path, tmp_path: Path) -> None:
    (root / "dark").rename(tmp_path / "elsewhere")
    (root / "dark").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "1.png").write_bytes((root / "light" / "1.png").read_bytes())
    (root / "light" / "1.png").unlink()
    (root / "light" / "1.png").symlink_to(tmp_path / "1.png")
    assert len(pixels(load(root))) == 2 * PER_CLASS


@pytest.mark.parametrize("linked", ["folder", "file", "hard"])
def test_an_image_in_two_classes_is_refused_by_both_names(root: Path, linked: str) -> None:
    if linked == "folder":
        (root / "dark" / "bright").symlink_to("../light")
    elif linked == "file":
        (root / "dark" / "other.png").symlink_to("../light/7.png")
    else:
        os.link(root / "light" / "7.png", root / "dark" / "other.png")
    for read in (load, lambda root: pack_folder(root, root.parent / "pack")):
        with pytest.raises(UsageError, match=r"are one file in two classes; remove one of the two") as caught:
            read(root)
        assert "light/7.png" in str(caught.value)
        assert f"{root}/dark/" in str(caught.value)


def test_a_link_to_nothing_is_named(root: Path) -> None:
    (root / "dark" / "broken.png").symlink_to("nowhere.png")
    (root / "dark" / "self.png").symlink_to("self.png")
    with pytest.raises(UsageError, match="2 image files cannot be read; repair or remove them") as caught:
        load(root)
    assert "broken.png (No such file or directory)" in str(caught.value)
    assert "self.png (Too many levels of symbolic links)" in str(caught.value)


def test_a_pipe_with_the_name_of_an_image_is_refused(root: Path) -> None:
    os.mkfifo(root / "dark" / "pipe.png")
    with pytest.raises(UsageError, match=r"pipe\.png \(not a file\) cannot be read"):
        load(root)


def split_in_two(root: Path) -> Path:
    for name in ("dark", "light"):
        for number in range(PER_CLASS):
            split = "train" if number < 7 else "test"
            (root / split / name).mkdir(parents=True, exist_ok=True)
            (root / name / f"{number}.png").rename(root / split / name / f"{number}.png")
        (root / name).rmdir()
    return root


def test_images_that_are_in_training_and_in_test_are_counted(root: Path) -> None:
    split_in_two(root)
    (root / "test" / "dark" / "link.png").symlink_to("../../train/dark/1.png")
    (root / "test" / "light" / "copy.png").write_bytes((root / "train" / "light" / "2.png").read_bytes())
    data = load_dataset("image_folder", root=root, validation=2)
    trained = {tuple(image) for image in data.train.images[:, :, 0, 0].tolist()}
    shared = sum(tuple(image) in trained for image in data.test.images[:, :, 0, 0].tolist())
    (note,) = notes_on_test(data)
    assert note.startswith(f"{shared} of the 8 test images are among the training images too")


def test_images_that_are_in_training_and_in_validation_are_counted(root: Path) -> None:
    for number in range(PER_CLASS):
        (root / "dark" / f"copy{number}.png").write_bytes((root / "dark" / f"{number}.png").read_bytes())
    data = load(root)
    trained = {tuple(image) for image in data.train.images[:, :, 0, 0].tolist()}
    shared = sum(tuple(image) in trained for image in data.validation.images[:, :, 0, 0].tolist())
    assert shared > 0
    assert f"{shared} of the 4 validation images are among the training images too" in " ".join(training_notes(data))


def test_the_images_of_a_pack_are_compared_by_their_content(root: Path, tmp_path: Path) -> None:
    split_in_two(root)
    for number in range(7):
        copied = (root / "train" / "light" / f"{number}.png").read_bytes()
        (root / "test" / "light" / f"copy{number}.png").write_bytes(copied)
    pack_folder(root, tmp_path / "pack")
    data = load_dataset("pack", root=tmp_path / "pack", validation=2)
    trained = sum(label == 1 for label in data.train.labels.tolist())
    (note,) = notes_on_test(data)
    assert note.startswith(f"{trained} of the 13 test images are among the training images too")


def test_copies_of_an_image_in_two_classes_are_counted(root: Path) -> None:
    split_in_two(root)
    (root / "train" / "dark" / "copy.png").write_bytes((root / "train" / "light" / "2.png").read_bytes())
    data = load_dataset("image_folder", root=root, validation=1)
    colours = [tuple(image) for image in data.train.images[:, :, 0, 0].tolist()]
    if colours.count((100, 2, 50)) == 2:
        assert any(
            " training images are the same as one of another class" in note and note.startswith("2 of")
            for note in training_notes(data)
        )
    else:
        assert any(note.startswith("1 of the 1 validation images") for note in training_notes(data))
