"""The house: what the tree promises, and what the core must not know."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "platform" / "stillhouse"
METHOD_NAMES = sorted(path.stem for path in (ROOT / "methods").glob("*.py"))
TASK_NAMES = sorted(path.stem for path in (CORE / "tasks").glob("*.py") if path.stem not in ("__init__", "task"))


@pytest.mark.parametrize("folder", ["platform", "methods", "tests"])
def test_a_source_root_is_no_package(folder: str) -> None:
    """An `__init__.py` in platform/ would shadow the standard library's `platform`; in the others, split the package."""
    found = [ROOT / folder / "__init__.py"] if folder != "tests" else list((ROOT / folder).rglob("__init__.py"))
    assert not [path for path in found if path.exists()]


def test_import_platform_gives_the_standard_library() -> None:
    program = "import platform, sys; print(platform.__file__); platform.python_version()"
    for path in (str(ROOT), str(ROOT / "platform")):
        printed = subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONPATH": path},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout.strip()
        assert not Path(printed).is_relative_to(ROOT)
        assert Path(printed).name == "platform.py"


def core_files() -> list[Path]:
    return sorted(CORE.rglob("*.py"))


def test_there_are_methods_and_a_core_to_look_at() -> None:
    assert len(METHOD_NAMES) >= 7
    assert len(core_files()) > 50


@pytest.mark.parametrize("path", core_files(), ids=lambda path: str(path.relative_to(CORE)))
def test_the_core_never_names_a_method(path: Path) -> None:
    """A branch on a method's name in the core is a missing hook."""
    named = [f"line {line}: {word}" for word, line in words_of(ast.parse(path.read_text())) if word in METHOD_NAMES]
    assert not named


def test_there_is_a_task() -> None:
    assert TASK_NAMES


@pytest.mark.parametrize("path", core_files(), ids=lambda path: str(path.relative_to(CORE)))
def test_the_core_never_names_a_task(path: Path) -> None:
    """What depends on the task is a hook of the task protocol; which task is the default is a flag of its class."""
    named = [f"line {line}: {word}" for word, line in words_of(ast.parse(path.read_text())) if word in TASK_NAMES]
    assert not named


def words_of(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Every string literal, every part of an imported path and every attribute of `methods`, with its line."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        match node:
            case ast.Constant(value=str(text)):
                yield text, line
            case ast.Attribute(value=ast.Name(id="methods"), attr=name):
                yield name, line
            case ast.Import(names=names):
                yield from ((part, line) for alias in names for part in alias.name.split("."))
            case ast.ImportFrom(module=module, names=names):
                yield from ((part, line) for part in [*(module or "").split("."), *(alias.name for alias in names)])


def test_the_search_for_names_finds_them() -> None:
    tree = ast.parse("from stillhouse.methods.kd import KD\nif method == 'scratch': methods.fitnets.loss(born_again=1)")
    assert {"kd", "scratch", "fitnets"} <= {word for word, _ in words_of(tree)}


def test_the_package_says_that_it_is_typed() -> None:
    assert (CORE / "py.typed").exists()
