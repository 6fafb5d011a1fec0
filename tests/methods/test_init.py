"""Finding methods: shipped files, a user's folder, entry points."""

import importlib.metadata
from pathlib import Path

import pytest

from stillhouse import methods
from stillhouse.distill.method import Method
from stillhouse.errors import UsageError

OWN = '''
from dataclasses import dataclass
from typing import ClassVar

from stillhouse.distill.method import Card, Method


@dataclass(frozen=True, kw_only=True)
class Found(Method):
    """Found."""

    card: ClassVar[Card] = Card(title="Found", equations="none")
'''
ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "found_method.py").write_text(OWN)
    (tmp_path / "_helper.py").write_text("")
    return tmp_path


def test_every_file_of_the_checkout_is_a_method_by_its_name() -> None:
    files = sorted(path.stem for path in (ROOT / "methods").glob("*.py"))
    assert methods.names() == files
    for name in files:
        assert issubclass(methods.find(name), Method)
        revision = methods.find(name).revision
        assert methods.version_in_key(name) == (None if revision == 1 else f"revision {revision}")


def test_the_control_is_the_method_whose_card_names_it_the_baseline() -> None:
    name = methods.baseline()
    assert methods.find(name).card.baseline
    assert not methods.find(name).calls_teacher


def test_a_method_file_of_a_user_is_found_and_has_a_version(folder: Path) -> None:
    methods.add_folder(folder)
    assert "found_method" in methods.names()
    assert "_helper" not in methods.names()
    assert methods.find("found_method").card.title == "Found"
    assert methods.version_in_key("found_method")


def test_adding_a_folder_twice_changes_nothing(folder: Path) -> None:
    methods.add_folder(folder)
    before = list(methods.__path__)
    methods.add_folder(folder)
    assert methods.__path__ == before


def test_a_file_with_the_name_of_a_known_method_is_refused(tmp_path: Path) -> None:
    (tmp_path / f"{methods.baseline()}.py").write_text(OWN)
    with pytest.raises(UsageError, match="has the name of a method that exists already"):
        methods.add_folder(tmp_path)


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere does not exist"):
        methods.add_folder(tmp_path / "nowhere")


def test_a_file_must_define_one_method(tmp_path: Path) -> None:
    (tmp_path / "empty_method.py").write_text("from stillhouse.distill.method import Method\n")
    methods.add_folder(tmp_path)
    with pytest.raises(UsageError, match=r"empty_method\.py must define one Method subclass, it defines 0"):
        methods.find("empty_method")


def test_an_unknown_name_has_a_suggestion() -> None:
    with pytest.raises(UsageError, match=r"no method 'fitnet'; did you mean 'fitnets'"):
        methods.find("fitnet")


def test_an_entry_point_names_a_method_of_an_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        importlib.metadata.EntryPoint("packaged", "stillhouse.distill.method:Method", methods.ENTRY_POINTS),
        importlib.metadata.EntryPoint("wrong", "pathlib:Path", methods.ENTRY_POINTS),
    ]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points if group == methods.ENTRY_POINTS else [])
    methods.find.cache_clear()
    assert "packaged" in methods.names()
    assert methods.find("packaged") is Method
    with pytest.raises(UsageError, match="must name a Method subclass"):
        methods.find("wrong")
    methods.find.cache_clear()
