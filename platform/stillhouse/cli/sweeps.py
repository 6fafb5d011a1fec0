"""The commands that start, continue, watch, stop and remove sweeps."""

import math
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from stillhouse.cli.app import OK, TRIALS_FAILED, app, as_exit_code
from stillhouse.cli.options import Address, Debug, Home, Json, Overrides, SpecArgument, StoredOverrides, SweepArgument
from stillhouse.cli.output import command_line, difference_line, make_console, make_table, print_json
from stillhouse.errors import InfrastructureError, UsageError
from stillhouse.text_table import log_line

if TYPE_CHECKING:
    from stillhouse.spec.schema import SweepSpec
    from stillhouse.sweep.progress import Progress
    from stillhouse.sweep.results.results import Results
    from stillhouse.sweep.sweep import Sweep


@app.command()
@as_exit_code
def sweep(
    spec: SpecArgument,
    overrides: Overrides = None,
    home: Home = None,
    address: Address = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the plan, and how far a sweep is that has run before; start nothing. With --address, also where it "
            "would run.",
        ),
    ] = False,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="With --dry-run: time each teacher and student for one second and estimate the hours."),
    ] = False,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the spec with all defaults, as YAML; models are not built.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="First recompute a random sample of the sealed views and compare."),
    ] = False,
    fork: Annotated[
        str | None,
        typer.Option(
            "--fork",
            metavar="NEWNAME",
            help="Run the spec as a new sweep NEWNAME and reuse matching trials of the existing sweep.",
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Run a sweep. The same command again continues it and runs only the missing trials."""
    from stillhouse.sweep.planning.spec_check import check_file

    if print_config:
        return _print_spec(check_file(spec, overrides or (), build=False), as_json)
    checked = check_file(spec, overrides or ())
    from stillhouse.sweep.sweep import Sweep

    if dry_run:
        return _print_dry_run(Sweep(checked, home=home), as_json, measure=measure, address=address)
    if measure:
        raise UsageError("--measure needs --dry-run: it estimates a plan and starts nothing")
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
    overrides: StoredOverrides = None,
    home: Home = None,
    address: Address = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Continue a sweep by its name, with its stored spec."""
    from stillhouse.sweep.sweep import Sweep

    options: dict[str, Any] = {"overrides": overrides or (), "address": address, "command": command_line()}
    return _run(
        lambda progress: Sweep.named(name, home=home, **options, progress=progress),
        name,
        home,
        as_json,
    )


@app.command()
@as_exit_code
def extend(
    name: SweepArgument,
    trials: Annotated[
        int,
        typer.Option("--trials", metavar="N", min=1, help="The total number of trials of each method, existing ones included."),
    ],
    overrides: StoredOverrides = None,
    home: Home = None,
    address: Address = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Continue a sweep with more trials of each method. Existing trials are reused."""
    from stillhouse.sweep.sweep import Sweep

    options: dict[str, Any] = {"overrides": overrides or (), "address": address, "command": command_line()}
    return _run(
        lambda progress: Sweep.extended(name, trials, home=home, **options, progress=progress),
        name,
        home,
        as_json,
    )


@app.command()
@as_exit_code
def retry(
    name: SweepArgument,
    failed: Annotated[bool, typer.Option("--failed", help="Run failed trials again; the default.")] = False,
    stopped: Annotated[bool, typer.Option("--stopped", help="Run trials again that were stopped early.")] = False,
    overrides: StoredOverrides = None,
    home: Home = None,
    address: Address = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Run a sweep's failed trials again. Their old records are moved aside, not deleted."""
    from stillhouse.sweep.sweep import Sweep

    again = [status for status, wanted in (("failed", failed or not stopped), ("stopped", stopped)) if wanted]
    options: dict[str, Any] = {"overrides": overrides or (), "address": address, "command": command_line()}
    return _run(
        lambda progress: Sweep.named(name, home=home, **options, progress=progress),
        name,
        home,
        as_json,
        again=again,
    )


@app.command()
@as_exit_code
def status(
    name: SweepArgument,
    watch: Annotated[bool, typer.Option("--watch", help="Update the status until no process runs the sweep.")] = False,
    home: Home = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Show the progress of a sweep. Works from any terminal, during the run and after it."""
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
    wait: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", min=0, help="How long to wait until the sweep has stopped.")
    ] = 120.0,
    home: Home = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Stop a running sweep, from any terminal. Running trials write a checkpoint; nothing finished is lost."""
    from stillhouse.sweep.home.manage import stop_sweep
    from stillhouse.sweep.home.sweep_home import resolve_home

    root = resolve_home(home)
    ended = stop_sweep(root, name, wait_s=wait, tell=lambda text: print(log_line(text), file=sys.stderr))
    if as_json:
        print_json({"sweep": name, "ended": ended})
    elif ended:
        print(f"sweep '{name}' has stopped; continue it with: stillhouse resume {name} --home {shlex.quote(str(root))}")
    else:
        print(f"sweep '{name}' is still stopping after {wait:g} s: it waits for running trials")
    return OK


@app.command()
@as_exit_code
def rm(
    name: SweepArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Remove without confirmation.")] = False,
    home: Home = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Remove a sweep: its records, students and report. Its teachers, their sealed views and its MLflow runs stay."""
    from stillhouse.sweep.home.manage import remove_sweep
    from stillhouse.sweep.home.sweep_home import find_sweep, resolve_home

    root = resolve_home(home)
    sweep_home = find_sweep(root, name)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"removing sweep '{name}' needs a confirmation: run the command in a terminal, or give --yes")
        count = len(list(sweep_home.ledger.keys()))
        if not typer.confirm(f"Remove {sweep_home.folder} with {count} trials?", err=True):
            print("nothing was removed", file=sys.stderr)
            return OK
    document = remove_sweep(root, name)
    if as_json:
        print_json(document)
    elif document["kept"]:
        print(f"removed the link of sweep '{name}'; its folder {document['kept']} stays")
    else:
        print(f"removed sweep '{name}', {document['bytes']:,} bytes; its teachers stay (list them: stillhouse teachers ls)")
    return OK


def _run(
    make: "Callable[[Progress], Sweep]",
    name: str,
    home: Path | None,
    as_json: bool,
    *,
    again: Sequence[str] = (),
    verify: bool = False,
) -> int:
    """Runs a sweep and prints its results.

    Args:
        make: the sweep that reports to a progress display.
        again: statuses of trials that run again: `failed`, `stopped`.
        verify: whether stored teacher outputs are compared first.
    """
    from stillhouse.sweep.home.sweep_home import resolve_home
    from stillhouse.sweep.progress import Progress, native_stderr_in

    with native_stderr_in(resolve_home(home) / "driver.log"), Progress(name) as progress:
        sweep = make(progress)
        differences = sweep.verify()["differences"] if verify else []
        for difference in differences:
            progress.note(difference_line(difference))
        results = sweep.run(again=again)
    if as_json:
        print_json(results.to_json())
    else:
        _print_results(results)
    return TRIALS_FAILED if results.failed or differences else OK


def _print_results(results: "Results") -> None:
    """Prints the finished trials, the teachers, what failed and why, and where the report is."""
    _print_trials(results)
    document = results.to_json()
    for teacher in document["teachers"]:
        value = teacher[results.facts.metric.name]
        of_split = _ends(results.facts.metric.sampling_interval(value, results.facts.test_samples))
        quality = "" if value is None else f"test {results.facts.metric.label} {value:.4f}{of_split and f' ({of_split})'}, "
        print(
            f"teacher {teacher['name']}: {quality}{teacher['way']}, "
            f"{teacher['samples_forwarded']:,} samples forwarded, {teacher['samples_reused']:,} read back"
        )
    for note in results.facts.notes:
        print(f"note: {note}")
    for record in results.failed:
        print(f"failed: {record.trial.key} {record.trial.method} {record.trial.student.name}: {record.reason}")
    if results.collapsed:
        _print_collapsed(results)
    trials = document["trials"]
    print(
        f"{trials['planned']} trials: {trials['finished']} finished, {trials['failed']} failed, "
        f"{trials['reused']} of them from earlier runs; {document['seconds']:.0f} s"
    )
    if results.files is not None:
        print(f"report  {results.files.page}")
        print(f"table   {results.files.table}")
        print(f"figure  {results.files.figure}")
    print(f"mlflow  stillhouse ui {results.facts.name} --home {shlex.quote(str(results.home))}")


def _print_collapsed(results: "Results") -> None:
    """Prints the trials that learned nothing, and the settings to change."""
    from stillhouse.spec.collapse import collapse_remedy, collapse_words, trivial_value

    metric = results.facts.metric
    validation, test = metric.column("validation"), metric.column("test")
    for record in results.collapsed:
        who = f"{record.trial.key} {record.trial.method} {record.trial.student.name}"
        values = {split: record.metrics.get(column) for split, column in (("validation", validation), ("test", test))}
        split, value = next((split, value) for split, value in values.items() if value is not None)
        print(f"collapsed: {who}: {split} {metric.label} {value:.4f}")
    words = collapse_words(metric, trivial_value(results.facts, "validation"))
    count = len(results.collapsed)
    print(
        f"{count} student{'s are' if count > 1 else ' is'} {words}, and no base for a gain: "
        f"{collapse_remedy(results.facts.spec.get('training', {}))}"
    )


def _print_trials(results: "Results") -> None:
    """Prints one line per finished trial, small students first and the best of a size first."""
    metric = results.facts.metric
    validation, test = metric.column("validation"), metric.column("test")
    trials = results.table()
    finished = trials[trials["status"] == "finished"]
    finished = finished.sort_values(["parameters", validation], ascending=[True, metric.direction == "min"])
    front = {record.trial.key for each in results.front() for record in each.reported}
    collapsed = {record.trial.key for record in results.collapsed}
    of_split = metric.proportion and results.facts.test_samples is not None
    numbers = ("parameters", "latency ms", "validation", "test", *(["95% by test split"] if of_split else []))
    table = make_table("trial", "method", "student", *numbers, "", right=numbers)
    for row in finished.to_dict(orient="records"):
        latency = row["latency_ms"]
        table.add_row(
            row["trial"],
            row["method"],
            row["student"],
            f"{row['parameters']:,.0f}",
            f"{latency:.3f}" if latency == latency else "",
            "" if math.isnan(row[validation]) else f"{row[validation]:.4f}",
            f"{row[test]:.4f}",
            *([_ends(metric.sampling_interval(row[test], results.facts.test_samples))] if of_split else []),
            "collapsed" if row["trial"] in collapsed else "pareto" if row["trial"] in front else "",
        )
    table.print(make_console())


def _ends(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"


def _print_spec(spec: "SweepSpec", as_json: bool) -> int:
    from stillhouse.spec.load import spec_to_dict, spec_to_yaml

    if as_json:
        print_json(spec_to_dict(spec))
    else:
        print(spec_to_yaml(spec), end="")
    return OK


def _print_dry_run(sweep: "Sweep", as_json: bool, *, measure: bool, address: str | None) -> int:
    """Prints the plan, the disk space that it needs and, if requested, its hours and the nodes it would run on."""
    from stillhouse.sweep.preview.disk_usage import measure_disk_usage
    from stillhouse.sweep.preview.terminal import print_lines, print_plan

    plan, standing = sweep.plan(), sweep.standing()
    usage = measure_disk_usage(plan, sweep.data(), sweep.sweep_home.home)
    forecast = None
    if measure or address:
        from stillhouse.sweep.preview.forecast import make_forecast
        from stillhouse.sweep.progress import native_stderr_in

        with native_stderr_in(sweep.sweep_home.home / "driver.log"):
            forecast = make_forecast(plan, sweep.data(), measure=measure, address=address)
    if as_json:
        document: dict[str, Any] = {**plan.to_dict(), "knowledge": usage.to_dict(), **(forecast.to_dict() if forecast else {})}
        for each in document["trials"]:
            found = None if standing is None else standing.of(each["key"])
            each |= {"status": "missing", "why": None} if found is None else {"status": found.status, "why": found.why}
        document["standing"] = None if standing is None else standing.to_dict(each["key"] for each in document["trials"])
        print_json(document)
    else:
        print_plan(plan, make_console())
        print_lines(usage.lines(), make_console())
        if standing is not None:
            print_lines(standing.lines(), make_console())
        if forecast is not None:
            print_lines(forecast.lines(), make_console())
    return InfrastructureError.exit_code if forecast is not None and forecast.impossible else OK
