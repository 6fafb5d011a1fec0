"""The identity of an evaluation: it changes with whatever changes a test value, and with nothing else."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stillhouse.data.datasets import ImageData, load_dataset
from stillhouse.data.evaluation_identity import evaluation_identity


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_dataset("digits", validation=80, options={"limit": 240})


def with_test(data: ImageData, images: np.ndarray, labels: np.ndarray) -> ImageData:
    return dataclasses.replace(data, read_test=lambda: (images, labels), _test=None)


def test_one_pixel_or_one_label_of_the_test_split_changes_it(digits: ImageData) -> None:
    images, labels = digits.test.images.numpy(), digits.test.labels.numpy()
    known = evaluation_identity(digits)
    assert evaluation_identity(with_test(digits, images.copy(), labels.copy())) == known
    pixel, label = images.copy(), labels.copy()
    pixel[3, 0, 2, 2] ^= 1
    label[5] = (label[5] + 1) % 10
    changed = [evaluation_identity(with_test(digits, *pair)) for pair in ((pixel, labels), (images, label))]
    assert len({known["test"], *(each["test"] for each in changed)}) == 3
    assert all(each["classes"] == known["classes"] for each in changed)


def test_the_order_of_class_names_and_the_normalisation_change_it(digits: ImageData) -> None:
    known = evaluation_identity(digits)
    renamed = evaluation_identity(dataclasses.replace(digits, class_names=digits.class_names[::-1]))
    assert {name for name in known if renamed[name] != known[name]} == {"classes"}
    scaled = evaluation_identity(dataclasses.replace(digits, mean=(0.5,)))
    assert {name for name in known if scaled[name] != known[name]} == {"normalisation"}


def test_every_process_computes_the_same_one(digits: ImageData) -> None:
    assert evaluation_identity(ImageData.from_arrays(*digits.to_arrays())) == evaluation_identity(digits)


def test_a_pack_has_the_one_of_its_rows_without_decoding_them(tmp_path: Path) -> None:
    from stillhouse.data.packing import pack_folder

    generator = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 4)):
        for label in ("a", "b"):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    pack_folder(tmp_path / "images", tmp_path / "pack")
    first, again, fewer = (
        evaluation_identity(load_dataset("pack", root=tmp_path / "pack", validation=4, size=8, options=options))
        for options in ({}, {}, {"limit_test": 4})
    )
    assert first == again
    assert fewer["test"] != first["test"]
