"""Errors become one sentence and an exit code; the entry point turns signals into interrupts."""

import os
import signal
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from stillhouse import __version__
from stillhouse.cli import app
from stillhouse.cli.app import as_exit_code
from stillhouse.errors import InfrastructureError, Interrupted, Problem, SpecError, UsageError

COMMANDS = [
    *("sweep", "resume", "extend", "retry", "status", "stop", "rm", "ls", "methods", "operators", "models"),
    *("report", "export", "ui", "sync", "doctor"),
]


def exit_code_of(error: BaseException, *, debug: bool = False) -> int:
    @as_exit_code
    def command(*, debug: bool) -> int:
        raise error

    with pytest.raises(typer.Exit) as ended:
        command(debug=debug)
    return ended.value.exit_code


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (UsageError("no sweep 'a'"), 2, "error: no sweep 'a'\n"),
        (SpecError([Problem("views.count", "must be >= 1, got 0")]), 2, "error: views.count must be >= 1, got 0\n"),
        (InfrastructureError("the cluster is gone"), 4, "error: the cluster is gone\n"),
        (OSError(5, "Input/output error", "/dev/sda"), 4, "error: Input/output error (/dev/sda)\n"),
        (OSError("no route"), 4, "error: no route\n"),
        (Interrupted("stopped; continue with: stillhouse resume a"), 130, "stopped; continue with: stillhouse resume a\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_an_error_is_one_sentence_on_stderr_and_an_exit_code(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, sentence: str
) -> None:
    assert exit_code_of(error) == code
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", sentence)


def test_every_problem_of_a_spec_has_its_own_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(SpecError([Problem("a", "must be 1, got 2"), Problem("b", "must be 3, got 4")])) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: the spec has 2 problems:",
        "  a must be 1, got 2",
        "  b must be 3, got 4",
    ]


@pytest.mark.parametrize("error", [UsageError("wrong"), OSError(5, "Input/output error")])
def test_debug_prints_the_traceback_before_the_sentence(capsys: pytest.CaptureFixture[str], error: Exception) -> None:
    exit_code_of(error, debug=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1].startswith("error: ")


@pytest.mark.parametrize("code", [0, 3])
def test_a_command_without_an_error_ends_with_its_own_code(code: int) -> None:
    @as_exit_code
    def command() -> int:
        return code

    with pytest.raises(typer.Exit) as ended:
        command()
    assert ended.value.exit_code == code


def test_a_reader_that_closes_the_pipe_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "stillhouse.cli", "methods", "--json"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_version_is_printed_alone() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.stdout) == (0, f"{__version__}\n")


def test_help_lists_every_command_in_the_order_of_use() -> None:
    lines = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "120"}).stdout.splitlines()
    words = [line.strip("│ ").split(" ")[0] for line in lines]
    assert [word for word in words if word in (*COMMANDS, "teachers", "data")] == [*COMMANDS, "teachers", "data"]


def test_an_unknown_command_is_wrong_usage() -> None:
    assert CliRunner().invoke(app, ["swep"]).exit_code == 2


def test_help_imports_neither_torch_nor_ray() -> None:
    """`--help` answers at once; the libraries of a sweep take seconds to import."""
    program = (
        "import sys\nfrom typer.testing import CliRunner\nfrom stillhouse.cli import app\n"
        "assert CliRunner().invoke(app, ['sweep', '--help']).exit_code == 0\n"
        "print(sorted({'torch', 'ray', 'numpy', 'pandas', 'mlflow', 'optuna'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_sigterm_ends_a_command_as_ctrl_c_does() -> None:
    """The command sends the signal to itself, so that no time passes between its start and the signal."""
    program = (
        "import os, signal, sys\nfrom stillhouse.cli import app, main\nfrom stillhouse.cli.app import as_exit_code\n"
        "@app.command()\n@as_exit_code\ndef wait() -> int:\n    os.kill(os.getpid(), signal.SIGTERM)\n    return 0\n"
        "sys.argv = ['stillhouse', 'wait']\nmain()"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_the_handler_of_sigterm_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys, "argv", ["stillhouse", "--version"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    from stillhouse.cli import main

    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert signal.getsignal(signal.SIGTERM) is before
