"""Options and arguments that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from stillhouse.cli import completion
from stillhouse.errors import UsageError
from stillhouse.spec.sizes import parse_bytes

Home = Annotated[
    Path | None,
    typer.Option(
        "--home",
        metavar="DIR",
        help="The folder of sweeps, teachers and their sealed views. Default: STILLHOUSE_HOME, else ~/.stillhouse.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Print the traceback of an error.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the spec, for example search.max_epochs=5. Repeatable."),
]
StoredOverrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a key of the stored spec, for example dataset.root=DIR for data that have moved. Repeatable.",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address", help="The address of a running Ray cluster. Default: RAY_ADDRESS, else Ray starts on this machine."
    ),
]
SpecArgument = Annotated[Path, typer.Argument(metavar="SPEC", help="The sweep's YAML file.")]
SweepArgument = Annotated[str, typer.Argument(metavar="NAME", help="The name of the sweep.", autocompletion=completion.sweeps)]


def parse_size(text: str, option: str) -> int:
    """The value of an option that is a size, such as `20GB`, in bytes.

    Raises:
        UsageError: the text is not a size.
    """
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise UsageError(f"{option} {error}") from error
