"""The command line application: exit codes, errors as one sentence, and the entry point."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Annotated, NoReturn, ParamSpec

import typer

from stillhouse import __version__
from stillhouse.errors import (
    MAX_MESSAGE,
    MAX_PROBLEMS,
    InfrastructureError,
    Interrupted,
    SpecError,
    StillhouseError,
    UsageError,
    printable,
    shorten,
)

OK, TRIALS_FAILED = 0, 3
"""Exit codes of commands that raise no error; an error has its own in `stillhouse.errors`."""

app = typer.Typer(
    name="stillhouse",
    help="Sweep knowledge distillation over a Ray cluster: train small students from shared teachers, and compare their "
    "accuracy with their size.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
teachers_app = typer.Typer(
    name="teachers",
    help="Train, list, check and remove teachers and their sealed views (stored outputs).",
    no_args_is_help=True,
)
app.add_typer(teachers_app)
data_app = typer.Typer(
    name="data", help="Prepare data sets that are larger than memory, and remove decoded images.", no_args_is_help=True
)
app.add_typer(data_app)

P = ParamSpec("P")


def as_exit_code(command: Callable[P, int | None]) -> Callable[P, None]:
    """A command that ends with an exit code: every error becomes one sentence on stderr.

    The exit codes are 0 for success, 2 for wrong usage or a wrong spec, 3 for failed trials, 4 for infrastructure and 130 for
    an interrupt. A traceback is printed only with `--debug`.
    """

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            code = command(*args, **kwargs)
        except StillhouseError as error:
            if kwargs.get("debug"):
                traceback.print_exc()
            _exit_with(error)
        except KeyboardInterrupt:
            _exit_with(Interrupted("interrupted"))
        except BrokenPipeError:
            # The reader of stdout is gone (`| head`). Python flushes stdout again at exit, which must not fail either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(OK) from None
        except OSError as error:
            if kwargs.get("debug"):
                traceback.print_exc()
            where = f" ({error.filename})" if error.filename else ""
            _exit_with(InfrastructureError(f"{error.strerror or error}{where}"))
        except UnicodeEncodeError as error:
            if kwargs.get("debug"):
                traceback.print_exc()
            _exit_with(UsageError(f"a name is not UTF-8, so it cannot be stored: {printable(error.object[:80])}; rename it"))
        else:
            raise typer.Exit(code or OK)

    return run


def _exit_with(error: StillhouseError) -> NoReturn:
    """Prints the error, or each problem of a spec on its own line, and exits with the error's code."""
    if isinstance(error, SpecError) and len(error.problems) > 1:
        _print_error(f"error: the spec has {len(error.problems)} problems:")
        for problem in error.problems[:MAX_PROBLEMS]:
            _print_error(f"  {problem}")
        if (more := len(error.problems) - MAX_PROBLEMS) > 0:
            _print_error(f"  and {more:,} more; correct these first")
    else:
        _print_error(f"{'' if isinstance(error, Interrupted) else 'error: '}{error}")
    raise typer.Exit(error.exit_code) from error


def _print_error(text: str) -> None:
    """Prints one line of bounded length; bytes of a file name that are no UTF-8 are escaped."""
    print(printable(shorten(text, MAX_MESSAGE)), file=sys.stderr)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """The entry point of `stillhouse` and of `python -m stillhouse.cli`."""
    try:
        with _sigterm_as_interrupt():
            app()
    except SystemExit as ended:
        if ended.code == Interrupted.exit_code:
            # A second Ctrl-C must not interrupt libraries that clean up when the process exits.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
        raise


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM ends a sweep as Ctrl-C does: trials write checkpoints first."""

    def interrupt(_signal: int, _frame: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
