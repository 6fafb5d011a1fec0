"""What a sweep records about its data set."""

from pathlib import Path

import pytest
from PIL import Image

from stillhouse.data.datasets import load_dataset
from stillhouse.data.description import describe_data
from stillhouse.data.images import ImageData

IMAGES = {"train": {"cat": 8, "dog": 4}, "test": {"cat": 1, "dog": 3}}


@pytest.fixture
def signs(tmp_path: Path) -> Path:
    """An image folder with the numbers of images above."""
    for split, classes in IMAGES.items():
        for label, count in classes.items():
            (tmp_path / "signs" / split / label).mkdir(parents=True)
            for number in range(count):
                image = Image.new("RGB", (4, 4), (number, count, len(label + split)))
                image.save(tmp_path / "signs" / split / label / f"{number}.png")
    return tmp_path / "signs"


def test_folder_classes_and_the_most_common_class_of_each_split_are_recorded(signs: Path) -> None:
    described = describe_data(load_dataset("image_folder", root=signs, validation=3))
    assert (described["name"], described["folder"], described["class_names"]) == ("image_folder", "signs", ["cat", "dog"])
    assert [described[f"{split}_samples"] for split in ("train", "validation", "test")] == [9, 3, 4]
    # 12 training images, of which 3 are taken for validation, stratified: 6 of 8 cats and 3 of 4 dogs remain.
    assert described["majority"] == {
        "train": {"class": "cat", "share": pytest.approx(6 / 9)},
        "validation": {"class": "cat", "share": pytest.approx(2 / 3)},
        "test": {"class": "dog", "share": pytest.approx(3 / 4)},
    }


def test_a_published_data_set_needs_no_folder() -> None:
    described = describe_data(load_dataset("digits", validation=100))
    assert "folder" not in described
    assert (described["test_samples"], described["num_classes"], described["class_names"]) == (360, 10, list("0123456789"))


def test_the_folder_is_known_in_other_processes(signs: Path) -> None:
    data = load_dataset("image_folder", root=signs, validation=3)
    assert ImageData.from_arrays(*data.to_arrays()).folder == "signs"


def test_numbers_have_no_classes(signs: Path) -> None:
    data = load_dataset("image_folder", root=signs, validation=3)
    data.class_names, data.num_classes = (), 1
    described = describe_data(data)
    assert described["outputs"] == 1
    assert not described.keys() & {"num_classes", "class_names", "majority"}
    assert described["test_samples"] == 4
