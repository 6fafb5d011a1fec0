"""What `teachers ls` lists as stored."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor
from typer.testing import CliRunner

from stillhouse.cli import app
from stillhouse.data.datasets import ImageData
from stillhouse.data.views import Views
from stillhouse.knowledge import feature, logits, output, reduced
from stillhouse.knowledge.store import KnowledgeStore
from stillhouse.teachers.definition import TeacherDefinition
from stillhouse.teachers.inventory import describe_kind, stored_teachers
from stillhouse.teachers.library import TeacherLibrary
from stillhouse.teachers.service import TeacherService


def energy(output: Tensor) -> Tensor:
    return output.square().mean(1)


@pytest.fixture
def home(tmp_path: Path, make_definition: Callable[..., TeacherDefinition], digits: ImageData, views: Views) -> Path:
    """A teacher with two sealed views of logits and one of a map."""
    teacher = TeacherLibrary(tmp_path / "teachers").obtain(make_definition(epochs=1), digits, views)
    service = TeacherService(teacher, digits, views, KnowledgeStore(tmp_path / "knowledge"))
    service._store.root.mkdir()
    service.fill(0, [logits(), feature("relu1")])
    service.fill(1, [logits()])
    return tmp_path


def test_every_kind_of_a_teacher_is_listed_with_its_size(home: Path) -> None:
    (teacher,) = stored_teachers(home)
    assert (teacher["model"], teacher["dataset"]) == ("lenet", "digits")
    of_logits, maps = teacher["knowledge"]["kinds"]
    assert (of_logits["knowledge"], of_logits["views"], of_logits["unsealed"]) == ("logits", 2, 0)
    assert (maps["knowledge"], maps["views"]) == ("relu1", 1)
    assert 2 * 160 * 40 < of_logits["bytes"] < 2 * 160 * 40 + 10_000
    assert teacher["knowledge"]["views"] == 3
    assert teacher["knowledge"]["bytes"] == of_logits["bytes"] + maps["bytes"]


def test_a_view_of_a_teacher_that_is_gone_and_one_that_is_not_sealed_are_listed_too(home: Path) -> None:
    store = KnowledgeStore(home / "knowledge")
    identity = {"teacher": {"weights": "gone", "model": "resnet8"}, "knowledge": logits().identity(), "view": 0}
    with store.writer(identity, rows=4, shape=(10,), dtype="float32") as writer:
        writer.put(np.array([0]), np.zeros((1, 10)))
        writer.commit()
    _, orphan = stored_teachers(home)
    assert (orphan["key"], orphan["model"]) == ("", "resnet8")
    assert (orphan["knowledge"]["views"], orphan["knowledge"]["kinds"][0]["unsealed"]) == (0, 1)


def test_a_kind_is_called_what_it_calls_itself() -> None:
    for kind in (logits(), output("angle"), feature("layer1"), reduced(energy, "a", "b")):
        assert describe_kind(kind.identity()) == str(kind)
    assert describe_kind({}) == "unknown"


def test_the_list_and_what_pruning_leaves_of_it(home: Path) -> None:
    shown = CliRunner().invoke(app, ["teachers", "ls", "--home", str(home)])
    assert shown.exit_code == 0
    assert "relu1" in shown.stdout
    assert "digits" in shown.stdout
    pruned = CliRunner().invoke(app, ["teachers", "prune", "--home", str(home), "--json"])
    assert json.loads(pruned.stdout)["removed"]["views"] == 3
    listed = json.loads(CliRunner().invoke(app, ["teachers", "ls", "--home", str(home), "--json"]).stdout)
    assert [(each["model"], each["knowledge"]["views"]) for each in listed] == [("lenet", 0)]


def test_a_size_that_is_none_is_one_sentence(home: Path) -> None:
    result = CliRunner().invoke(app, ["teachers", "prune", "--keep", "much", "--home", str(home)])
    assert result.exit_code == 2
    assert "--keep must be a size such as 500MB or 20GB, got 'much'" in result.stderr


def test_teachers_of_three_image_folders_are_told_apart_and_have_the_key_of_the_report(
    tmp_path: Path, make_definition: Callable[..., TeacherDefinition], digits: ImageData, views: Views
) -> None:
    library = TeacherLibrary(tmp_path / "teachers")
    hashes = []
    for folder, fingerprint in (("signs", "0123456789"), ("flowers", "abcdef0123"), ("signs", "fedcba9876")):
        data = copy.copy(digits)
        data.name, data.folder, data.fingerprint = "image_folder", folder, fingerprint
        hashes.append(library.obtain(make_definition(epochs=1), data, views).weights_hash)
    shown = CliRunner().invoke(app, ["teachers", "ls", "--home", str(tmp_path)]).stdout
    for label in ("signs (image_folder) 01234567", "flowers (image_folder)", "signs (image_folder) fedcba98"):
        assert label in shown
    assert "flowers (image_folder) abcdef" not in shown
    assert all(key[:12] in shown for key in hashes)
