"""What a shell completes besides commands and options: names of sweeps and trials, methods, models, keys of a spec.

Completion never fails: where nothing can be read, there is nothing to complete.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from pathlib import Path

import typer

from stillhouse.errors import StillhouseError

_MOST = 200
Complete = Callable[[typer.Context, str], list[str]]


def _beginning(names: Callable[[typer.Context], Iterable[str]]) -> Complete:
    """The names that begin with what is typed, sorted; none if they cannot be read."""

    @wraps(names)
    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        try:
            return sorted(name for name in names(ctx) if name.startswith(incomplete))[:_MOST]
        except (StillhouseError, OSError, ValueError):
            return []

    # Typer reads the parameters of the function that it is given.
    del complete.__wrapped__
    return complete


@_beginning
def sweeps(ctx: typer.Context) -> Sequence[str]:
    """The sweeps of the home."""
    from stillhouse.sweep.home.sweep_home import sweep_names

    return sweep_names(_home(ctx))


@_beginning
def trials(ctx: typer.Context) -> Sequence[str]:
    """The trials of the sweep that is named before."""
    from stillhouse.sweep.home.sweep_home import SweepHome

    return ["best", *SweepHome(_home(ctx), str(ctx.params.get("name"))).ledger.keys()]


@_beginning
def operators(ctx: typer.Context) -> Sequence[str]:
    from stillhouse import compress

    return compress.names()


@_beginning
def methods(ctx: typer.Context) -> Sequence[str]:
    from stillhouse.methods import names

    return names()


@_beginning
def models(ctx: typer.Context) -> Sequence[str]:
    from stillhouse.models.registry import all_model_names

    return all_model_names()


@_beginning
def spec_keys(ctx: typer.Context) -> Sequence[str]:
    from stillhouse.spec.reference import reference

    return [entry.key for entry in reference()]


def _home(ctx: typer.Context) -> Path:
    from stillhouse.sweep.home.sweep_home import resolve_home

    return resolve_home(ctx.params.get("home"))
