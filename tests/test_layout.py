"""The house: what the tree promises, and what the core must not know."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from stillhouse import compress

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "platform" / "stillhouse"
METHOD_NAMES = sorted(path.stem for path in (ROOT / "methods").glob("*.py"))
TASK_NAMES = sorted(
    path.stem for path in (CORE / "tasks").glob("*.py") if not path.stem.startswith("_") and path.stem != "task"
)

OPERATORS = [CORE / "compress" / f"{name}.py" for name in compress.names()]


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


OF_TASKS = (CORE / "tasks", CORE / "data" / "sets", CORE / "testing" / "grounds")


def test_there_is_a_task() -> None:
    assert TASK_NAMES


@pytest.mark.parametrize("path", core_files(), ids=lambda path: str(path.relative_to(CORE)))
def test_the_core_never_names_a_task(path: Path) -> None:
    """What depends on the task is a hook of the task protocol; which task is the default is a flag of its class.

    A task may build on another one, a data set with a file of its own declares its task, and methods are checked on the
    ground of their task.
    """
    if path.parent in OF_TASKS and path.name != "__init__.py":
        return
    named = [f"line {line}: {word}" for word, line in words_of(ast.parse(path.read_text())) if word in TASK_NAMES]
    assert not named


def test_the_core_never_names_an_operator() -> None:
    """What depends on the operator is a hook of its contract."""
    names = {path.stem for path in OPERATORS}
    files = [path for path in core_files() if path not in OPERATORS and not path.stem.startswith("_")]
    named = {(path.relative_to(CORE).as_posix(), word) for path in files for word, _ in words_of(ast.parse(path.read_text()))}
    # `stillhouse teachers prune` and `data prune` are commands with names of their own.
    assert not {(path, word) for path, word in named if word in names} - {
        ("cli/teachers.py", "prune"),
        ("cli/data.py", "prune"),
    }


def words_of(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Every string literal, every part of a path that is imported from here and every attribute of `methods`, with its line."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        match node:
            case ast.Constant(value=str(text)):
                yield text, line
            case ast.Attribute(value=ast.Name(id="methods"), attr=name):
                yield name, line
            case ast.Import(names=names):
                own = [alias.name.split(".") for alias in names if alias.name.split(".")[0] == CORE.name]
                yield from ((part, line) for parts in own for part in parts)
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] != CORE.name:
                continue  # torchvision has a module of the name of a task
            case ast.ImportFrom(module=module, names=names):
                yield from ((part, line) for part in [*(module or "").split("."), *(alias.name for alias in names)])


def test_the_search_for_names_finds_them() -> None:
    tree = ast.parse("from stillhouse.methods.kd import KD\nif method == 'scratch': methods.fitnets.loss(born_again=1)")
    assert {"kd", "scratch", "fitnets"} <= {word for word, _ in words_of(tree)}


def test_the_package_says_that_it_is_typed() -> None:
    assert (CORE / "py.typed").exists()


# Tests mirror the source file by file


def mirrored_test(source: Path) -> Path:
    """Where the tests of a source file are expected: `platform/stillhouse/data/views.py` in `tests/data/test_views.py`."""
    in_core = source.is_relative_to(CORE)
    relative = source.relative_to(CORE if in_core else ROOT)
    name = "test_init.py" if source.name == "__init__.py" else f"test_{source.name}"
    return ROOT / "tests" / relative.parent / name


def has_code(source: Path) -> bool:
    """Whether a file does more than to describe a package and to pass on names."""
    for node in ast.parse(source.read_text()).body:
        match node:
            case ast.Expr(value=ast.Constant()) | ast.Import() | ast.ImportFrom():
                continue
            case ast.Assign(targets=[ast.Name(id="__all__")]):
                continue
            case _:
                return True
    return False


SOURCES = [source for source in [*core_files(), *sorted((ROOT / "methods").glob("*.py"))] if has_code(source)]
TESTED_ELSEWHERE: dict[str, str] = tomllib.loads((ROOT / "tests" / "tested_elsewhere.toml").read_text())


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: str(source.relative_to(ROOT)))
def test_a_source_file_has_its_mirrored_test_or_a_sentence_where_it_is_tested(source: Path) -> None:
    name, expected = str(source.relative_to(ROOT)), mirrored_test(source)
    if expected.exists():
        assert name not in TESTED_ELSEWHERE, (
            f"{expected.relative_to(ROOT)} exists: remove the entry of tests/tested_elsewhere.toml"
        )
    else:
        assert name in TESTED_ELSEWHERE, f"add {expected.relative_to(ROOT)}, or a sentence in tests/tested_elsewhere.toml"


@pytest.mark.parametrize("name", TESTED_ELSEWHERE)
def test_a_file_that_is_tested_elsewhere_exists_and_so_do_the_tests_that_its_sentence_names(name: str) -> None:
    assert ROOT / name in SOURCES
    named = re.findall(r"tests/[\w/.]+", TESTED_ELSEWHERE[name])
    assert named
    assert not [path for path in named if not (ROOT / path.rstrip(".")).exists()]
