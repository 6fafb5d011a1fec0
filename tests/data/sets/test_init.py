"""A data set is one file in `data/sets/`: its name, its task, its options and its samples come from there."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stillhouse.data import sets
from stillhouse.data.datasets import dataset_facts, dataset_names, dataset_problems, load_dataset
from stillhouse.data.description import training_notes
from stillhouse.errors import UsageError

_FILE = """
import numpy as np
from stillhouse.data.images import ImageData, split_of
from stillhouse.data.shipped import DatasetFacts, ShippedData


class Grids(ShippedData):
    task = "elsewhere:Task"
    options = ("lines",)
    sample = "grid"
    has_size = False

    def facts(self, size, options):
        return DatasetFacts(2, (1, 4, options.get("lines", 4)), self.task)

    def broken_rule(self, option, value):
        return None if value in (4, 8) else "must be 4 or 8"

    def read(self, request):
        lines = request.options.get("lines", 4)
        count = request.limits[0] or 20
        images, labels = np.zeros((count, 1, 4, lines), np.uint8), np.arange(count) % 2
        images[:, 0, 0, 0] = np.arange(count) // 2
        rest, taken = request.splitting.split(labels, ("no", "yes"))
        train, validation = ((images[rows], labels[rows]) for rows in (rest, taken))
        return ImageData(
            name="grids", num_classes=2, input_shape=(1, 4, lines), class_names=("no", "yes"), fingerprint="f",
            mean=(0.0,), std=(1.0,), train=split_of(train), validation=split_of(validation), read_test=lambda: validation,
            task=request.task,
        )
"""


@pytest.fixture
def grids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for the data set `grids`, whose file is found as those of the platform are."""
    code, data = tmp_path / "code", tmp_path / "data"
    code.mkdir()
    data.mkdir()
    (code / "grids.py").write_text(_FILE, encoding="utf-8")
    monkeypatch.setattr(sets, "__path__", [*sets.__path__, str(code)])
    sets.names.cache_clear()
    sets.find.cache_clear()
    yield data
    sys.modules.pop("stillhouse.data.sets.grids", None)
    sets.names.cache_clear()
    sets.find.cache_clear()


def test_a_file_of_the_folder_is_a_data_set(grids: Path) -> None:
    assert "grids" in dataset_names()
    facts = dataset_facts("grids", options={"lines": 8})
    assert (facts.task, facts.input_shape) == ("elsewhere:Task", (1, 4, 8))
    data = load_dataset("grids", root=grids, validation=4, options={"lines": 8, "limit": 10}, task="elsewhere:Task")
    assert (len(data.train), len(data.validation), data.input_shape, data.task) == (6, 4, (1, 4, 8), "elsewhere:Task")
    assert data.folder == "data"


def test_its_samples_have_a_name_of_their_own_in_messages(grids: Path) -> None:
    data = load_dataset("grids", root=grids, validation=2)
    # Grids are equal in pairs, one of each class.
    assert any("training grids are the same as one of another class." in note for note in training_notes(data))
    with pytest.raises(UsageError, match="requests 20 of the 20 training grids of grids in"):
        load_dataset("grids", root=grids, validation=20)


def test_wrong_arguments_are_named(grids: Path) -> None:
    problems = dataset_problems("grids", root=grids, size=8, options={"lines": 5, "line": 4})
    assert [str(problem) for problem in problems] == [
        "dataset.size has no effect on grids, got 8; remove it",
        "dataset.options.lines must be 4 or 8, got 5",
        "dataset.options.line is not an option of grids; did you mean 'lines'? available: limit, limit_test, lines",
    ]
    assert [problem.key for problem in dataset_problems("grids", root=None)] == ["dataset.root"]
    with pytest.raises(UsageError, match="no data set 'gridz'; did you mean 'grids'"):
        dataset_facts("gridz")
