"""The commands that list sweeps, methods, operators and models."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from stillhouse.cli import completion
from stillhouse.cli.app import OK, app, as_exit_code
from stillhouse.cli.options import Debug, Home, Json
from stillhouse.cli.output import make_console, make_table, print_json
from stillhouse.cli.stored_facts import stored_or_computed
from stillhouse.user_code import OTHER_MODELS


@app.command(name="ls")
@as_exit_code
def list_all(home: Home = None, as_json: Json = False, debug: Debug = False) -> int:
    """List all sweeps of a home with their progress, best student, size on disk and last use."""
    from stillhouse.sweep.home.manage import list_sweeps
    from stillhouse.sweep.home.sweep_home import resolve_home
    from stillhouse.sweep.progress import metric_of_state

    facts = list_sweeps(resolve_home(home))
    if as_json:
        print_json(facts)
        return OK
    table = make_table("sweep", "state", "trials", "failed", "best", "bytes", "last used", right=("trials", "failed", "bytes"))
    for each in facts:
        best, column = each["best"], metric_of_state(each).column("validation")
        table.add_row(
            each["sweep"],
            each["state"],
            f"{each['done']}/{'?' if each['planned'] is None else each['planned']}",
            str(each["failed"]),
            f"{best[column]:.4f} {best['student']} {best['method']}" if best else "",
            f"{each['bytes']:,}",
            each["last_used"],
        )
    table.print(make_console())
    for each in facts:
        if "problem" in each:
            print(f"{each['sweep']}: {each['problem']}")
    return OK


@app.command(name="methods")
@as_exit_code
def list_methods(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Show this method in full.", autocompletion=completion.methods)
    ] = None,
    folders: Annotated[
        list[Path] | None, typer.Option("--folder", metavar="DIR", help="Also read method files from this folder. Repeatable.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the list as a page, as in methods/README.md.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """List the distillation methods, or show one with its hyper-parameters."""
    facts = stored_or_computed("methods", lambda: _facts_of_methods(folders or ()), folders=folders or ())
    if name is not None:
        facts = [each for each in facts if each["name"] == name] or _facts_of_methods(folders or (), name)
    if as_json:
        print_json(facts[0] if name is not None else facts)
    elif markdown:
        from stillhouse.cli.catalogue import methods_page

        print(methods_page(facts), end="")
    elif name is not None:
        from stillhouse.cli.catalogue import print_method

        print_method(facts[0])
    else:
        table = make_table("method", "family", "arXiv", "needs from teacher", "title")
        for each in facts:
            knowledge = ", ".join(each["knowledge"]) or "nothing"
            table.add_row(each["name"], each["family"], each["arxiv"] or "", knowledge, each["title"])
        table.print(make_console())
    return OK


def _facts_of_methods(folders: Sequence[Path], name: str | None = None) -> list[dict[str, Any]]:
    """What the catalogue has about one method, or about all.

    Raises:
        UsageError: a folder does not exist or repeats a method, or there is no method of this name.
    """
    from stillhouse import methods
    from stillhouse.cli.catalogue import method_facts

    for folder in folders:
        methods.add_folder(folder)
    return [method_facts(each) for each in ([name] if name is not None else methods.names())]


@app.command(name="operators")
@as_exit_code
def list_operators(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", help="Show this operator in full; or module:Class.", autocompletion=completion.operators
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """List the operators that make students smaller, or show one with its options."""
    from stillhouse import compress
    from stillhouse.cli.catalogue import operator_facts, print_operator

    facts = [operator_facts(each) for each in ([name] if name is not None else compress.names())]
    if as_json:
        print_json(facts[0] if name is not None else facts)
    elif name is not None:
        print_operator(facts[0])
    else:
        table = make_table("operator", "arXiv", "changes", "what it does")
        for each in facts:
            table.add_row(each["name"], each["arxiv"] or "", each["changes"], each["does"])
        table.print(make_console())
    return OK


@app.command(name="models")
@as_exit_code
def list_models(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="Show this model with its layers and options.", autocompletion=completion.models),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """List the models with their sizes for 100 classes on 3x32x32 images, or show one."""
    facts = stored_or_computed("models", _facts_of_models) if name is None else _facts_of_models(name)
    if as_json:
        print_json(facts[0] if name is not None else facts)
        return OK
    if name is not None:
        for key, value in facts[0].items():
            print(f"{key:<16} {value if isinstance(value, str) else json.dumps(value)}")
        return OK
    table = make_table("model", "parameters", "MACs", "bytes", right=("parameters", "MACs", "bytes"))
    for each in facts:
        table.add_row(each["name"], *(f"{each[key]:,}" for key in ("parameters", "macs", "size_bytes")))
    table.print(make_console())
    print(f"further models by name: {OTHER_MODELS}")
    return OK


def _facts_of_models(name: str | None = None) -> list[dict[str, Any]]:
    """What the catalogue has about one model, in full, or about all.

    Raises:
        UsageError: there is no model of this name.
    """
    from stillhouse.cli.catalogue import model_facts
    from stillhouse.models.registry import all_model_names

    return [model_facts(each, full=name is not None) for each in ([name] if name is not None else all_model_names())]
