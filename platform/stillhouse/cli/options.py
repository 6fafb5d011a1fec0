"""Options and arguments that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from stillhouse.errors import UsageError
from stillhouse.spec.sizes import parse_bytes

Home = Annotated[
    Path | None,
    typer.Option("--home", metavar="DIR", help="Where everything is kept; else STILLHOUSE_HOME, else ~/.stillhouse."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the spec, as in search.max_epochs=5.")
]
Address = Annotated[str | None, typer.Option("--address", help="A running Ray cluster; by default Ray starts on this machine.")]
SweepArgument = Annotated[str, typer.Argument(metavar="NAME", help="A sweep's name.")]


def parse_size(text: str, option: str = "--keep") -> int:
    """The value of an option that is a size.

    Raises:
        UsageError: it is none.
    """
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise UsageError(f"{option} {error}") from error
