"""The judge of a task: trained once, found by its content, refused for data that it cannot judge."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from stillhouse import tasks
from stillhouse.data.datasets import ImageData, load_dataset
from stillhouse.errors import UsageError
from stillhouse.teachers import judges
from stillhouse.teachers.library import TeacherLibrary


def digits(task: str | None, **options: int) -> ImageData:
    return load_dataset("digits", validation=90, options={"limit": 250, **options}, task=task, targets=tasks.find(task).targets)


def test_it_is_trained_once_and_found_by_its_content(tmp_path: Path) -> None:
    library, said = TeacherLibrary(tmp_path / "teachers"), list[str]()
    first, again = digits("generation"), digits("generation")
    judges.prepare(first, library, progress=said.append)
    trained = [words for words in said if "training lenet" in words]
    said.clear()
    judges.prepare(again, library, progress=said.append)
    assert len(trained) == 1
    assert not any("training" in words for words in said)
    assert first.prepared.keys() == again.prepared.keys()
    assert all(np.array_equal(value, again.prepared[name]) for name, value in first.prepared.items())
    (card,) = library.entries()
    (note,) = tasks.find("generation").prepared_notes(first)
    assert f"{100 * card['validation_accuracy']:.2f} % validation accuracy" in note


def test_both_tasks_of_generators_share_it(tmp_path: Path) -> None:
    library = TeacherLibrary(tmp_path / "teachers")
    one = digits("generation")
    judges.prepare(one, library)
    other = dataclasses.replace(one, task="conditional_generation", prepared={})
    judges.prepare(other, library)
    assert len(list(library.entries())) == 1


def test_a_task_without_a_judge_is_left_alone(tmp_path: Path) -> None:
    data = digits(None)
    judges.prepare(data, TeacherLibrary(tmp_path))
    judges.prepare_untrained(data)
    assert data.prepared == {}
    assert not list(tmp_path.iterdir())


def test_a_test_split_with_too_few_samples_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"^the test split has 50 samples, .* more than its 84 features; use a larger data set$"
    ):
        judges.prepare(digits("generation", limit_test=50), TeacherLibrary(tmp_path))
    assert not list(tmp_path.iterdir())
