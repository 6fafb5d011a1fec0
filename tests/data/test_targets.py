"""What a task accepts as targets, and what they imply: classes as before, and numbers."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stillhouse.data.datasets import dataset_facts, load_dataset
from stillhouse.data.images import ImageData
from stillhouse.data.targets import ClassLabels, Numbers
from stillhouse.errors import UsageError

MODULE = """
import numpy as np

def load(width=0, bad=False):
    images = np.zeros((60, 8, 8), np.uint8)
    ages = np.arange(60, dtype=np.float64) / 2
    if width:
        ages = np.stack([ages] * width, axis=1)
    if bad:
        ages[3] = np.nan
    return (images[:40], ages[:40]), (images[40:], ages[40:])

load.task = "ages:AgeTask"
"""


@pytest.fixture
def ages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "ages.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "ages:load"
    sys.modules.pop("ages", None)


def load(name: str, **options: Any) -> ImageData:
    return load_dataset(name, validation=10, options=options, task="ages:AgeTask", targets=Numbers())


def test_numbers_are_stored_as_float32_and_a_model_returns_one_of_them(ages: str) -> None:
    data = load(ages)
    assert data.num_classes == 1
    assert data.class_names == ()
    assert data.train.labels.dtype == data.test.labels.dtype == torch.float32
    assert data.train.labels.shape == (30,)
    assert data.test.labels.tolist() == [place / 2 for place in range(40, 60)]


def test_a_model_returns_as_many_numbers_as_each_sample_has(ages: str) -> None:
    data = load(ages, width=3)
    assert data.num_classes == 3
    assert data.validation.labels.shape == (10, 3)


def test_the_validation_split_takes_the_same_share_of_small_and_large_numbers(ages: str) -> None:
    """Ten groups of four samples each, and ten samples are taken: one of each group."""
    groups = np.sort(load(ages).validation.labels.numpy() // 2)
    assert groups.tolist() == list(range(10))


def test_a_limit_takes_the_same_share_of_small_and_large_numbers(ages: str) -> None:
    data = load(ages, limit=20)
    both = np.concatenate([data.train.labels.numpy(), data.validation.labels.numpy()])
    assert np.bincount((both // 2).astype(int)).tolist() == [2] * 10


def test_a_target_that_is_not_finite_is_refused(ages: str) -> None:
    with pytest.raises(UsageError, match=r"train labels of ages:load must be finite numbers"):
        load(ages, bad=True)


def test_the_task_is_sent_with_the_data(ages: str) -> None:
    data = load(ages)
    arrays, facts = data.to_arrays()
    assert ImageData.from_arrays(arrays, facts).task == "ages:AgeTask"


def test_classification_names_no_task_in_what_is_sent() -> None:
    """Data that the first release wrote keeps its meaning."""
    data = load_dataset("digits", validation=10)
    assert data.task is None
    assert "task" not in data.facts()


def test_a_function_declares_its_task(ages: str) -> None:
    assert dataset_facts(ages).task == "ages:AgeTask"
    assert dataset_facts("nowhere:load").task is None
    assert dataset_facts("digits").task is None


def test_digits_can_be_read_as_numbers() -> None:
    data = load("digits")
    assert data.num_classes == 1
    assert sorted(set(data.train.labels.tolist())) == list(range(10))


def test_classes_must_be_whole_numbers() -> None:
    with pytest.raises(UsageError, match=r"x must be whole numbers \[N\], got float64 \[2\]"):
        ClassLabels().convert(np.array([0.5, 1.0]), "x")


def test_text_is_no_number() -> None:
    with pytest.raises(UsageError, match=r"x must be numbers \[N\] or \[N, K\]"):
        Numbers().convert(np.array(["a", "b"]), "x")


def test_splits_must_have_equally_many_numbers() -> None:
    with pytest.raises(UsageError, match="x must have 2 numbers for each sample, it has 1"):
        Numbers().check(np.zeros(3, np.float32), 2, (), "x")


def test_class_names_give_the_number_of_classes() -> None:
    labels = np.array([0, 1, 1])
    assert ClassLabels().outputs(labels, ("cat", "dog", "fox")) == (3, ("cat", "dog", "fox"))
    assert ClassLabels().outputs(labels) == (2, ("0", "1"))
    assert ClassLabels().outputs(labels, None, 4) == (4, ("0", "1", "2", "3"))


def test_equal_numbers_are_grouped_by_their_position() -> None:
    assert Numbers(groups=2).strata(np.zeros(4, np.float32)).tolist() == [0, 0, 1, 1]
