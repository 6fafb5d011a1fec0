"""The command line: the face of Stillhouse. Facts go to stdout, everything else to stderr."""

import json
import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, NoReturn, ParamSpec

import typer
from rich.console import Console
from rich.table import Table

from stillhouse import __version__
from stillhouse.errors import InfrastructureError, Interrupted, SpecError, StillhouseError, UsageError
from stillhouse.spec.sizes import parse_bytes

OK, USAGE, TRIALS_FAILED, INTERRUPTED = 0, 2, 3, 130
_CATALOGUE_CLASSES = 100
_CATALOGUE_SHAPE = (3, 32, 32)
_WIDE = 160

app = typer.Typer(
    name="stillhouse",
    help="Sweep knowledge distillation: shared teachers, small students, honest trade-offs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
teachers_app = typer.Typer(name="teachers", help="Teachers and the knowledge that is kept of them.", no_args_is_help=True)
app.add_typer(teachers_app)
data_app = typer.Typer(name="data", help="Data sets that are larger than memory.", no_args_is_help=True)
app.add_typer(data_app)

Home = Annotated[
    Path | None,
    typer.Option("--home", metavar="DIR", help="Where everything is kept; else STILLHOUSE_HOME, else ~/.stillhouse."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the spec, as in search.max_epochs=5.")
]
Address = Annotated[str | None, typer.Option("--address", help="A running Ray cluster; by default Ray starts on this machine.")]
SweepArgument = Annotated[str, typer.Argument(metavar="NAME", help="A sweep's name.")]

P = ParamSpec("P")


def _told(command: Callable[P, int | None]) -> Callable[P, None]:
    """Turns errors into one sentence on stderr and the exit code of DESIGN; a traceback only with --debug."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            code = command(*args, **kwargs)
        except StillhouseError as error:
            if kwargs.get("debug"):
                traceback.print_exc()
            _complain(error)
        except KeyboardInterrupt:
            _complain(Interrupted("interrupted"))
        except BrokenPipeError:
            # The reader of our stdout is gone (`| head`): nothing is left to say, also not at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(OK) from None
        except OSError as error:
            if kwargs.get("debug"):
                traceback.print_exc()
            where = f" ({error.filename})" if error.filename else ""
            _complain(InfrastructureError(f"{error.strerror or error}{where}"))
        else:
            raise typer.Exit(code or OK)

    return run


def _complain(error: StillhouseError) -> NoReturn:
    if isinstance(error, SpecError) and len(error.problems) > 1:
        print(f"error: the spec has {len(error.problems)} problems:", file=sys.stderr)
        for problem in error.problems:
            print(f"  {problem}", file=sys.stderr)
    else:
        print(f"{'' if isinstance(error, Interrupted) else 'error: '}{error}", file=sys.stderr)
    raise typer.Exit(error.exit_code) from error


def _print_json(document: Any) -> None:
    print(json.dumps(document, indent=2, allow_nan=False))


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
@_told
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

    _find_users_code(spec.expanduser().absolute().parent)
    checked = check_file(spec, overrides or ())
    if print_config:
        return _print_config(checked, as_json)
    from stillhouse.sweep.sweep import Sweep

    if dry_run:
        return _print_plan(Sweep(checked, home=home), as_json, measure=measure, address=address)
    if measure:
        raise UsageError("--measure belongs to --dry-run: it estimates a plan and starts nothing")
    if fork is not None:
        return _run(
            lambda progress: Sweep.forked(
                checked, fork, home=home, address=address, command=_command_line(), progress=progress
            ),
            fork,
            home,
            as_json,
        )
    return _run(
        lambda progress: Sweep(checked, home=home, address=address, command=_command_line(), progress=progress),
        checked.name,
        home,
        as_json,
        verify=verify,
    )


@app.command()
@_told
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
        lambda progress: Sweep.named(name, home=home, address=address, command=_command_line(), progress=progress),
        name,
        home,
        as_json,
    )


@app.command()
@_told
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
        lambda progress: Sweep.extended(name, trials, home=home, address=address, command=_command_line(), progress=progress),
        name,
        home,
        as_json,
    )


@app.command()
@_told
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
        lambda progress: Sweep.named(name, home=home, address=address, command=_command_line(), progress=progress),
        name,
        home,
        as_json,
        again=again,
    )


@app.command()
@_told
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
        _print_json(state)
    else:
        print_status(state, _console())
    return OK


@app.command()
@_told
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
        _print_json({"sweep": name, "ended": ended})
    elif ended:
        print(f"sweep '{name}' has ended. Go on with: stillhouse resume {name} --home {shlex.quote(str(root))}")
    else:
        print(f"sweep '{name}' still runs after {wait:g} s; it ends when its trials let it")
    return OK


@app.command(name="ls")
@_told
def list_all(home: Home = None, as_json: Json = False, debug: Debug = False) -> int:
    """List all sweeps of a home: how far they are, their best, their size on disk, when they were last used."""
    from stillhouse.sweep.home.manage import list_sweeps
    from stillhouse.sweep.home.sweep_home import resolve_home

    facts = list_sweeps(resolve_home(home))
    if as_json:
        _print_json(facts)
        return OK
    table = _table("sweep", "state", "trials", "failed", "best", "bytes", "last used", right=("trials", "failed", "bytes"))
    for each in facts:
        best = each["best"]
        table.add_row(
            each["sweep"],
            each["state"],
            f"{each['done']}/{'?' if each['planned'] is None else each['planned']}",
            str(each["failed"]),
            f"{best['validation_accuracy']:.4f} {best['student']} {best['method']}" if best else "",
            f"{each['bytes']:,}",
            each["last_used"],
        )
    _console().print(table)
    return OK


@app.command()
@_told
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
        _print_json(document)
    else:
        print(f"removed sweep '{name}', {document['bytes']:,} bytes; its teachers are kept (`stillhouse teachers ls`)")
    return OK


@app.command()
@_told
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
        _print_json(document | {"best": files.best})
        return OK
    for what, path in document.items():
        print(f"{what:<7} {path}")
    for answer in files.best:
        print(_answer_line(answer))
    return OK


@app.command()
@_told
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
        _print_json(document)
    else:
        _print_export(document)
    return OK


@app.command(name="methods")
@_told
def list_methods(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One method, in full.")] = None,
    folders: Annotated[list[Path] | None, typer.Option("--folder", help="A folder with your own method files.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the list as a page, as in methods/README.md.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """List the distillation methods, or show one."""
    from stillhouse import methods

    for folder in folders or ():
        methods.add_folder(folder)
    facts = [_method_facts(each) for each in ([name] if name else methods.names())]
    if as_json:
        _print_json(facts[0] if name else facts)
    elif markdown:
        print(_methods_page(facts), end="")
    elif name:
        _show_method(facts[0])
    else:
        table = _table("method", "family", "arXiv", "asks", "title")
        for each in facts:
            table.add_row(
                each["name"], each["family"], each["arxiv"] or "", ", ".join(each["knowledge"]) or "nothing", each["title"]
            )
        _console().print(table)
    return OK


@app.command(name="models")
@_told
def list_models(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One model, with its layers and options.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """List the models with their size for 100 classes on 3x32x32 images, or show one."""
    from stillhouse.models.registry import model_names

    facts = [_model_facts(each, full=name is not None) for each in ([name] if name else model_names())]
    if as_json:
        _print_json(facts[0] if name else facts)
        return OK
    if name:
        for key, value in facts[0].items():
            print(f"{key:<16} {value if isinstance(value, str) else json.dumps(value)}")
        return OK
    table = _table("model", "parameters", "MACs", "bytes", right=("parameters", "MACs", "bytes"))
    for each in facts:
        table.add_row(each["name"], *(f"{each[key]:,}" for key in ("parameters", "macs", "size_bytes")))
    _console().print(table)
    return OK


@teachers_app.command(name="ls")
@_told
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
        _print_json({"kept": facts, "running": running} if address else facts)
        return OK
    columns = ("key", "model", "validation", "knowledge", "data set", "views", "bytes", "last used")
    table = _table(*columns, right=("validation", "views", "bytes"))
    for each in facts:
        accuracy = f"{each['validation_accuracy']:.4f}" if "validation_accuracy" in each else ""
        data = str(each.get("dataset", ""))
        table.add_row(each["key"][:12] or "(gone)", each["model"], accuracy, "weights", data, "", f"{each['bytes']:,}", "")
        for kind in each["knowledge"]["kinds"]:
            views = f"{kind['views']} + {kind['unsealed']} unfinished" if kind["unsealed"] else str(kind["views"])
            used = time.strftime("%Y-%m-%d %H:%M", time.localtime(kind["last_used"]))
            table.add_row("", "", "", kind["knowledge"], kind["dataset"][:12], views, f"{kind['bytes']:,}", used)
    _console().print(table)
    for each in running:
        print(f"running {_running_line(each)}")
    if address and not running:
        print(f"no teacher runs at {address}")
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


@teachers_app.command(name="train")
@_told
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

    _find_users_code(spec.expanduser().absolute().parent)
    checked = check_file(spec, overrides or ())
    (place := resolve_home(home)).mkdir(parents=True, exist_ok=True)
    with native_stderr_in(place / "driver.log"), Progress(checked.name) as progress:
        trained = Sweep(checked, home=home, address=address, progress=progress).train_teachers()
    if as_json:
        _print_json(trained)
        return OK
    for each in trained:
        how = f"trained in {each['train_seconds']:.1f} s" if each["trained_now"] else "was there"
        print(f"teacher '{each['name']}' {how}: validation accuracy {each['validation_accuracy']:.4f}, {each['weights']}")
    return OK


@teachers_app.command(name="stop")
@_told
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
        _print_json({"ended": ended, "in_use": kept})
        return OK
    for each in ended:
        print(f"ended {_running_line(each)}")
    for each in kept:
        print(f"kept {_running_line(each)}; --force ends it")
    return OK


@teachers_app.command(name="verify")
@_told
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
        _print_json(found)
    else:
        for each in found["differences"]:
            print(_difference_line(each))
        print(f"{found['compared']:,} samples of knowledge compared, {len(found['differences'])} views differ")
    return TRIALS_FAILED if found["differences"] else OK


@teachers_app.command(name="prune")
@_told
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
    removed = store.prune(_parse_bytes(keep))
    kept = list(store.entries())
    document = {
        "removed": {"views": len(removed), "bytes": sum(entry["bytes"] for entry in removed)},
        "kept": {"views": len(kept), "bytes": sum(entry["bytes"] for entry in kept)},
    }
    if as_json:
        _print_json(document)
    else:
        print("; ".join(f"{what} {count['views']} views, {count['bytes']:,} bytes" for what, count in document.items()))
    return OK


@data_app.command(name="pack")
@_told
def data_pack(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Images in one folder per class, or train/ and test/ or val/ with such.")
    ],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Where the pack goes: dataset.root of {name: pack}.")],
    test_share: Annotated[
        float, typer.Option(min=0.001, max=0.999, help="Share of the images that is the test split where the folder has none.")
    ] = 0.2,
    shard_size: Annotated[str, typer.Option(metavar="SIZE", help="About how large a shard gets.")] = "128MB",
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Pack an image folder into shards that are read by memory map. The same command again goes on, or mends."""
    from stillhouse.data.packing import pack_folder

    try:
        packed = pack_folder(
            folder,
            to,
            test_share=test_share,
            shard_bytes=max(1, _parse_bytes(shard_size, "--shard-size")),
            progress=_show_packing,
        )
    except KeyboardInterrupt as interrupt:
        raise Interrupted("interrupted; the shards that are whole are kept, the same command goes on") from interrupt
    if as_json:
        _print_json({**vars(packed), "root": str(packed.root)})
    else:
        counts = ", ".join(f"{count:,} {split}" for split, count in packed.images.items())
        print(f"{counts} images of {packed.num_classes} classes in {packed.shards} shards, {packed.num_bytes:,} bytes")
        print(f"use it as: dataset: {{name: pack, root: {packed.root}, size: 224}}")
    return OK


def _show_packing(done: int, total: int) -> None:
    """One line that changes on a terminal, one line per shard otherwise."""
    if sys.stderr.isatty():
        print(f"\rpacked {done:,} of {total:,} images", end="\n" if done == total else "", file=sys.stderr, flush=True)
    else:
        print(f"packed {done:,} of {total:,} images", file=sys.stderr)


@app.command()
@_told
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
@_told
def sync(name: SweepArgument, home: Home = None, as_json: Json = False, debug: Debug = False) -> int:
    """Write a sweep's ledger into MLflow; what stands there already is left as it is."""
    from stillhouse.sweep.home.sweep_home import resolve_home
    from stillhouse.sweep.results.mlflow_sync import sync_sweep
    from stillhouse.sweep.results.results import Results

    done, students = sync_sweep(Results.read(resolve_home(home), name))
    if as_json:
        counts = {"created": done.created, "skipped": done.skipped, "failed": done.failed}
        _print_json({**counts, "students_stored": students.stored, "run_id": done.run_id})
    else:
        print(f"{done.created} runs written, {done.skipped} stood there already, {done.failed} failed")
        print(f"{students.stored} students of the front stored with their weights, {students.skipped} stood there already")
    for reason in (*done.reasons, *students.reasons):
        print(reason, file=sys.stderr)
    return OK if not (done.failed or students.reasons) else 4


@app.command()
@_told
def doctor(
    home: Home = None,
    address: Annotated[
        str | None, typer.Option("--address", help="A running Ray cluster, whose nodes are checked from a worker on each.")
    ] = None,
    tracking: Annotated[
        str | None, typer.Option("--tracking", metavar="URI", help="MLflow's store; by default the one in the home.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Check what a sweep stands on: packages, cores, GPUs, room and rights in the home, MLflow's store, every node."""
    from stillhouse.doctor import examine
    from stillhouse.sweep.home.sweep_home import resolve_home

    root = resolve_home(home)
    findings = examine(root)
    if address is not None:
        from stillhouse.sweep.cluster.node_checks import examine_cluster
        from stillhouse.sweep.progress import native_stderr_in

        with native_stderr_in(root / "driver.log"):
            findings += examine_cluster(address, root, tracking)
    if as_json:
        _print_json([vars(finding) for finding in findings])
    else:
        for finding in findings:
            where = f"{finding.node} " if finding.node else ""
            print(f"{'ok  ' if finding.good else 'BAD '} {where}{finding.what}: {finding.fact}")
    return OK if all(finding.good for finding in findings) else 4


def main() -> None:
    """The console script."""
    _find_users_code(Path.cwd())
    try:
        with _sigterm_as_interrupt():
            app()
    except SystemExit as ended:
        if ended.code == INTERRUPTED:
            # Another Ctrl-C, while libraries clean up behind us, changes nothing of what was said.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
        raise


def _find_users_code(folder: Path) -> None:
    """Lets `module:function` name code that lies beside the spec or in the working folder; installed packages go first."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """A polite kill ends a sweep as Ctrl-C does."""

    def interrupt(_signal: int, _frame: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(
    make: Callable[[Any], Any], name: str, home: Path | None, as_json: bool, *, again: Sequence[str] = (), verify: bool = False
) -> int:
    from stillhouse.sweep.home.sweep_home import resolve_home
    from stillhouse.sweep.progress import Progress, native_stderr_in

    with native_stderr_in(resolve_home(home) / "driver.log"), Progress(name) as progress:
        sweep = make(progress)
        found = sweep.verify() if verify else {"differences": []}
        for each in found["differences"]:
            progress.note(_difference_line(each))
        results = sweep.run(again=again)
    if as_json:
        _print_json(results.to_json())
    else:
        _print_results(results)
    return TRIALS_FAILED if results.failed or found["differences"] else OK


def _difference_line(each: Mapping[str, Any]) -> str:
    what = f"teacher {each['teacher']}: {each['knowledge']} of view {each['view']}"
    if "reason" in each:
        return f"{what} is damaged ({each['reason']}) and is made again"
    return f"{what} differs by up to {each['largest_difference']:.3g} (sample {each['sample']}) and is made again"


def _print_results(results: Any) -> None:
    console = _console()
    table = results.table()
    shown = table[table["status"] == "finished"].sort_values(["parameters", "validation_accuracy"], ascending=[True, False])
    front = set(results.pareto()["trial"])
    picture = _table(
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


def _print_export(document: dict[str, Any]) -> None:
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
    table = _table("milliseconds", "batch 1 p50", "p95", "batch 64 p50", "p95", right=("batch 1 p50", "p95", "batch 64 p50"))
    for form, by_size in document["latency_ms"].items():
        table.add_row(form, *(f"{by_size[size][part]:.3f}" for size in ("1", "64") for part in ("p50", "p95")))
    _console().print(table)
    print(f"written     {document['folder']}")
    registered = document["registered"]
    if registered:
        print(f"registered  {registered['uri']} (version {registered['version']}) in {registered['store']}")
        serve = ["mlflow", "models", "serve", "-m", registered["uri"], "--env-manager", "local", "--port", "5001"]
        print(f"serve it    MLFLOW_TRACKING_URI={shlex.quote(registered['store'])} {shlex.join(serve)}")


def _answer_line(answer: dict[str, Any]) -> str:
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


def _print_config(spec: Any, as_json: bool) -> int:
    from stillhouse.spec.load import spec_to_dict, spec_to_yaml

    if as_json:
        _print_json(spec_to_dict(spec))
    else:
        print(spec_to_yaml(spec), end="")
    return OK


def _print_plan(sweep: Any, as_json: bool, *, measure: bool, address: str | None) -> int:
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
        _print_json(plan.to_dict() | {"knowledge": volume.to_dict()} | (outlook.to_dict() if outlook else {}))
    else:
        print_plan(plan, _console())
        print_lines(volume.lines(), _console())
        if outlook is not None:
            print_lines(outlook.lines(), _console())
    return InfrastructureError.exit_code if outlook is not None and outlook.impossible else OK


def _method_facts(name: str) -> dict[str, Any]:
    from stillhouse import methods
    from stillhouse.cli.catalogue import asked_by_default

    kind = methods.find(name)
    defaults = kind.defaults()
    return {
        "name": name,
        "title": kind.card.title,
        "arxiv": kind.card.arxiv,
        "family": kind.card.family,
        "knowledge": asked_by_default(kind),
        "hyperparameters": [
            {"name": key, "default": defaults[key], "prior": rule.prior.to_json() if rule.prior else None, "help": rule.help}
            for key, rule in kind.hyperparameters().items()
        ],
        "equations": kind.card.equations,
        "deviations": kind.card.deviations,
        "suggested": kind.card.suggested,
        "interactions": kind.card.interactions,
    }


_FAMILIES = {
    "control": "Controls",
    "L": "Logits",
    "F": "Features",
    "R": "Relations between samples or layers",
    "M": "Several models train",
    "G": "Generations",
    "A": "Methods that make their own inputs",
    "Q": "Low precision",
}


def _methods_page(facts: Sequence[dict[str, Any]]) -> str:
    """The catalogue of methods in Markdown, by family, made from their cards."""
    lines = [
        "# Methods",
        "",
        "Made from the methods' cards by `stillhouse methods --markdown`. Defaults are the papers' where the card does not say",
        "otherwise; hyper-parameters with a prior are searched when the spec does not name them.",
    ]
    for family, heading in _FAMILIES.items():
        members = [each for each in facts if each["family"] == family]
        if not members:
            continue
        lines += [
            "",
            f"## {heading}",
            "",
            "| method | paper | asks of the teacher | hyper-parameters (default; prior) | deviations |",
        ]
        lines.append("|---|---|---|---|---|")
        lines += [_methods_row(each) for each in members]
    return "\n".join(lines) + "\n"


def _methods_row(facts: dict[str, Any]) -> str:
    paper = facts["title"] + (f" ([{facts['arxiv']}](https://arxiv.org/abs/{facts['arxiv']}))" if facts["arxiv"] else "")
    settings = []
    for each in facts["hyperparameters"]:
        prior = "" if each["prior"] is None else "; " + json.dumps(each["prior"]).strip("{}").replace('"', "")
        settings.append(f"`{each['name']}` ({each['default']}{prior})")
    cells = (
        f"`{facts['name']}`",
        paper,
        ", ".join(facts["knowledge"]) or "nothing",
        ", ".join(settings) or "none",
        facts["deviations"],
    )
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"


def _show_method(facts: dict[str, Any]) -> None:
    print(f"{facts['name']}: {facts['title']}" + (f" (arXiv {facts['arxiv']})" if facts["arxiv"] else ""))
    print(f"asks of the teacher: {', '.join(facts['knowledge']) or 'nothing'}")
    for key in ("equations", "deviations", "suggested", "interactions"):
        if facts[key]:
            print(f"{key}: {facts[key]}")
    table = _table("hyper-parameter", "default", "prior", "")
    for each in facts["hyperparameters"]:
        prior = "" if each["prior"] is None else json.dumps(each["prior"]).strip("{}").replace('"', "")
        table.add_row(each["name"], str(each["default"]), prior, each["help"])
    _console().print(table)


def _model_facts(name: str, *, full: bool) -> dict[str, Any]:
    import torch

    from stillhouse.models.architecture import describe
    from stillhouse.models.registry import build_model, model_options, model_problems
    from stillhouse.models.size import measure_size

    problems = model_problems(name, {}, _CATALOGUE_CLASSES, _CATALOGUE_SHAPE)
    if problems:
        raise UsageError(problems[0])
    with torch.device("meta"):
        model = build_model(name, num_classes=_CATALOGUE_CLASSES, input_shape=_CATALOGUE_SHAPE)
    size = measure_size(model, _CATALOGUE_SHAPE)
    facts: dict[str, Any] = {
        "name": name,
        "parameters": size.parameters,
        "macs": size.macs,
        "size_bytes": size.size_bytes,
    }
    if full:
        architecture = describe(model, name=name, input_shape=_CATALOGUE_SHAPE)
        facts |= {
            "options": dict(model_options(name)),
            "stages": {layer: list(architecture.shapes[layer]) for layer in architecture.stages},
            "pooled": architecture.pooled,
            "layers": {layer: list(shape) for layer, shape in architecture.shapes.items()},
        }
    return facts


def _parse_bytes(text: str, option: str = "--keep") -> int:
    """The value of an option that is a size.

    Raises:
        UsageError: it is none.
    """
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise UsageError(f"{option} {error}") from error


def _table(*columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def _console() -> Console:
    """The terminal; a pipe or a file gets lines as long as they need to be."""
    return Console() if sys.stdout.isatty() else Console(width=_WIDE)


def _command_line() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


if __name__ == "__main__":
    main()
