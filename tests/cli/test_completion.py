"""What shells complete: commands, options, sweeps, trials, methods, models, keys of a spec."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    for name in ("fashion", "faces", "digits"):
        (home / "sweeps" / name / "ledger").mkdir(parents=True)
        (home / "sweeps" / name / "spec.json").write_text("{}")
    (home / "sweeps" / "fashion" / "ledger" / "0123abcd.record").write_text("")
    return home


def completed(line: str, home: Path, shell: str = "bash") -> list[str]:
    """What the shell is offered at the end of a line."""
    words = line.split(" ")
    asked = {
        "bash": {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)},
        "zsh": {"_TYPER_COMPLETE_ARGS": line},
        "fish": {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    program = "import sys; sys.argv = ['stillhouse']; from stillhouse.cli import main; main()"
    environment = {**os.environ, **asked, "_STILLHOUSE_COMPLETE": f"complete_{shell}", "STILLHOUSE_HOME": str(home)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert not shown.stderr
    return shown.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("stillhouse resume fa", ["faces", "fashion"]),
        ("stillhouse export fashion ", ["0123abcd", "best"]),
        ("stillhouse export nothing b", ["best"]),
        ("stillhouse methods fit", ["fitnets"]),
        ("stillhouse models lene", ["lenet"]),
        ("stillhouse spec search.max", ["search.max_epochs"]),
        ("stillhouse resu", ["resume"]),
    ],
)
def test_names_are_completed(line: str, offered: list[str], home: Path) -> None:
    assert completed(line, home) == offered


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_are_offered_the_same(shell: str, home: Path) -> None:
    offered = completed("stillhouse resume fa", home, shell)
    assert {"faces", "fashion"} <= {name.strip("\"'():") for name in offered}
    assert "digits" not in " ".join(offered)


def test_a_home_that_cannot_be_read_completes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert completed("stillhouse resume ", tmp_path / "file") == []


def test_the_home_option_is_heeded(home: Path, tmp_path: Path) -> None:
    assert completed(f"stillhouse resume --home {home} fa", tmp_path) == ["faces", "fashion"]
