"""The commands about data sets."""

import json
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from stillhouse.cli.app import OK, as_exit_code, data_app
from stillhouse.cli.options import Debug, Home, Json, parse_size
from stillhouse.cli.output import print_json
from stillhouse.errors import Interrupted
from stillhouse.text_table import log_line


@data_app.command(name="pack")
@as_exit_code
def data_pack(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="Contains one folder of images per class, or train/ and test/, which contain them, and val/ for validation.",
        ),
    ],
    to: Annotated[
        Path,
        typer.Option(
            "--to", metavar="DIR", help="The folder to write to; a spec names it as {name: pack, root: DIR, size: ...}."
        ),
    ],
    test_share: Annotated[
        float,
        typer.Option(
            min=0.001, max=0.999, help="The share of images in the test split, if FOLDER has no test split of its own."
        ),
    ] = 0.2,
    shard_size: Annotated[str, typer.Option(metavar="SIZE", help="The approximate size of a shard.")] = "128MB",
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Pack an image folder into memory-mapped shards. The same command again continues, and repairs damaged shards."""
    from stillhouse.data.packing import pack_folder

    try:
        packed = pack_folder(
            folder,
            to,
            test_share=test_share,
            shard_bytes=max(1, parse_size(shard_size, "--shard-size")),
            progress=_print_progress,
        )
    except KeyboardInterrupt as interrupt:
        raise Interrupted("interrupted; complete shards are stored, the same command continues") from interrupt
    for note in packed.notes:
        print(f"note: {note}", file=sys.stderr)
    if as_json:
        print_json({**vars(packed), "root": str(packed.root)})
    else:
        counts = ", ".join(f"{count:,} {split}" for split, count in packed.images.items())
        print(f"{counts} images of {packed.num_classes} classes in {packed.shards} shards, {packed.num_bytes:,} bytes")
        print(f"use it as: dataset: {{name: pack, root: {_yaml_text(str(packed.root))}, size: 224}}")
    return OK


@data_app.command(name="prune")
@as_exit_code
def data_prune(
    keep: Annotated[
        str, typer.Option("--keep", metavar="SIZE", help="How much to keep, for example 500MB or 20GB; 0 removes everything.")
    ] = "0",
    home: Home = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Remove decoded images of image folders from the home, least recently used first. A sweep decodes them again."""
    from stillhouse.data.decoded_cache import entries, prune
    from stillhouse.sweep.home.sweep_home import resolve_home

    cache = resolve_home(home) / "data"
    removed = prune(cache, parse_size(keep, "--keep"))
    document = {
        what: {"data_sets": len(found), "bytes": sum(entry["bytes"] for entry in found)}
        for what, found in (("removed", removed), ("kept", entries(cache)))
    }
    if as_json:
        print_json(document)
    else:
        print("; ".join(f"{what} {each['data_sets']} data sets, {each['bytes']:,} bytes" for what, each in document.items()))
    return OK


def _yaml_text(text: str) -> str:
    """`text` as a value in a YAML mapping: in quotes if it has characters that YAML reads differently."""
    return text if re.fullmatch(r"[\w./-]+", text) else json.dumps(text, ensure_ascii=False)


def _print_progress(done: int, total: int) -> None:
    """One line on stderr: rewritten in place on a terminal, a new one per shard otherwise."""
    if sys.stderr.isatty():
        print(f"\rpacked {done:,} of {total:,} images", end="\n" if done == total else "", file=sys.stderr, flush=True)
    else:
        print(log_line(f"packed {done:,} of {total:,} images"), file=sys.stderr)
