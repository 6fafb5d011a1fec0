"""What commands print: documents, tables, and the results of a sweep. Facts go to stdout, everything else to stderr."""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

_WIDE = 160


def print_json(document: Any) -> None:
    print(json.dumps(document, indent=2, allow_nan=False))


def make_table(*columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def make_console() -> Console:
    """The terminal; a pipe or a file gets lines as long as they need to be."""
    return Console() if sys.stdout.isatty() else Console(width=_WIDE)


def command_line() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def difference_line(each: Mapping[str, Any]) -> str:
    what = f"teacher {each['teacher']}: {each['knowledge']} of view {each['view']}"
    if "reason" in each:
        return f"{what} is damaged ({each['reason']}) and is made again"
    return f"{what} differs by up to {each['largest_difference']:.3g} (sample {each['sample']}) and is made again"


def print_results(results: Any) -> None:
    console = make_console()
    table = results.table()
    shown = table[table["status"] == "finished"].sort_values(["parameters", "validation_accuracy"], ascending=[True, False])
    front = set(results.pareto()["trial"])
    picture = make_table(
        "trial",
        "method",
        "student",
        "parameters",
        "latency ms",
        "validation",
        "test",
        "",
        right=("parameters", "latency ms", "validation", "test"),
    )
    for row in shown.to_dict(orient="records"):
        latency = row["latency_ms"]
        picture.add_row(
            row["trial"],
            row["method"],
            row["student"],
            f"{row['parameters']:,.0f}",
            f"{latency:.3f}" if latency == latency else "",
            f"{row['validation_accuracy']:.4f}",
            f"{row['test_accuracy']:.4f}",
            "pareto" if row["trial"] in front else "",
        )
    console.print(picture)
    document = results.to_json()
    trials = document["trials"]
    for teacher in document["teachers"]:
        accuracy = "" if teacher["accuracy"] is None else f"test accuracy {teacher['accuracy']:.4f}, "
        print(
            f"teacher {teacher['name']}: {accuracy}{teacher['way']}, "
            f"{teacher['samples_forwarded']:,} samples forwarded, {teacher['samples_reused']:,} read back"
        )
    for note in results.facts.notes:
        print(f"note: {note}")
    for record in results.failed:
        print(f"failed: {record.trial.key} {record.trial.method} {record.trial.student.name}: {record.reason}")
    print(
        f"{trials['planned']} trials: {trials['finished']} finished, {trials['failed']} failed, "
        f"{trials['reused']} of them from earlier runs; {document['seconds']:.0f} s"
    )
    print(f"report  {results.files.page}")
    print(f"table   {results.files.table}")
    print(f"figure  {results.files.figure}")
    print(f"mlflow  stillhouse ui {results.facts.name} --home {shlex.quote(str(results.home))}")


def print_export(document: dict[str, Any]) -> None:
    metrics, agreement = document["metrics"], document["agreement"]
    print(
        f"{document['student']['name']} of trial {document['trial']}: {metrics['parameters']:,.0f} parameters, "
        f"test accuracy {metrics['test_accuracy']:.4f}"
    )
    for form, what in (("program", "student.pt2"), ("onnx", "student.onnx")):
        compared = agreement[form]
        print(
            f"{what} on {compared['images']} validation images: largest difference {compared['largest_difference']:.3g}, "
            f"same class {compared['same_class']} of {compared['images']}"
        )
    table = make_table(
        "milliseconds", "batch 1 p50", "p95", "batch 64 p50", "p95", right=("batch 1 p50", "p95", "batch 64 p50")
    )
    for form, by_size in document["latency_ms"].items():
        table.add_row(form, *(f"{by_size[size][part]:.3f}" for size in ("1", "64") for part in ("p50", "p95")))
    make_console().print(table)
    print(f"written     {document['folder']}")
    registered = document["registered"]
    if registered:
        print(f"registered  {registered['uri']} (version {registered['version']}) in {registered['store']}")
        serve = ["mlflow", "models", "serve", "-m", registered["uri"], "--env-manager", "local", "--port", "5001"]
        print(f"serve it    MLFLOW_TRACKING_URI={shlex.quote(registered['store'])} {shlex.join(serve)}")


def answer_line(answer: dict[str, Any]) -> str:
    asked = answer["question"] if answer["budget"] is None else " ".join(f"{k} <= {v:g}" for k, v in answer["budget"].items())
    if answer["trial"] is None:
        return f"{asked}: no finished student fits"
    interval = answer["test_interval"]
    spread = "one seed" if interval is None else f"95% interval {interval[0]:.4f} to {interval[1]:.4f}, n = {answer['seeds']}"
    where = f" of {answer['sweep']}" if "sweep" in answer else ""
    ties = len(answer["tied_with"])
    tied = f"; not told apart from {ties} other{'s' * (ties > 1)}" if ties else ""
    return (
        f"{asked}: {answer['student']} with {answer['method']}{where}, {answer['parameters']:,.0f} parameters, "
        f"test {answer['test_accuracy']:.4f} ({spread}), trial {answer['trial']}{tied}"
    )
