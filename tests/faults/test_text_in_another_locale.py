"""Every text file has the encoding UTF-8, whatever the locale of the process is."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import stillhouse
from stillhouse.sweep.home.sweep_home import SweepHome

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for folder in ("platform", "methods", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
ASCII = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
"""The environment of a process that reads and writes ASCII where no encoding is named."""
TEXT_OF_PROGRAMS = ("text", "universal_newlines")


def without_encoding(tree: ast.AST) -> Iterator[ast.Call]:
    """Calls that read or write text in the encoding of the locale."""
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call) or any(word.arg in ("encoding", None) for word in call.keywords):
            continue
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        owner = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
        mode = _mode(call, of_path=isinstance(call.func, ast.Attribute) and owner != "os")
        texts = (word.arg in TEXT_OF_PROGRAMS for word in call.keywords)
        if (
            name in ("read_text", "write_text", "TextIOWrapper")
            or (name in ("open", "fdopen") and owner in ("", "os") and (owner, name) != ("os", "open") and "b" not in mode)
            or (name == "open" and owner not in ("", "os") and _opens_path(call) and "b" not in mode)
            or (owner == "subprocess" and any(texts))
        ):
            yield call


def _mode(call: ast.Call, *, of_path: bool) -> str:
    given = [word.value for word in call.keywords if word.arg == "mode"] or call.args[0 if of_path else 1 :][:1]
    return str(given[0].value) if given and isinstance(given[0], ast.Constant) else "r"


def _opens_path(call: ast.Call) -> bool:
    """Whether `x.open(...)` is that of a path: with a mode or nothing. Others open an image, a view or a page."""
    return not call.args or (isinstance(call.args[0], ast.Constant) and isinstance(call.args[0].value, str))


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("p.read_text()", 1),
        ("p.write_text(t)", 1),
        ("p.open()", 1),
        ("p.open('w')", 1),
        ("open(p)", 1),
        ("os.fdopen(d, 'w')", 1),
        ("subprocess.run(c, text=True)", 1),
        ("p.read_text(encoding='utf-8')", 0),
        ("p.open('rb')", 0),
        ("open(p, 'rb')", 0),
        ("os.open(p, os.O_RDONLY)", 0),
        ("Image.open(p)", 0),
        ("store.open(identity)", 0),
    ],
)
def test_the_check_finds_text_without_an_encoding(source: str, found: int) -> None:
    assert len([*without_encoding(ast.parse(source))]) == found


def test_no_source_file_reads_or_writes_text_in_the_encoding_of_the_locale() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{call.lineno}: {ast.unparse(call)}"
        for path in SOURCES
        for call in without_encoding(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert len(SOURCES) > 200
    assert found == []


def test_a_spec_with_letters_beyond_ascii_is_read_in_the_c_locale(tmp_path: Path) -> None:
    home = tmp_path / "Höhe"
    text = "größer 模型"
    SweepHome(home, "a").write_spec({"name": "a", "dataset": {"name": text}})
    program = (
        "import json, locale, pathlib, sys\n"
        "from stillhouse.sweep.home.sweep_home import SweepHome\n"
        "assert locale.getencoding() != 'utf-8', locale.getencoding()\n"
        "print(json.dumps(SweepHome(pathlib.Path(sys.argv[1]), 'a').read_spec()))"
    )
    environment = {**os.environ, **ASCII, "PYTHONPATH": str(Path(stillhouse.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", program, str(home)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["dataset"]["name"] == text
