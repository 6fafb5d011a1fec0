"""The commands about teachers and their sealed views."""

import os
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from stillhouse.cli.app import OK, TRIALS_FAILED, as_exit_code, teachers_app
from stillhouse.cli.options import (
    Address,
    Debug,
    Home,
    Json,
    Overrides,
    SpecArgument,
    StoredOverrides,
    SweepArgument,
    parse_size,
)
from stillhouse.cli.output import difference_line, make_console, make_table, metric_on, print_json
from stillhouse.errors import UsageError


@teachers_app.command(name="ls")
@as_exit_code
def teachers_ls(
    home: Home = None,
    address: Annotated[
        str | None, typer.Option("--address", help="The address of a Ray cluster: also list the teachers that run there.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """List stored teachers and their sealed views, with sizes and last use."""
    from stillhouse.sweep.home.sweep_home import resolve_home
    from stillhouse.teachers.inventory import stored_teachers

    stored = stored_teachers(resolve_home(home))
    running = _running_teachers(address) if address else []
    if as_json:
        print_json({"kept": stored, "running": running} if address else stored)
        return OK
    _print_stored(stored)
    for teacher in running:
        print(f"running {_running_line(teacher)}")
    if address and not running:
        print(f"no teacher runs at {address}")
    return OK


def _print_stored(teachers: list[dict[str, Any]]) -> None:
    """Prints one line per teacher, followed by one line per kind of its sealed views.

    The key is that of its weights, which reports and MLflow also have.
    """
    columns = ("key", "model", "validation", "stored", "data set", "views", "bytes", "last used")
    table = make_table(*columns, right=("validation", "views", "bytes"))
    for teacher in teachers:
        reached = metric_on("validation", teacher)
        key, data = teacher["weights_hash"][:12] if teacher["key"] else "(removed)", _data_label(teacher, teachers)
        table.add_row(
            key, teacher["model"], f"{reached[1]:.4f}" if reached else "", "weights", data, "", f"{teacher['bytes']:,}", ""
        )
        for kind in teacher["knowledge"]["kinds"]:
            views = f"{kind['views']} + {kind['unsealed']} incomplete" if kind["unsealed"] else str(kind["views"])
            used = time.strftime("%Y-%m-%d %H:%M", time.localtime(kind["last_used"]))
            table.add_row("", "", "", kind["knowledge"], kind["dataset"][:12], views, f"{kind['bytes']:,}", used)
    table.print(make_console())


def _data_label(teacher: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> str:
    """The data set that a teacher was trained on, told apart from others of the same name."""
    name, folder = str(teacher.get("dataset", "")), teacher.get("folder")
    label = f"{folder} ({name})" if folder else name
    alike = [each for each in others if (each.get("dataset", ""), each.get("folder")) == (name, folder)]
    contents = {each.get("fingerprint") for each in alike}
    return f"{label} {str(teacher['fingerprint'])[:8]}" if len(contents) > 1 and "fingerprint" in teacher else label


@teachers_app.command(name="train")
@as_exit_code
def teachers_train(
    spec: SpecArgument,
    overrides: Overrides = None,
    home: Home = None,
    address: Address = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Train the teachers of a spec, or load their weights, before the sweep. The sweep then reuses them."""
    from stillhouse.sweep.home.sweep_home import resolve_home
    from stillhouse.sweep.planning.spec_check import check_file
    from stillhouse.sweep.progress import Progress, native_stderr_in
    from stillhouse.sweep.sweep import Sweep

    checked = check_file(spec, overrides or ())
    (root := resolve_home(home)).mkdir(parents=True, exist_ok=True)
    with native_stderr_in(root / "driver.log"), Progress(checked.name) as progress:
        trained = Sweep(checked, home=home, address=address, progress=progress).train_teachers()
    if as_json:
        print_json(trained)
        return OK
    for each in trained:
        how = f"trained in {each['train_seconds']:.1f} s" if each["trained_now"] else "already present"
        reached = metric_on("validation", each)
        quality = f"validation {reached[0]} {reached[1]:.4f}, " if reached else ""
        print(f"teacher '{each['name']}' {how}: {quality}{each['weights']}")
    return OK


@teachers_app.command(name="stop")
@as_exit_code
def teachers_stop(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="The name of a teacher or of its actor. Default: all of them.")
    ] = None,
    address: Annotated[
        str | None, typer.Option("--address", help="The address of the Ray cluster. Default: RAY_ADDRESS.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also stop teachers that a sweep is using; its running trials then fail.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Stop teachers that run on a cluster, which frees their GPUs. Teachers that a sweep is using stay, except with --force."""
    from stillhouse.sweep.cluster.connection import connected
    from stillhouse.teachers.actor_registry import end_teachers, running_teachers

    address = address or os.environ.get("RAY_ADDRESS")
    if address is None:
        raise UsageError(
            "name the cluster with --address; a Ray cluster that a sweep started ends with it, and so do its teachers"
        )
    with connected(address):
        found = [each for each in running_teachers() if name in (None, each["actor"], each.get("name"))]
        if not found:
            which = "no teacher" if name is None else f"no teacher '{name}'"
            raise UsageError(
                f"{which} runs at {address}; list running teachers with: stillhouse teachers ls --address {address}"
            )
        in_use = [each for each in found if each["leases"] and not force]
        ended = [each for each in found if each not in in_use]
        end_teachers(each["actor"] for each in ended)
    if as_json:
        print_json({"ended": ended, "in_use": in_use})
        return OK
    for each in ended:
        print(f"stopped {_running_line(each)}")
    for each in in_use:
        print(f"not stopped {_running_line(each)}; --force stops it")
    return OK


@teachers_app.command(name="verify")
@as_exit_code
def teachers_verify(
    name: SweepArgument,
    pairs: Annotated[
        int, typer.Option("--pairs", min=1, help="How many pairs of a view and a sample are compared for each teacher.")
    ] = 1024,
    overrides: StoredOverrides = None,
    home: Home = None,
    address: Address = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Recompute a random sample of the sealed views and compare. Views that differ are removed (exit code 3)."""
    from stillhouse.sweep.home.sweep_home import resolve_home
    from stillhouse.sweep.progress import Progress, native_stderr_in
    from stillhouse.sweep.sweep import Sweep

    with native_stderr_in(resolve_home(home) / "driver.log"), Progress(name) as progress:
        found = Sweep.named(name, home=home, overrides=overrides or (), address=address, progress=progress).verify(pairs)
    if as_json:
        print_json(found)
    else:
        for difference in found["differences"]:
            print(difference_line(difference))
        print(f"{found['compared']:,} samples compared, {len(found['differences'])} views differ")
    return TRIALS_FAILED if found["differences"] else OK


@teachers_app.command(name="prune")
@as_exit_code
def teachers_prune(
    keep: Annotated[
        str, typer.Option("--keep", metavar="SIZE", help="How much to keep, for example 500MB or 20GB; 0 removes everything.")
    ] = "0",
    home: Home = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Remove sealed views (stored teacher outputs), least recently used first. A sweep that needs them computes them again."""
    from stillhouse.knowledge.store import KnowledgeStore
    from stillhouse.sweep.home.sweep_home import resolve_home

    store = KnowledgeStore(resolve_home(home) / "knowledge")
    removed = store.prune(parse_size(keep, "--keep"))
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


def _running_line(teacher: Mapping[str, Any]) -> str:
    """One running teacher: its actor, state and node, and the sweeps that use it."""
    what = f"{teacher['actor']}: {teacher.get('status') or 'starting'}"
    if "node" in teacher:
        what += f", on {teacher['device']} of node {teacher['node'][:12]}"
    users = ", ".join(f"sweep '{each['sweep']}' ({each['host']}, process {each['pid']})" for each in teacher["leases"])
    return f"{what}; {f'used by {users}' if users else 'not in use'}"
