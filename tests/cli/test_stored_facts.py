"""Facts of the catalogue are read from the cache folder as long as the code is the same, and computed again when it is not."""

import importlib.metadata
import json
import os
from pathlib import Path
from typing import Any

import pytest

from stillhouse.cli.stored_facts import stored_or_computed
from stillhouse.errors import UsageError


class Counted:
    """Facts that count how often they were computed."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> list[dict[str, Any]]:
        self.times += 1
        return [{"name": "kd", "computed": self.times}]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "stillhouse" / "methods.json"


def test_facts_are_computed_once(cache: Path) -> None:
    facts = Counted()
    first, second = stored_or_computed("methods", facts), stored_or_computed("methods", facts)
    assert first == second == [{"name": "kd", "computed": 1}]
    assert list(second[0]) == ["name", "computed"]


def test_an_edited_method_file_makes_them_new(tmp_path: Path) -> None:
    facts, file = Counted(), tmp_path / "mine" / "mine.py"
    file.parent.mkdir()
    file.write_text("a = 1\n")
    stored_or_computed("methods", facts, folders=[file.parent])
    assert stored_or_computed("methods", facts, folders=[file.parent])[0]["computed"] == 1
    file.write_text("a = 2\n")  # of equal length: its time differs
    os.utime(file, ns=(1, 1))
    assert stored_or_computed("methods", facts, folders=[file.parent])[0]["computed"] == 2
    assert stored_or_computed("methods", facts)[0]["computed"] == 3, "without the folder it is another list"


@pytest.mark.parametrize("content", ["", "[]", "{", json.dumps({"code": "other", "facts": []}), json.dumps({"facts": 1})])
def test_a_damaged_or_old_file_is_replaced(cache: Path, content: str) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text(content)
    facts = Counted()
    assert stored_or_computed("methods", facts)[0]["computed"] == 1
    assert stored_or_computed("methods", facts)[0]["computed"] == 1


def test_a_cache_folder_that_cannot_be_written_is_no_error(cache: Path) -> None:
    cache.parent.parent.mkdir()
    cache.parent.write_text("a file where the folder should be")
    facts = Counted()
    assert [stored_or_computed("methods", facts)[0]["computed"] for _ in range(2)] == [1, 2]


def test_what_cannot_be_computed_is_not_stored(cache: Path) -> None:
    def fail() -> list[dict[str, Any]]:
        raise UsageError("no such folder")

    with pytest.raises(UsageError):
        stored_or_computed("methods", fail)
    assert not cache.exists()


def test_methods_of_installed_packages_are_always_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    point = importlib.metadata.EntryPoint("theirs", "theirs:Method", "stillhouse.methods")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: importlib.metadata.EntryPoints([point]))
    facts = Counted()
    assert [stored_or_computed("methods", facts)[0]["computed"] for _ in range(2)] == [1, 2]
