"""Code that goes along to other nodes: what is laid out for them, and what a fresh process there finds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stillhouse.provenance import code_facts
from stillhouse.workers import COMMIT_VARIABLE, stage_code

METHOD = """
from dataclasses import dataclass
from stillhouse.distill.method import Card, Method

@dataclass(frozen=True, kw_only=True)
class Plain(Method):
    card = Card(title="Plain training", arxiv=None, family="control")
"""
PROGRAM = """
from stillhouse.workers import prepare_worker
prepare_worker((), 1, ["{folder}"])
import own_nets_of_a_test
from stillhouse import methods
from stillhouse.provenance import code_facts
print(own_nets_of_a_test.answer(), methods.find("plain").__module__, code_facts())
"""


def test_a_node_without_the_code_finds_the_platform_the_users_modules_and_methods(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, staged = tmp_path / "own", tmp_path / "staged"
    (own / "methods").mkdir(parents=True)
    staged.mkdir()
    (own / "own_nets_of_a_test.py").write_text(
        "from own_parts_of_a_test.sums import add\n\ndef answer():\n    return add(2, 3)\n"
    )
    (own / "own_parts_of_a_test").mkdir()
    (own / "own_parts_of_a_test" / "__init__.py").touch()
    (own / "own_parts_of_a_test" / "sums.py").write_text("def add(a, b):\n    return a + b\n")
    (own / "stranger.py").write_text("raise RuntimeError\n")
    (own / "methods" / "plain.py").write_text(METHOD)
    monkeypatch.syspath_prepend(own)
    __import__("own_nets_of_a_test")

    paths = stage_code(staged, modules=["own_nets_of_a_test"], method_folders=[str(own / "methods")])

    assert not (staged / "users" / "stranger.py").exists(), "what nobody imported stays at home"
    moved = own.rename(tmp_path / "gone")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(folder=own / "methods")],
        cwd=staged,
        # A relative path, as the nodes get it.
        env={**os.environ, "PYTHONPATH": paths, COMMIT_VARIABLE: "0123abc"},
        capture_output=True,
        text=True,
    )
    assert moved.exists()
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("5 stillhouse.methods.plain")
    assert "'commit': '0123abc'" in done.stdout
    assert str(staged / "platform" / "stillhouse") in done.stdout


def test_an_installed_package_sends_the_users_code_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stillhouse.workers.is_checkout", lambda _root: False)
    assert stage_code(tmp_path, modules=[], method_folders=[]) == "users"
    assert [path.name for path in tmp_path.iterdir()] == ["users"]


def test_a_checkout_tells_its_own_commit_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(str(code_facts()["package_path"])).parents[1]
    if not (root / ".git").exists():
        pytest.skip("not a git checkout")
    monkeypatch.setenv(COMMIT_VARIABLE, "of another")
    assert code_facts.__wrapped__()["commit"] == code_facts()["commit"] != "of another"
