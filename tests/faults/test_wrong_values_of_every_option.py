"""Every command and every option that takes a value, found in the command line itself: a wrong value is a sentence."""

import inspect
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import pytest
import ray
import typer
from typer.testing import CliRunner

from stillhouse.cli import app
from stillhouse.errors import InfrastructureError

CODES = {0, 2, 3, 4}
LONG, DIGITS = "x" * 100_000, "9" * 400
NUMBERS = ["", "x", "-1", "0", "1e400", "nan", DIGITS, "[/b]"]
TEXTS = [
    "",
    " ",
    "[/b]",
    "../..",
    "-",
    "a\nb",
    "=",
    "x=",
    "nan",
    DIGITS,
    LONG,
    "~nosuchuser/x",
    "pipe",
    os.fsdecode(b"caf\xe9"),
]
PATHS = ["", "~nosuchuser/x", "loop/x", "pipe", "file/x", "/dev/zero/x", "[/b]", LONG, os.fsdecode(b"caf\xe9")]
SPEC = """
name: s
dataset: {name: digits, options: {limit: 200}}
teachers: {t: {model: mlp, hidden: [8]}}
students: [{model: mlp, hidden: [8]}]
methods: {scratch: {}}
"""


class Started(InfrastructureError):
    """Instead of a cluster or a server, which these tests do not start."""


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command without subcommands, with the words that call it."""
    subcommands = getattr(command, "commands", {})
    for name, each in subcommands.items():
        yield from leaves(each, (*path, name))
    if not subcommands:
        yield path, command


COMMANDS = dict(leaves(typer.main.get_command(app)))
VALUES = [
    (path, parameter.name)
    for path, command in COMMANDS.items()
    for parameter in command.params
    if not getattr(parameter, "is_flag", False)
]


def type_of(path: tuple[str, ...], parameter: Any) -> str:
    """`int`, `Path` or `str`: what the command's function declares."""
    hints = get_type_hints(inspect.unwrap(COMMANDS[path].callback))
    words = str(hints[parameter.name])
    return next((kind for kind in ("int", "float", "Path") if kind in words), "str")


def wrong_values(path: tuple[str, ...], parameter: Any) -> list[str]:
    return {"int": NUMBERS, "float": NUMBERS, "Path": PATHS, "str": TEXTS}[type_of(path, parameter)]


def command_line(path: tuple[str, ...], wrong: Any, value: str) -> list[str]:
    """The command with this one value, and with sound ones where others are required."""
    options, arguments = [], []
    for parameter in COMMANDS[path].params:
        if parameter is not wrong and not parameter.required:
            # What a command shows is checked here, not what it starts.
            options += ["--dry-run"] if parameter.name == "dry_run" else []
            continue
        sound = {"Path": "spec.yaml", "int": "3", "float": "3"}.get(type_of(path, parameter), "s")
        given = value if parameter is wrong else sound
        if parameter.param_type_name == "argument":
            arguments.append(given)
        else:
            options.append(f"{parameter.opts[0]}={given}")
    return [*path, *options, "--", *arguments]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "home"))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("x")
    (tmp_path / "spec.yaml").write_text(SPEC)

    def stop(*_arguments: Any, **_options: Any) -> NoReturn:
        raise Started("not started")

    monkeypatch.setattr(ray, "init", stop)
    monkeypatch.setattr("stillhouse.tracking.server.subprocess.Popen", stop)
    return tmp_path


@pytest.mark.parametrize(("path", "name"), VALUES, ids=lambda each: each if isinstance(each, str) else "-".join(each))
def test_a_wrong_value_is_a_sentence(path: tuple[str, ...], name: str, folder: Path) -> None:
    (parameter,) = [each for each in COMMANDS[path].params if each.name == name]
    for value in wrong_values(path, parameter):
        line, started = command_line(path, parameter, value), time.monotonic()
        done = CliRunner().invoke(app, line)
        shown = ascii([*path, name, value[:20]])
        assert done.exception is None or isinstance(done.exception, SystemExit), (shown, repr(done.exception))
        assert done.exit_code in CODES, (shown, done.exit_code, done.output[-500:])
        assert "Traceback" not in done.output, shown
        assert done.output.strip(), shown
        assert all(len(text) <= 1_100 for text in done.stderr.splitlines() if "Usage" not in text and "│" not in text), shown
        assert time.monotonic() - started < 20, shown


@pytest.mark.parametrize("path", COMMANDS, ids="-".join)
def test_an_unknown_option_is_a_sentence(path: tuple[str, ...], folder: Path) -> None:
    done = CliRunner().invoke(app, [*path, "--nosuchoption"])
    assert done.exit_code == 2
    assert "--nosuchoption" in done.stderr


def test_the_walk_finds_the_commands_of_groups_too() -> None:
    assert {("sweep",), ("doctor",), ("teachers", "train"), ("teachers", "stop"), ("data", "pack")} <= COMMANDS.keys()


def test_every_command_has_help() -> None:
    for path, command in COMMANDS.items():
        assert command.help, path
        for parameter in command.params:
            assert getattr(parameter, "help", None) or parameter.name == "help", (path, parameter.name)
