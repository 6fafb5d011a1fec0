"""The command line application: exit codes, errors as one sentence, and the entry point."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, NoReturn, ParamSpec

import typer

from stillhouse import __version__
from stillhouse.errors import InfrastructureError, Interrupted, SpecError, StillhouseError

OK, TRIALS_FAILED, INTERRUPTED = 0, 3, 130

app = typer.Typer(
    name="stillhouse",
    help="Sweep knowledge distillation: shared teachers, small students, honest trade-offs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
teachers_app = typer.Typer(name="teachers", help="Teachers and the knowledge that is kept of them.", no_args_is_help=True)
app.add_typer(teachers_app)
data_app = typer.Typer(name="data", help="Data sets that are larger than memory.", no_args_is_help=True)
app.add_typer(data_app)

P = ParamSpec("P")


def as_exit_code(command: Callable[P, int | None]) -> Callable[P, None]:
    """Turns errors into one sentence on stderr and the exit code of DESIGN; a traceback only with --debug."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            code = command(*args, **kwargs)
        except StillhouseError as error:
            if kwargs.get("debug"):
                traceback.print_exc()
            _end_with(error)
        except KeyboardInterrupt:
            _end_with(Interrupted("interrupted"))
        except BrokenPipeError:
            # The reader of our stdout is gone (`| head`): nothing is left to say, also not at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(OK) from None
        except OSError as error:
            if kwargs.get("debug"):
                traceback.print_exc()
            where = f" ({error.filename})" if error.filename else ""
            _end_with(InfrastructureError(f"{error.strerror or error}{where}"))
        else:
            raise typer.Exit(code or OK)

    return run


def _end_with(error: StillhouseError) -> NoReturn:
    if isinstance(error, SpecError) and len(error.problems) > 1:
        print(f"error: the spec has {len(error.problems)} problems:", file=sys.stderr)
        for problem in error.problems:
            print(f"  {problem}", file=sys.stderr)
    else:
        print(f"{'' if isinstance(error, Interrupted) else 'error: '}{error}", file=sys.stderr)
    raise typer.Exit(error.exit_code) from error


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """The console script."""
    find_users_code(Path.cwd())
    try:
        with _sigterm_as_interrupt():
            app()
    except SystemExit as ended:
        if ended.code == INTERRUPTED:
            # Another Ctrl-C, while libraries clean up behind us, changes nothing of what was said.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
        raise


def find_users_code(folder: Path) -> None:
    """Lets `module:function` name code that lies beside the spec or in the working folder; installed packages go first."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """A polite kill ends a sweep as Ctrl-C does."""

    def interrupt(_signal: int, _frame: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
