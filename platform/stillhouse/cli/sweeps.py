"""The commands that run, stop and remove sweeps."""

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from stillhouse.cli.app import OK, TRIALS_FAILED, app, as_exit_code, find_users_code
from stillhouse.cli.options import Address, Debug, Home, Json, Overrides, SweepArgument
from stillhouse.cli.output import command_line, difference_line, make_console, print_json, print_results
from stillhouse.errors import InfrastructureError, UsageError


@app.command()
@as_exit_code
def sweep(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="The sweep's YAML file.")],
    overrides: Overrides = None,
    home: Home = None,
    address: Address = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show the plan, with --address also where it would run, and start nothing."),
    ] = False,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="With --dry-run: time each teacher and student for a second, to estimate the hours."),
    ] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the spec with all defaults, as YAML.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="First ask the teachers again for a sample of what is sealed, and compare.")
    ] = False,
    fork: Annotated[
        str | None,
        typer.Option(
            "--fork", metavar="NEWNAME", help="Go on under a new name with what fits of the sweep of the spec's name."
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Run a sweep. The same command again runs only what is missing."""
    from stillhouse.sweep.planning.spec_check import check_file

    find_users_code(spec.expanduser().absolute().parent)
    checked = check_file(spec, overrides or ())
    if print_config:
        return _print_config(checked, as_json)
    from stillhouse.sweep.sweep import Sweep

    if dry_run:
        return _show_dry_run(Sweep(checked, home=home), as_json, measure=measure, address=address)
    if measure:
        raise UsageError("--measure belongs to --dry-run: it estimates a plan and starts nothing")
    if fork is not None:
        return _run(
            lambda progress: Sweep.forked(checked, fork, home=home, address=address, command=command_line(), progress=progress),
            fork,
            home,
            as_json,
        )
    return _run(
        lambda progress: Sweep(checked, home=home, address=address, command=command_line(), progress=progress),
        checked.name,
        home,
        as_json,
        verify=verify,
    )


@app.command()
@as_exit_code
def resume(
    name: SweepArgument,
    home: Home = None,
    address: Address = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Go on with a sweep that was started before."""
    from stillhouse.sweep.sweep import Sweep

    return _run(
        lambda progress: Sweep.named(name, home=home, address=address, command=command_line(), progress=progress),
        name,
        home,
        as_json,
    )


@app.command()
@as_exit_code
def extend(
    name: SweepArgument,
    trials: Annotated[int, typer.Option("--trials", metavar="N", min=1, help="Trials of each method from now on.")],
    home: Home = None,
    address: Address = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Go on with a sweep with more trials of each method; those it has are kept."""
    from stillhouse.sweep.sweep import Sweep

    return _run(
        lambda progress: Sweep.extended(name, trials, home=home, address=address, command=command_line(), progress=progress),
        name,
        home,
        as_json,
    )


@app.command()
@as_exit_code
def retry(
    name: SweepArgument,
    failed: Annotated[bool, typer.Option("--failed", help="Trials that failed; the default.")] = False,
    stopped: Annotated[bool, typer.Option("--stopped", help="Trials that were stopped early.")] = False,
    home: Home = None,
    address: Address = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Run a sweep's failed trials again. Their records are set aside, not lost."""
    from stillhouse.sweep.sweep import Sweep

    again = [status for status, wanted in (("failed", failed or not stopped), ("stopped", stopped)) if wanted]
    return _run(
        lambda progress: Sweep.named(name, home=home, address=address, command=command_line(), progress=progress),
        name,
        home,
        as_json,
        again=again,
    )


@app.command()
@as_exit_code
def status(
    name: SweepArgument,
    watch: Annotated[bool, typer.Option("--watch", help="Show it until no process runs the sweep.")] = False,
    home: Home = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Show how far a sweep is, from any terminal, while it runs or after."""
    from stillhouse.sweep.home.manage import print_status, watch_status
    from stillhouse.sweep.home.status import StatusReader
    from stillhouse.sweep.home.sweep_home import find_sweep, resolve_home

    reader = StatusReader(find_sweep(resolve_home(home), name))
    state = watch_status(reader, Console(stderr=True)) if watch else reader.read()
    if as_json:
        print_json(state)
    else:
        print_status(state, make_console())
    return OK


@app.command()
@as_exit_code
def stop(
    name: SweepArgument,
    wait: Annotated[float, typer.Option("--wait", metavar="SECONDS", min=0, help="How long to wait for its end.")] = 120.0,
    home: Home = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Ask the process that runs a sweep to end, from any terminal. Nothing finished is lost."""
    from stillhouse.sweep.home.manage import stop_sweep
    from stillhouse.sweep.home.sweep_home import resolve_home

    root = resolve_home(home)
    ended = stop_sweep(root, name, wait_s=wait, tell=lambda text: print(text, file=sys.stderr))
    if as_json:
        print_json({"sweep": name, "ended": ended})
    elif ended:
        print(f"sweep '{name}' has ended. Go on with: stillhouse resume {name} --home {shlex.quote(str(root))}")
    else:
        print(f"sweep '{name}' still runs after {wait:g} s; it ends when its trials let it")
    return OK


@app.command()
@as_exit_code
def rm(
    name: SweepArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: Home = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Remove a sweep: its records, students and report. Teachers, their knowledge and MLflow's runs stay."""
    from stillhouse.sweep.home.manage import remove_sweep
    from stillhouse.sweep.home.sweep_home import find_sweep, resolve_home

    root = resolve_home(home)
    place = find_sweep(root, name)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"removing sweep '{name}' needs a terminal to ask on, or --yes")
        count = len(list(place.ledger.keys()))
        if not typer.confirm(f"Remove {place.folder} with {count} trials?", err=True):
            print("nothing was removed", file=sys.stderr)
            return OK
    document = remove_sweep(root, name)
    if as_json:
        print_json(document)
    else:
        print(f"removed sweep '{name}', {document['bytes']:,} bytes; its teachers are kept (`stillhouse teachers ls`)")
    return OK


def _run(
    make: Callable[[Any], Any], name: str, home: Path | None, as_json: bool, *, again: Sequence[str] = (), verify: bool = False
) -> int:
    from stillhouse.sweep.home.sweep_home import resolve_home
    from stillhouse.sweep.progress import Progress, native_stderr_in

    with native_stderr_in(resolve_home(home) / "driver.log"), Progress(name) as progress:
        sweep = make(progress)
        found = sweep.verify() if verify else {"differences": []}
        for each in found["differences"]:
            progress.note(difference_line(each))
        results = sweep.run(again=again)
    if as_json:
        print_json(results.to_json())
    else:
        print_results(results)
    return TRIALS_FAILED if results.failed or found["differences"] else OK


def _print_config(spec: Any, as_json: bool) -> int:
    from stillhouse.spec.load import spec_to_dict, spec_to_yaml

    if as_json:
        print_json(spec_to_dict(spec))
    else:
        print(spec_to_yaml(spec), end="")
    return OK


def _show_dry_run(sweep: Any, as_json: bool, *, measure: bool, address: str | None) -> int:
    from stillhouse.sweep.preview.disk_usage import measure_disk_usage
    from stillhouse.sweep.preview.terminal import print_lines, print_plan

    plan = sweep.plan()
    volume = measure_disk_usage(plan, sweep.data(), sweep.sweep_home.home)
    outlook = None
    if measure or address:
        from stillhouse.sweep.preview.hours import make_forecast
        from stillhouse.sweep.progress import native_stderr_in

        with native_stderr_in(sweep.sweep_home.home / "driver.log"):
            outlook = make_forecast(plan, sweep.data(), measure=measure, address=address)
    if as_json:
        print_json(plan.to_dict() | {"knowledge": volume.to_dict()} | (outlook.to_dict() if outlook else {}))
    else:
        print_plan(plan, make_console())
        print_lines(volume.lines(), make_console())
        if outlook is not None:
            print_lines(outlook.lines(), make_console())
    return InfrastructureError.exit_code if outlook is not None and outlook.impossible else OK
