"""The commands about teachers and their stored knowledge."""

import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from stillhouse.cli.app import OK, TRIALS_FAILED, as_exit_code, find_users_code, teachers_app
from stillhouse.cli.options import Address, Debug, Home, Json, Overrides, SweepArgument, parse_size
from stillhouse.cli.output import difference_line, make_console, make_table, print_json
from stillhouse.errors import UsageError


@teachers_app.command(name="ls")
@as_exit_code
def teachers_ls(
    home: Home = None,
    address: Annotated[str | None, typer.Option("--address", help="A Ray cluster: list what runs there too.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """List what is kept: teachers, and the sealed knowledge of each, with its size and when it was last used."""
    from stillhouse.sweep.home.sweep_home import resolve_home
    from stillhouse.teachers.inventory import stored_teachers

    facts = stored_teachers(resolve_home(home))
    running = _running_teachers(address) if address else []
    if as_json:
        print_json({"kept": facts, "running": running} if address else facts)
        return OK
    columns = ("key", "model", "validation", "knowledge", "data set", "views", "bytes", "last used")
    table = make_table(*columns, right=("validation", "views", "bytes"))
    for each in facts:
        accuracy = f"{each['validation_accuracy']:.4f}" if "validation_accuracy" in each else ""
        data = str(each.get("dataset", ""))
        table.add_row(each["key"][:12] or "(gone)", each["model"], accuracy, "weights", data, "", f"{each['bytes']:,}", "")
        for kind in each["knowledge"]["kinds"]:
            views = f"{kind['views']} + {kind['unsealed']} unfinished" if kind["unsealed"] else str(kind["views"])
            used = time.strftime("%Y-%m-%d %H:%M", time.localtime(kind["last_used"]))
            table.add_row("", "", "", kind["knowledge"], kind["dataset"][:12], views, f"{kind['bytes']:,}", used)
    make_console().print(table)
    for each in running:
        print(f"running {_running_line(each)}")
    if address and not running:
        print(f"no teacher runs at {address}")
    return OK


@teachers_app.command(name="train")
@as_exit_code
def teachers_train(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="The sweep's YAML file.")],
    overrides: Overrides = None,
    home: Home = None,
    address: Address = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Train a sweep's teachers, or load their weights, ahead of the sweep; it then finds them."""
    from stillhouse.sweep.home.sweep_home import resolve_home
    from stillhouse.sweep.planning.spec_check import check_file
    from stillhouse.sweep.progress import Progress, native_stderr_in
    from stillhouse.sweep.sweep import Sweep

    find_users_code(spec.expanduser().absolute().parent)
    checked = check_file(spec, overrides or ())
    (place := resolve_home(home)).mkdir(parents=True, exist_ok=True)
    with native_stderr_in(place / "driver.log"), Progress(checked.name) as progress:
        trained = Sweep(checked, home=home, address=address, progress=progress).train_teachers()
    if as_json:
        print_json(trained)
        return OK
    for each in trained:
        how = f"trained in {each['train_seconds']:.1f} s" if each["trained_now"] else "was there"
        print(f"teacher '{each['name']}' {how}: validation accuracy {each['validation_accuracy']:.4f}, {each['weights']}")
    return OK


@teachers_app.command(name="stop")
@as_exit_code
def teachers_stop(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A teacher's or an actor's name; by default all of them.")
    ] = None,
    address: Address = None,
    force: Annotated[bool, typer.Option("--force", help="End also those that a sweep uses; that sweep's trials fail.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """End teachers that run on a cluster, and free their GPUs. Those that a sweep uses stay, unless --force is given."""
    from stillhouse.sweep.cluster.connection import connected
    from stillhouse.teachers.actor_registry import end_teachers, running_teachers

    address = address or os.environ.get("RAY_ADDRESS")
    if address is None:
        raise UsageError("name the cluster with --address; teachers of a cluster of the sweep's own end with the sweep")
    with connected(address):
        found = [each for each in running_teachers() if name in (None, each["actor"], each.get("name"))]
        if not found:
            which = "no teacher" if name is None else f"no teacher '{name}'"
            raise UsageError(f"{which} runs at {address}; stillhouse teachers ls --address lists those that do")
        kept = [each for each in found if each["leases"] and not force]
        ended = [each for each in found if each not in kept]
        end_teachers(each["actor"] for each in ended)
    if as_json:
        print_json({"ended": ended, "in_use": kept})
        return OK
    for each in ended:
        print(f"ended {_running_line(each)}")
    for each in kept:
        print(f"kept {_running_line(each)}; --force ends it")
    return OK


@teachers_app.command(name="verify")
@as_exit_code
def teachers_verify(
    name: SweepArgument,
    pairs: Annotated[int, typer.Option("--pairs", min=1, help="How many (view, sample) pairs of each teacher.")] = 1024,
    home: Home = None,
    address: Address = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Ask a sweep's teachers again for a random sample of what is sealed; what differs is removed. Exit code 3 if any does."""
    from stillhouse.sweep.home.sweep_home import resolve_home
    from stillhouse.sweep.progress import Progress, native_stderr_in
    from stillhouse.sweep.sweep import Sweep

    with native_stderr_in(resolve_home(home) / "driver.log"), Progress(name) as progress:
        found = Sweep.named(name, home=home, address=address, progress=progress).verify(pairs)
    if as_json:
        print_json(found)
    else:
        for each in found["differences"]:
            print(difference_line(each))
        print(f"{found['compared']:,} samples of knowledge compared, {len(found['differences'])} views differ")
    return TRIALS_FAILED if found["differences"] else OK


@teachers_app.command(name="prune")
@as_exit_code
def teachers_prune(
    keep: Annotated[str, typer.Option("--keep", metavar="SIZE", help="How much to keep: 500MB, 20GB; 0 removes all.")] = "0",
    home: Home = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Remove sealed knowledge, the longest unused first. Whatever a sweep needs again is filled again."""
    from stillhouse.knowledge.store import KnowledgeStore
    from stillhouse.sweep.home.sweep_home import resolve_home

    store = KnowledgeStore(resolve_home(home) / "knowledge")
    removed = store.prune(parse_size(keep))
    kept = list(store.entries())
    document = {
        "removed": {"views": len(removed), "bytes": sum(entry["bytes"] for entry in removed)},
        "kept": {"views": len(kept), "bytes": sum(entry["bytes"] for entry in kept)},
    }
    if as_json:
        print_json(document)
    else:
        print("; ".join(f"{what} {count['views']} views, {count['bytes']:,} bytes" for what, count in document.items()))
    return OK


def _running_teachers(address: str) -> list[dict[str, Any]]:
    from stillhouse.sweep.cluster.connection import connected
    from stillhouse.teachers.actor_registry import running_teachers

    with connected(address):
        return running_teachers()


def _running_line(teacher: dict[str, Any]) -> str:
    what = f"{teacher['actor']}: {teacher.get('status') or 'starting'}"
    if "node" in teacher:
        what += f", on {teacher['device']} of node {teacher['node'][:12]}"
    users = ", ".join(f"sweep '{each['sweep']}' ({each['host']}, process {each['pid']})" for each in teacher["leases"])
    return f"{what}; {f'in use by {users}' if users else 'in use by nobody'}"
