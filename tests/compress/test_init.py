"""Finding operators: shipped files, entry points, a user's `module:Class`."""

import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stillhouse import compress
from stillhouse.compress.operator import Operator
from stillhouse.errors import UsageError

CORE = Path(compress.__file__).parent
OWN = '''
from dataclasses import dataclass

from stillhouse.compress.operator import Operator, option


@dataclass(frozen=True, kw_only=True)
class Own(Operator):
    """Found."""

    ratio: float = option({default})
'''


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("own_operators", None)
    compress.find.cache_clear()


def test_every_shipped_operator_is_found_by_its_files_name() -> None:
    for name in compress.names():
        assert (CORE / f"{name}.py").is_file()
        operator = compress.find(name)
        assert issubclass(operator, Operator)
        assert operator().name == name
        assert compress.version_in_key(name) == (None if operator.revision == 1 else f"revision {operator.revision}")


def test_a_user_defined_operator_is_found_and_its_text_is_its_version(beside: Path) -> None:
    (beside / "own_operators.py").write_text(OWN.format(default=0.5))
    assert compress.make_operator("own_operators:Own", {"ratio": 1}).readable == "own_operators:Own(ratio=1.0)"
    assert compress.version_in_key("own_operators:Own")


def test_an_unknown_class_of_a_module_has_a_suggestion(beside: Path) -> None:
    (beside / "own_operators.py").write_text(OWN.format(default=0.5))
    with pytest.raises(UsageError, match="has no Operator subclass 'Owm'; did you mean 'Own'"):
        compress.find("own_operators:Owm")


def test_an_unknown_name_says_how_a_user_defined_one_is_written() -> None:
    with pytest.raises(UsageError, match=r"no operator 'cut'.*module:Class for a user-defined one"):
        compress.find("cut")


def test_a_value_of_the_wrong_type_is_refused(beside: Path) -> None:
    (beside / "own_operators.py").write_text(OWN.format(default=0.5))
    with pytest.raises(ValueError, match="must be a number"):
        compress.make_operator("own_operators:Own", {"ratio": "half"})


def test_an_entry_point_names_an_operator_of_an_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        importlib.metadata.EntryPoint("packaged", "stillhouse.compress.operator:Operator", compress.ENTRY_POINTS),
        importlib.metadata.EntryPoint("wrong", "pathlib:Path", compress.ENTRY_POINTS),
    ]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points if group == compress.ENTRY_POINTS else [])
    compress.find.cache_clear()
    assert "packaged" in compress.names()
    assert compress.find("packaged") is Operator
    with pytest.raises(UsageError, match="must name an Operator subclass"):
        compress.find("wrong")
    compress.find.cache_clear()
