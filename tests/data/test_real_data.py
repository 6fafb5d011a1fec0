"""Tests with the published files, if STILLHOUSE_TEST_DATA names a folder that has them."""

import os
from pathlib import Path

import pytest
import torch

from stillhouse.data.datasets import ImageData, load_dataset

ROOT = Path(os.environ.get("STILLHOUSE_TEST_DATA", ""))


def load(name: str, folder: str, validation: float = 0.1) -> ImageData:
    if "STILLHOUSE_TEST_DATA" not in os.environ or not (ROOT / folder).is_dir():
        pytest.skip(f"STILLHOUSE_TEST_DATA names no folder that holds {folder}")
    return load_dataset(name, root=ROOT, validation=validation)


@pytest.mark.parametrize(
    ("name", "folder", "mean", "std"), [("mnist", "MNIST", 0.1307, 0.3081), ("fashion_mnist", "FashionMNIST", 0.2860, 0.3530)]
)
def test_mean_and_deviation_are_the_published_ones(name: str, folder: str, mean: float, std: float) -> None:
    data = load(name, folder, validation=5000)
    assert (len(data.train), len(data.validation), len(data.test)) == (55_000, 5000, 10_000)
    assert data.mean[0] == pytest.approx(mean, abs=5e-4)
    assert data.std[0] == pytest.approx(std, abs=5e-4)


def test_mnists_test_split_has_its_published_class_counts() -> None:
    counts = torch.bincount(load("mnist", "MNIST").test.labels)
    assert counts.tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_fashion_mnist_validation_has_equally_many_samples_of_each_class() -> None:
    assert torch.bincount(load("fashion_mnist", "FashionMNIST", validation=5000).validation.labels).tolist() == [500] * 10
