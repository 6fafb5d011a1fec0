"""User-defined data sets whose code raises: one sentence wherever it happens, and never a traceback."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from stillhouse.cli import app
from stillhouse.data.datasets import dataset_facts, load_dataset
from stillhouse.errors import UsageError

MODULE = """
import numpy as np

rng = np.random.default_rng(0)
GOOD = rng.integers(0, 256, (40, 1, 8, 8), np.uint8), np.arange(40) % 4

class Raises:
    def __array__(self, *_, **__):
        raise RuntimeError("no array here")

class Name:
    def __str__(self):
        raise KeyError("no name here")

def in_train():
    raise RuntimeError("no disk here")

def in_test():
    def test():
        raise RuntimeError("no test here")
    return GOOD, test

def ends_in_test():
    def test():
        raise SystemExit(0)
    return GOOD, test

def ends():
    raise SystemExit(0)

def damaged_file_in_test():
    return GOOD, lambda: open("/no/such/file")

def array_raises():
    return (Raises(), GOOD[1]), GOOD

def test_array_raises():
    return GOOD, (Raises(), GOOD[1])

def ragged():
    return ([[1, 2], [1]], GOOD[1]), GOOD

def name_raises():
    return {"train": GOOD, "test": GOOD, "class_names": [Name()] * 4}

def names_are_a_number():
    return {"train": GOOD, "test": GOOD, "class_names": 4}

def begins_at_1():
    return (GOOD[0], GOOD[1] + 1), (GOOD[0], GOOD[1] + 1)

def begins_at_1_of_4():
    return {"train": (GOOD[0], GOOD[1] + 1), "test": GOOD, "num_classes": 4}

def gap():
    labels = GOOD[1].copy()
    labels[labels == 2] = 3
    return (GOOD[0], labels), GOOD

class Task:
    @property
    def task(self):
        raise RuntimeError("no task here")
    def __call__(self):
        return GOOD, GOOD

task_raises = Task()
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = "data_that_raises"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        ("in_train", "raised RuntimeError: no disk here"),
        ("ends", "raised SystemExit: 0"),
        ("array_raises", "raised RuntimeError: no array here"),
        ("ragged", "raised ValueError: "),
        ("name_raises", "raised KeyError: "),
        ("names_are_a_number", "raised TypeError: "),
    ],
)
def test_an_error_for_training_images_is_a_sentence(module: str, function: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_dataset(f"{module}:{function}")
    assert str(caught.value).startswith(f"data set function {module}:{function} {sentence}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        ("in_test", "raised RuntimeError: no test here"),
        ("ends_in_test", "raised SystemExit: 0"),
        ("damaged_file_in_test", "raised FileNotFoundError: "),
        ("test_array_raises", "raised RuntimeError: no array here"),
    ],
)
def test_an_error_for_test_images_is_a_sentence(module: str, function: str, sentence: str) -> None:
    data = load_dataset(f"{module}:{function}", validation=8)
    with pytest.raises(UsageError) as caught:
        _ = data.test
    assert str(caught.value).startswith(f"data set function {module}:{function} {sentence}")


def test_a_task_that_cannot_be_read_is_reported_when_the_data_are(module: str) -> None:
    assert dataset_facts(f"{module}:task_raises").task is None


def test_a_module_that_ends_the_process_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data_that_ends.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match="data set data_that_ends:load cannot be imported: SystemExit: 0; correct its file"):
        load_dataset("data_that_ends:load")


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        ("begins_at_1", "labels of {module}:begins_at_1 begin at 1, and they must begin at 0; subtract 1"),
        ("begins_at_1_of_4", "must be in 0..3, got 4; they begin at 1, so subtract 1"),
        ("gap", "class '2' of {module}:gap has no training image; add some, or correct the labels"),
    ],
)
def test_labels_that_are_no_classes_from_0_are_told_apart_from_few_images(module: str, function: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_dataset(f"{module}:{function}", validation=8)
    assert sentence.format(module=module) in str(caught.value)
    assert "validation" not in str(caught.value)


def test_a_limit_that_leaves_a_class_without_images_names_the_limit(module: str) -> None:
    assert load_dataset(f"{module}:in_test", validation=2, options={"limit": 20}).num_classes == 4
    with pytest.raises(UsageError, match=r"raise dataset\.options\.limit"):
        load_dataset("digits", validation=2, options={"limit": 8})


def test_the_command_prints_the_sentence_and_no_traceback(
    module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(f'name: s\ndataset: {{name: "{module}:in_train"}}\nstudents: [mlp]\nmethods: [scratch]\n')
    done = CliRunner().invoke(app, ["sweep", str(spec), "--dry-run", "--home", str(tmp_path / "home")])
    assert done.exit_code == 2
    assert "no disk here" in done.stderr
    assert "Traceback" not in done.stderr


def shapes(data: Any) -> list[tuple[int, ...]]:
    return [tuple(split.images.shape) for split in (data.train, data.validation, data.test)]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_good_arrays_of_one_to_four_channels_are_read(channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 256, (20, channels, 8, 8), np.uint8))
    (tmp_path / f"channels_{channels}.py").write_text(
        "import numpy as np\n"
        f"def load():\n    x, y = np.load({str(tmp_path / 'x.npy')!r}), np.arange(20) % 2\n    return (x, y), lambda: (x, y)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    data = load_dataset(f"channels_{channels}:load", validation=4)
    assert shapes(data) == [(16, channels, 8, 8), (4, channels, 8, 8), (20, channels, 8, 8)]
