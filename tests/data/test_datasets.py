from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from stillhouse.data import sets
from stillhouse.data.datasets import ImageData, dataset_facts, dataset_names, dataset_problems, load_dataset
from stillhouse.errors import UsageError

MODULE = """
import numpy as np

def pixels(*shape):
    return (np.arange(np.prod(shape)) % 251).reshape(shape).astype(np.uint8)

def pairs(classes=3, height=6, width=6, root=None):
    labels = np.arange(60) % classes
    return (pixels(60, height, width), labels), (pixels(9, height, width), np.arange(9) % classes)

def mapping():
    (train, test) = pairs()
    return {"train": train, "test": lambda: test, "class_names": ["a", "b", "c"]}

def channels_last():
    (images, labels), test = pairs()
    return (np.stack([images, images, images], axis=3), labels), test

def floats():
    (images, labels), test = pairs()
    return (images / 255, labels), test

def unequal():
    (images, labels), test = pairs()
    return (images, labels[:-1]), test

def strange_test():
    train, (images, labels) = pairs()
    return train, (images, labels + 3)

def raises():
    raise RuntimeError("no such patient")

def nothing():
    return None

def many_classes():
    train, test = pairs()
    return {"train": train, "test": test, "num_classes": "three"}

number = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"own_data_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def rows(data: ImageData) -> list[bytes]:
    """Every image with its label, of all splits, sorted."""
    splits = (data.train, data.validation, data.test)
    pairs = [zip(split.images.numpy(), split.labels.tolist(), strict=True) for split in splits]
    return sorted(image.tobytes() + bytes([label]) for split in pairs for image, label in split)


def test_digits_are_scikit_learns_images_scaled_to_bytes() -> None:
    bunch = load_digits()
    scaled = np.rint(bunch.images * 255 / 16 + 1e-9).astype(np.uint8)
    expected = sorted(image.tobytes() + bytes([label]) for image, label in zip(scaled, bunch.target, strict=True))
    assert rows(load_dataset("digits")) == expected


def test_digits_have_their_sizes() -> None:
    data = load_dataset("digits", validation=200)
    assert (len(data.train), len(data.validation), len(data.test)) == (1237, 200, 360)
    assert (data.input_shape, data.num_classes, data.train.images.dtype) == ((1, 8, 8), 10, torch.uint8)


def test_validation_is_stratified() -> None:
    counts = torch.bincount(load_dataset("digits", validation=200).validation.labels)
    assert counts.min() >= 19
    assert counts.max() <= 21


def test_the_seed_chooses_the_validation_split_and_leaves_the_test_split_alone() -> None:
    one, same, other = (load_dataset("digits", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.validation.images, same.validation.images)
    assert not torch.equal(one.validation.images, other.validation.images)
    assert torch.equal(one.test.images, other.test.images)


def test_the_fingerprint_depends_on_the_content() -> None:
    one, same = load_dataset("digits"), load_dataset("digits")
    others = [load_dataset("digits", seed=1), load_dataset("digits", validation=100), load_dataset("digits", size=9)]
    assert one.fingerprint == same.fingerprint
    assert len({one.fingerprint, *(data.fingerprint for data in others)}) == 4


def test_the_fingerprint_needs_no_test_data() -> None:
    data = load_dataset("digits", options={"limit_test": 20})
    assert data.fingerprint == load_dataset("digits").fingerprint
    assert data.test_reads == 0


def test_limits_take_a_stratified_part() -> None:
    data = load_dataset("digits", validation=50, options={"limit": 300, "limit_test": 100})
    assert (len(data.train), len(data.validation), len(data.test)) == (250, 50, 100)
    for split, size in ((data.train, 25), (data.validation, 5), (data.test, 10)):
        assert (torch.bincount(split.labels) - size).abs().max() <= 2


def test_a_limit_takes_the_same_samples_for_every_seed() -> None:
    one, other = (load_dataset("digits", seed=seed, options={"limit": 300}) for seed in (1, 2))
    assert rows(one) == rows(other)


def test_resizing_keeps_flat_images_flat_and_the_mean_of_others() -> None:
    small, large = load_dataset("digits"), load_dataset("digits", size=16)
    assert large.input_shape == (1, 16, 16)
    assert large.test.images.shape == (360, 1, 16, 16)
    assert large.mean[0] == pytest.approx(small.mean[0], abs=0.01)


def test_shrinking_is_antialiased(module: str) -> None:
    options = {"height": 32, "width": 32}
    data = load_dataset(f"{module}:pairs", size=4, options=options)
    # Antialiasing averages over 8x8 pixels; picking pixels would keep the range of 0..250.
    assert data.train.images.min() > 60
    assert data.train.images.max() < 190


def test_a_user_defined_function_is_a_data_set(module: str) -> None:
    data = load_dataset(f"{module}:pairs", validation=12, options={"classes": 4})
    assert (data.num_classes, data.input_shape) == (4, (1, 6, 6))
    assert (len(data.train), len(data.validation), len(data.test)) == (48, 12, 9)


def test_a_user_defined_mapping_may_name_classes_and_defer_the_test_split(module: str) -> None:
    data = load_dataset(f"{module}:mapping")
    assert data.class_names == ("a", "b", "c")
    assert len(data.test) == 9


def test_images_with_channels_last_are_transposed(module: str) -> None:
    data = load_dataset(f"{module}:channels_last")
    assert data.input_shape == (3, 6, 6)
    assert torch.equal(data.train.images[:, 0], data.train.images[:, 2])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("floats", "train images of .* must be uint8 in 0..255, got float64"),
        ("unequal", "returned 60 train images and 59 labels; there must be one label for each"),
        ("raises", "raised RuntimeError: no such patient"),
        ("nothing", r"must return \(train, test\) or a mapping, it returned NoneType"),
        ("number", "must be a function, it is int"),
        ("many_classes", "num_classes of .* must be a whole number, got 'three'"),
        ("pears", "has no function 'pears'"),
    ],
)
def test_a_mistake_in_a_user_defined_data_set_is_reported(module: str, function: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_dataset(f"{module}:{function}")


def test_test_labels_that_training_lacks_are_refused_when_they_are_read(module: str) -> None:
    data = load_dataset(f"{module}:strange_test")
    with pytest.raises(UsageError, match=r"test split, must be in 0..2, got 5"):
        _ = data.test


def test_a_module_that_does_not_exist_is_reported_with_the_remedy() -> None:
    with pytest.raises(UsageError, match=r"no_such_module_anywhere:f cannot be imported .*; .*put the folder .* on PYTHONPATH"):
        load_dataset("no_such_module_anywhere:f")


def test_a_module_that_cannot_be_imported_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "misspelt_data.py").write_text("def load(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match="misspelt_data:load cannot be imported: SyntaxError"):
        load_dataset("misspelt_data:load")


def test_a_validation_share_that_leaves_a_class_without_training_images_is_refused() -> None:
    with pytest.raises(UsageError, match=r"class '.' of digits has no training image besides the 14 for validation"):
        load_dataset("digits", validation=14, options={"limit": 20})


def test_more_validation_than_there_are_images_is_refused() -> None:
    with pytest.raises(UsageError, match="requests 2000 of the 1437 training images of digits"):
        load_dataset("digits", validation=2000)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"name": "mnst", "root": "."}, "dataset.name names no data set 'mnst'; did you mean 'mnist'?"),
        ({"name": "mnist"}, "dataset.root must name the folder that holds mnist, got none"),
        (
            {"name": "mnist", "root": "/no/such/folder"},
            "dataset.root must be a folder that exists, got /no/such/folder; name",
        ),
        ({"name": "digits", "validation": 1.0}, "dataset.validation must be a count >= 0 or a share in (0, 1), got 1.0"),
        ({"name": "digits", "validation": -1}, "dataset.validation must be a count >= 0 or a share in (0, 1), got -1"),
        ({"name": "digits", "size": 0}, "dataset.size must be a whole number of pixels in 1..65500, got 0"),
        ({"name": "digits", "options": {"limt": 5}}, "dataset.options.limt is not an option of digits; did you mean 'limit'?"),
        ({"name": "digits", "options": {"limit": 0}}, "dataset.options.limit must be a whole number >= 1, got 0"),
        ({"name": "image_folder", "root": ".", "options": {"grey": 1}}, "dataset.options.grey must be true or false, got 1"),
        ({"name": "image_folder", "root": ".", "options": {"test_share": 2}}, "test_share must be in (0, 1), got 2"),
    ],
    ids=str,
)
def test_wrong_arguments_are_found_before_anything_is_read(arguments: dict[str, Any], sentence: str) -> None:
    problems = dataset_problems(**arguments)
    assert len(problems) == 1
    assert sentence in str(problems[0])
    with pytest.raises(UsageError):
        load_dataset(**arguments)


def test_facts_of_shipped_data_sets_are_known_without_reading() -> None:
    assert dataset_facts("digits").input_shape == load_dataset("digits").input_shape
    assert dataset_facts("cifar100").num_classes == 100
    assert dataset_facts("stl10", size=32).input_shape == (3, 32, 32)
    assert dataset_facts("image_folder", size=16, options={"grey": True}).input_shape == (1, 16, 16)
    assert dataset_facts("image_folder").input_shape is None
    assert dataset_facts("own:data").num_classes is None
    assert all(dataset_facts(name) for name in dataset_names())


def idx(array: NDArray[np.uint8]) -> bytes:
    """The IDX format of the MNIST family."""
    return bytes([0, 0, 8, array.ndim]) + b"".join(length.to_bytes(4, "big") for length in array.shape) + array.tobytes()


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_files_of_the_mnist_family_are_read_unchanged(tmp_path: Path, name: str, folder: str) -> None:
    raw = tmp_path / folder / "raw"
    raw.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (60, 28, 28), dtype=np.uint8)
    labels = (np.arange(60) % 10).astype(np.uint8)
    for prefix, chosen in (("train", slice(0, 40)), ("t10k", slice(40, 60))):
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images[chosen]))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels[chosen]))
    data = load_dataset(name, root=tmp_path, validation=10)
    expected = sorted(image.tobytes() + bytes([label]) for image, label in zip(images, labels, strict=True))
    assert rows(data) == expected
    assert np.array_equal(data.test.images[:, 0].numpy(), images[40:])


def test_a_truncated_file_is_reported_with_its_folder(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{name}-ubyte").write_bytes(b"\0\0\x08\x03")
    with pytest.raises(UsageError, match=f"mnist cannot be read from {raw}"):
        load_dataset("mnist", root=tmp_path)


@pytest.mark.parametrize(
    "name", [name for name in dataset_names() if name not in ("digits", "image_folder", "pack", *sets.names())]
)
def test_an_empty_root_is_reported_with_the_remedy(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=rf"{name} cannot be read from {tmp_path}.*or set dataset.download to true") as caught:
        load_dataset(name, root=tmp_path)
    assert "\n" not in str(caught.value)
