"""The commands about results: the report, an exported student, and MLflow."""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from stillhouse.cli import completion
from stillhouse.cli.app import OK, app, as_exit_code
from stillhouse.cli.options import Debug, Home, Json, StoredOverrides, SweepArgument
from stillhouse.cli.output import answer_line, make_console, make_table, metric_on, print_json
from stillhouse.errors import InfrastructureError, UsageError
from stillhouse.text_table import log_line


@app.command()
@as_exit_code
def report(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME",
            help="The name of a sweep; several names give one page that compares them.",
            autocompletion=completion.sweeps,
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="The folder to write to. Default: the sweep's own folder.")
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            "--budget",
            metavar="SIZE=LIMIT",
            help="Name the best student within this size, for example parameters=100k. Repeatable. Default: as in the spec.",
        ),
    ] = None,
    home: Home = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Write a sweep's trade-off report again from its ledger, or one page that compares several sweeps."""
    from stillhouse.report import parse_budget
    from stillhouse.sweep.home.sweep_home import resolve_home
    from stillhouse.sweep.results.results import Results, compare

    names = list(dict.fromkeys(names))
    if len(names) > 1 and out is None:
        raise UsageError("a page that compares several sweeps needs a folder: give --out DIR")
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
        print(answer_line(answer, sweeps[0].facts.metric))
    return OK


@app.command()
@as_exit_code
def export(
    name: SweepArgument,
    trial: Annotated[
        str,
        typer.Argument(
            metavar="TRIAL",
            help="A trial's key, the beginning of it, or 'best': the best student on validation data.",
            autocompletion=completion.trials,
        ),
    ],
    to: Annotated[
        Path,
        typer.Option("--to", metavar="DIR", help="The folder to write to: a new one, or an earlier export, which is replaced."),
    ],
    register: Annotated[
        str | None,
        typer.Option("--register", metavar="MODEL@ALIAS", help="Also register the student in the sweep's MLflow store."),
    ] = None,
    overrides: StoredOverrides = None,
    with_preprocessing: Annotated[
        bool,
        typer.Option(
            "--with-preprocessing", help="Also write student.raw.onnx, which takes raw images (uint8) and prepares them."
        ),
    ] = False,
    licence: Annotated[
        str, typer.Option("--licence", metavar="NAME", help="The student's licence, noted in its files, such as 'CC BY 4.0'.")
    ] = "",
    home: Home = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Export a trained student: weights, torch.export program, ONNX, preprocessing facts and a model card."""
    from stillhouse.sweep.home.sweep_home import resolve_home
    from stillhouse.sweep.results.export import export_trial

    document = export_trial(
        resolve_home(home),
        name,
        trial,
        to,
        register=register,
        overrides=overrides or (),
        with_preprocessing=with_preprocessing,
        licence=licence,
        tell=lambda event: print(log_line(event), file=sys.stderr),
    )
    if as_json:
        print_json(document)
    else:
        _print_export(document)
    return OK


def _load_words(measured_on: Mapping[str, Any]) -> str:
    """Under which load the latencies were measured."""
    average, cores, rounds = measured_on["load_average"], measured_on["cores"], measured_on["rounds"]
    words = f"measured    {measured_on['threads']} of {cores} cores"
    if average is not None:
        words += f", load average {average:.2f}"
    if rounds > 1:
        words += f", {rounds} times, the fastest of each" + (": the machine was busy all the time" * measured_on["busy"])
    return words


def _print_export(document: Mapping[str, Any]) -> None:
    """Prints the student's numbers, how far the exported files agree with it, their latency, and where they are."""
    metrics = document["metrics"]
    reached = metric_on("test", metrics)
    quality = f", test {reached[0]} {reached[1]:.4f}" if reached else ""
    print(f"{document['student']['name']} of trial {document['trial']}: {metrics['parameters']:,.0f} parameters{quality}")
    for form, file in (("program", "student.pt2"), ("onnx", "student.onnx"), ("raw", "student.raw.onnx")):
        if (compared := document["agreement"].get(form)) is None:
            continue
        print(
            f"{file} on {compared['images']} validation images: largest difference {compared['largest_difference']:.3g}, "
            f"same class {compared['same_class']} of {compared['images']}"
        )
    numbers = ("batch 1 p50", "p95", "batch 64 p50", "p95")
    table = make_table("milliseconds", *numbers, right=numbers)
    for form, by_size in document["latency_ms"].items():
        table.add_row(form, *(f"{by_size[size][part]:.3f}" for size in ("1", "64") for part in ("p50", "p95")))
    table.print(make_console())
    print(_load_words(document["measured_on"]))
    print(f"written     {document['folder']}")
    registered = document["registered"]
    if registered:
        print(f"registered  {registered['uri']} (version {registered['version']}) in {registered['store']}")
        serve = ["mlflow", "models", "serve", "-m", registered["uri"], "--env-manager", "local", "--port", "5001"]
        print(f"serve it    MLFLOW_TRACKING_URI={shlex.quote(registered['store'])} {shlex.join(serve)}")


@app.command()
@as_exit_code
def ui(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", help="The sweep whose saved view's address is printed.", autocompletion=completion.sweeps
        ),
    ] = None,
    home: Home = None,
    port: Annotated[int, typer.Option(help="The port on the loopback interface.")] = 5000,
    browse: Annotated[bool, typer.Option("--browse", help="Also open a browser.")] = False,
    debug: Debug = False,
) -> int:
    """Start MLflow's web page for this home, on the loopback interface."""
    from stillhouse.sweep.home.sweep_home import find_sweep, resolve_home
    from stillhouse.tracking import ui as serve

    root = resolve_home(home)
    uri = None
    if name is not None:
        spec = find_sweep(root, name).read_spec() or {}
        uri = spec.get("tracking", {}).get("uri")
    return serve(uri, root, port, name, browse=browse)


@app.command()
@as_exit_code
def sync(name: SweepArgument, home: Home = None, as_json: Json = False, debug: Debug = False) -> int:
    """Write a sweep's ledger into MLflow. Runs that are already present stay as they are."""
    from stillhouse.sweep.home.sweep_home import resolve_home
    from stillhouse.sweep.results.mlflow_sync import sync_sweep
    from stillhouse.sweep.results.results import Results

    done, students = sync_sweep(Results.read(resolve_home(home), name))
    if as_json:
        counts = {"created": done.created, "skipped": done.skipped, "failed": done.failed}
        print_json({**counts, "students_stored": students.stored, "run_id": done.run_id})
    else:
        print(f"{done.created} runs written, {done.skipped} already present, {done.failed} failed")
        print(f"{students.stored} students of the Pareto front stored with their weights, {students.skipped} already present")
    for reason in (*done.reasons, *students.reasons):
        print(reason, file=sys.stderr)
    return OK if not (done.failed or students.reasons) else InfrastructureError.exit_code
