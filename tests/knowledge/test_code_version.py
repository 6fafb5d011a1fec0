"""When the code of a reduction is another version: by files that are written, imported, changed and imported again."""

import importlib
import linecache
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from stillhouse.knowledge import logits, reduced
from stillhouse.knowledge.code_version import code_version
from stillhouse.knowledge.top_k import TopK

REDUCTION = """
import users_other
from torch import Tensor

from users_package.helpers import scaled
from users_package import tables as t

POWER = 2
UNUSED = 3
BRANCHES = True
if BRANCHES:
    OFFSET = 1
else:
    OFFSET = 2


class Shape:
    side = 4


def squared(output: "Shape") -> Tensor:
    return raised(output)


def raised(output):
    return users_other.same(output) ** POWER


def summed(output: Tensor) -> Tensor:
    def inner(maps):
        return squared(maps).sum(1) + OFFSET

    return scaled(inner(output)) * t.FACTORS["one"]


def unused(output):
    return output
"""
HELPERS = """
from .tables import SCALE


def scaled(output):
    return SCALE * output


def unused(output):
    return output
"""
TABLES = """
SCALE = 1.5
FACTORS = {"one": 1.0}
UNUSED = {}
"""
FILES = {
    "users_package/__init__.py": "",
    "users_package/reduction.py": REDUCTION,
    "users_package/helpers.py": HELPERS,
    "users_package/tables.py": TABLES,
    "users_other.py": "def same(output):\n    return output\n",
}

Version = Callable[[dict[str, str]], str]


@pytest.fixture
def version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Version]:
    """The version of `summed` when some of the files have other contents."""
    monkeypatch.syspath_prepend(str(tmp_path))
    modules = [name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in FILES]

    def forget() -> None:
        for name in modules:
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        linecache.clearcache()

    def make(changed: dict[str, str]) -> str:
        (tmp_path / "users_package").mkdir(exist_ok=True)
        for name, text in (FILES | changed).items():
            (tmp_path / name).write_text(text)
        for cached in tmp_path.rglob("*.pyc"):
            cached.unlink()
        forget()
        return code_version(importlib.import_module("users_package.reduction").summed)

    yield make
    forget()


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("users_package/reduction.py", ".sum(1)", ".mean(1)"),
        ("users_package/reduction.py", "** POWER", "** -POWER"),
        ("users_package/reduction.py", "POWER = 2", "POWER = 3"),
        ("users_package/reduction.py", "OFFSET = 1", "OFFSET = 5"),
        ("users_package/helpers.py", "SCALE * output", "output"),
        ("users_package/tables.py", "SCALE = 1.5", "SCALE = 2.5"),
        ("users_package/tables.py", '"one": 1.0', '"one": 2.0'),
    ],
    ids=["itself", "a helper of a helper", "a constant", "in a condition", "another file", "its constant", "by its module"],
)
def test_changes_of_code_that_a_function_uses_change_its_version(version: Version, file: str, old: str, new: str) -> None:
    assert FILES[file].count(old) == 1
    before = version({})
    after = version({file: FILES[file].replace(old, new)})
    assert before != after
    assert version({}) == before, "it is the content that counts"


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("users_package/reduction.py", "UNUSED = 3", "UNUSED = 4"),
        ("users_package/reduction.py", "def unused(output):\n    return output", "def unused(output):\n    return -output"),
        ("users_package/reduction.py", "side = 4", "side = 5"),
        ("users_package/helpers.py", "def unused(output):\n    return output", "def unused(output):\n    return -output"),
        ("users_package/tables.py", "UNUSED = {}", "UNUSED = []"),
        ("users_other.py", "return output", "return +output"),
    ],
    ids=["a constant", "a function", "an annotation", "in another file", "a table", "another package"],
)
def test_changes_of_other_code_do_not_change_its_version(version: Version, file: str, old: str, new: str) -> None:
    assert FILES[file].count(old) == 1
    assert version({}) == version({file: FILES[file].replace(old, new)})


def test_a_helper_of_the_platform_changes_the_versions_of_the_kinds_that_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import inspect

    from stillhouse.knowledge import top_k

    source = inspect.getsource
    kinds = TopK(2, 3).of(logits(), 10), TopK(2).of(logits(), 10)

    def versions(old: str, new: str) -> list[str]:
        def changed(item: object) -> str:
            text = source(item)  # type: ignore[arg-type]
            return text.replace(old, new) if item is top_k else text

        monkeypatch.setattr(inspect, "getsource", changed)
        code_version.cache_clear()
        return [kind.identity()["source"] for kind in kinds]

    before = versions("", "")
    spelled = versions("return places.float()", "return places.double()")
    read = versions("return spelled.long()", "return spelled.int()")
    monkeypatch.undo()
    code_version.cache_clear()
    assert all(one != other for one, other in zip(before, spelled, strict=True))
    assert before == read, "how it is read back decides nothing of what is stored"


def test_the_version_of_a_librarys_function_is_that_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = reduced(torch.nn.functional.normalize)
    code_version.cache_clear()
    before = kind.identity()
    monkeypatch.setattr(torch, "__version__", "99.0")
    code_version.cache_clear()
    after = kind.identity()
    code_version.cache_clear()
    assert before["source"] != after["source"]
