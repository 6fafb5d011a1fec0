"""The commands that show results: report, export, ui and sync."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from stillhouse.cli.app import OK, app, as_exit_code
from stillhouse.cli.options import Debug, Home, Json, SweepArgument
from stillhouse.cli.output import answer_line, print_export, print_json
from stillhouse.errors import InfrastructureError, UsageError


@app.command()
@as_exit_code
def report(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="A sweep's name; several are compared in one page.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where to write; else the sweep's own folder.")
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            "--budget", metavar="SIZE=LIMIT", help="Answer for students within it, as in parameters=100k; else the spec's own."
        ),
    ] = None,
    home: Home = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Write the trade-off report of a sweep again, from its ledger, or one page that compares several."""
    from stillhouse.report import parse_budget
    from stillhouse.sweep.home.sweep_home import resolve_home
    from stillhouse.sweep.results.results import Results, compare

    names = list(dict.fromkeys(names))
    if len(names) > 1 and out is None:
        raise UsageError("several sweeps need a folder for the page that compares them: give --out DIR")
    budgets = [parse_budget(text) for text in budget] if budget else None
    sweeps = [Results.read(resolve_home(home), name) for name in names]
    files = compare(sweeps, out or sweeps[0].sweep_home.report, budgets)
    document = {"page": str(files.page), "table": str(files.table), "figure": str(files.figure)}
    if as_json:
        print_json(document | {"best": files.best})
        return OK
    for what, path in document.items():
        print(f"{what:<7} {path}")
    for answer in files.best:
        print(answer_line(answer))
    return OK


@app.command()
@as_exit_code
def export(
    name: SweepArgument,
    trial: Annotated[str, typer.Argument(metavar="TRIAL", help="A trial's key or the beginning of it, or: best.")],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="The folder to write: a new one, or an earlier export.")],
    register: Annotated[
        str | None, typer.Option("--register", metavar="MODEL@ALIAS", help="Register it in the sweep's MLflow store as well.")
    ] = None,
    home: Home = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Take a student home: weights, torch.export program, ONNX, preprocessing facts and a model card."""
    from stillhouse.sweep.home.sweep_home import resolve_home
    from stillhouse.sweep.results.export import export_trial

    document = export_trial(
        resolve_home(home), name, trial, to, register=register, tell=lambda event: print(event, file=sys.stderr)
    )
    if as_json:
        print_json(document)
    else:
        print_export(document)
    return OK


@app.command()
@as_exit_code
def ui(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="The sweep whose view is opened.")] = None,
    home: Home = None,
    port: Annotated[int, typer.Option(help="The port on the loopback interface.")] = 5000,
    browse: Annotated[bool, typer.Option("--browse", help="Open a browser as well.")] = False,
    debug: Debug = False,
) -> int:
    """Serve MLflow for this home on the loopback interface, opened on the saved view."""
    from stillhouse.sweep.home.sweep_home import find_sweep, resolve_home
    from stillhouse.tracking import ui as serve

    root = resolve_home(home)
    uri = None
    if name is not None:
        kept = find_sweep(root, name).read_spec() or {}
        uri = kept.get("tracking", {}).get("uri")
    return serve(uri, root, port, name, browse=browse)


@app.command()
@as_exit_code
def sync(name: SweepArgument, home: Home = None, as_json: Json = False, debug: Debug = False) -> int:
    """Write a sweep's ledger into MLflow; what stands there already is left as it is."""
    from stillhouse.sweep.home.sweep_home import resolve_home
    from stillhouse.sweep.results.mlflow_sync import sync_sweep
    from stillhouse.sweep.results.results import Results

    done, students = sync_sweep(Results.read(resolve_home(home), name))
    if as_json:
        counts = {"created": done.created, "skipped": done.skipped, "failed": done.failed}
        print_json({**counts, "students_stored": students.stored, "run_id": done.run_id})
    else:
        print(f"{done.created} runs written, {done.skipped} stood there already, {done.failed} failed")
        print(f"{students.stored} students of the front stored with their weights, {students.skipped} stood there already")
    for reason in (*done.reasons, *students.reasons):
        print(reason, file=sys.stderr)
    return OK if not (done.failed or students.reasons) else InfrastructureError.exit_code
