"""Tasks are found by name: shipped ones by their file, user-defined ones as `module:Class`."""

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stillhouse import tasks
from stillhouse.data.datasets import load_dataset
from stillhouse.errors import UsageError

FILE = """
from stillhouse.data.targets import Numbers
from stillhouse.spec.metric import Metric
from stillhouse.tasks import Task

class Ages(Task):
    metric = Metric(name="mae", direction="min", label="mean absolute error")
    targets = Numbers()

    def losses(self, outputs, targets, reduction="mean"):
        return {}

    def evaluator(self):
        return None

class Unfinished(Task):
    targets = Numbers()

    def losses(self, outputs, targets, reduction="mean"):
        return {}

def ages():
    pass
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "people.py"
    path.write_text(FILE)
    monkeypatch.syspath_prepend(tmp_path)
    tasks.find.cache_clear()
    yield path
    sys.modules.pop("people", None)
    tasks.find.cache_clear()


def test_every_task_file_is_found_by_its_name() -> None:
    folder = Path(tasks.__file__).parent
    assert tasks.names() == sorted(
        path.stem for path in folder.glob("*.py") if not path.stem.startswith("_") and path.stem != "task"
    )
    for name in tasks.names():
        assert tasks.find(name).name == name


def test_without_a_name_the_default_task_is_meant() -> None:
    assert tasks.find().default
    assert tasks.find() is tasks.find(tasks.default())
    assert tasks.of(load_dataset("digits", validation=10)) is tasks.find()


def test_a_user_defined_task_is_found_in_its_module(file: Path) -> None:
    task = tasks.find("people:Ages")
    assert task.name == "people:Ages"
    assert task.metric.column("test") == "test_mae"
    assert type(pickle.loads(pickle.dumps(task))) is type(task)


def test_only_the_default_task_has_no_name_in_keys(file: Path) -> None:
    assert tasks.name_of(None) is None
    assert tasks.name_of(tasks.default()) is None
    assert tasks.name_of("people:Ages") == "people:Ages"


def test_a_user_defined_task_has_a_version_and_a_shipped_one_has_none(file: Path) -> None:
    assert tasks.own_version(None) is None
    assert tasks.own_version(tasks.default()) is None
    assert tasks.own_version("people:Ages") not in (None, tasks.own_version("people:Unfinished"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("clasification", "no task 'clasification'; did you mean 'classification'"),
        ("nowhere:Ages", "task nowhere:Ages cannot be imported"),
        ("people:Age", "module people has no Task subclass 'Age'; did you mean 'Ages'"),
        ("people:ages", "module people has no Task subclass 'ages'; did you mean 'Ages'"),
        ("people:Unfinished", "task people:Unfinished must define metric, evaluator"),
    ],
)
def test_what_is_no_task_is_refused_with_a_remedy(file: Path, name: str, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        tasks.find(name)
    assert message in str(raised.value)
