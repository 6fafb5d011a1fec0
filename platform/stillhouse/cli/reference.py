"""The command that explains the keys of a spec, and the page and the JSON Schema made from the same facts."""

import dataclasses
import inspect
import json
import re
from collections.abc import Sequence
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillhouse.cli import completion
from stillhouse.cli.app import OK, app, as_exit_code
from stillhouse.cli.options import Debug, Json
from stillhouse.cli.output import make_console, make_table, print_json
from stillhouse.errors import UsageError

if TYPE_CHECKING:
    from stillhouse.spec.reference import Entry

SCHEMA_FILE = "sweep.schema.json"
_INTRODUCTION = f"""# The keys of a spec

This page lists every key of a spec; `stillhouse spec KEY` shows one key, or all keys of a section. The program prints the page
from its schema (`stillhouse spec --markdown`).
`NAME` stands for a name that you choose, `[]` for each entry of a list. A default is that of a new spec;
`stillhouse sweep SPEC --print-config` prints a spec with all its values.

`stillhouse spec --json-schema > {SCHEMA_FILE}` writes a JSON Schema. Editors with the YAML language server complete and check
keys in a spec whose first line names it:

```yaml
# yaml-language-server: $schema={SCHEMA_FILE}
```
"""


@app.command(name="spec")
@as_exit_code
def explain_spec(
    key: Annotated[
        str | None,
        typer.Argument(
            metavar="[KEY]",
            help="A key such as search.max_epochs, or a section such as search.",
            autocompletion=completion.spec_keys,
        ),
    ] = None,
    schema: Annotated[bool, typer.Option("--json-schema", help="Print the spec's JSON Schema, for editors.")] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print all keys as a page, as in docs/spec-reference.md.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Explain the keys of a spec: values, defaults, meaning."""
    from stillhouse.spec.reference import find, json_schema, reference

    if sum((schema, markdown, as_json)) > 1:
        raise UsageError("use one of --json-schema, --markdown and --json")
    if schema and key is not None:
        raise UsageError("--json-schema describes the whole spec; leave out KEY")
    entries = reference() if key is None else find(key)
    if schema:
        print(json.dumps(json_schema(), indent=1))
    elif markdown:
        print(page(entries), end="")
    elif as_json:
        print_json([dataclasses.asdict(entry) for entry in entries])
    elif len(entries) == 1:
        _print_entry(entries[0])
    else:
        _print_table(entries)
    return OK


def _print_entry(entry: "Entry") -> None:
    print(f"{entry.key}: {entry.values}")
    print(f"default: {_default(entry)}")
    if not entry.section:
        print(f"example: {entry.key.rpartition('.')[2].removesuffix('[]')}: {_flow(entry.example)}")
    print(entry.meaning)


def _print_table(entries: Sequence["Entry"]) -> None:
    table = make_table("key", "default", "meaning")
    for entry in entries:
        table.add_row(entry.key, _default(entry), _brief(entry.meaning))
    table.print(make_console())
    print("stillhouse spec KEY shows all of one key")


def _brief(meaning: str) -> str:
    """The beginning of a meaning, for a table."""
    return shorten(re.split(r"[;:.] |\.$", meaning)[0], width=80, placeholder=" …")


def _default(entry: "Entry") -> str:
    if entry.section:
        return "required" if entry.required else ""
    return "required" if entry.required else _flow(entry.default)


def _flow(value: Any) -> str:
    """A value as YAML writes it on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, str):
        return value or '""'
    return json.dumps(value)


def page(entries: Sequence["Entry"]) -> str:
    """The keys in Markdown, one table for each section, followed by view operations and data sets."""
    lines = [_INTRODUCTION]
    top = [entry for entry in entries if "." not in entry.key]
    lines += ["## The spec itself", "", *_table(top), ""]
    for section in top:
        inside = [entry for entry in entries if entry.key != section.key and entry.key.startswith(section.key)]
        inside = [entry for entry in inside if entry.key[len(section.key)] in ".["]
        if inside:
            lines += [f"## `{section.key}`", "", *_table(inside), ""]
    return "\n".join([*lines, *_operations(), "", *_data_sets()]) + "\n"


def _table(entries: Sequence["Entry"]) -> list[str]:
    rows = ["| key | values | default | example | meaning |", "|---|---|---|---|---|"]
    for entry in entries:
        example = "" if entry.section else f"`{_flow(entry.example)}`"
        default = _default(entry)
        shown = default if default in ("", "required") else f"`{default}`"
        cells = (f"`{entry.key}`", entry.values, shown, example, entry.meaning)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return rows


def _operations() -> list[str]:
    from stillhouse.data.augment import OPERATIONS

    rows = [
        "## Operations of `views.policy`",
        "",
        "| operation | what it does | options (default; rule) |",
        "|---|---|---|",
    ]
    for name, operation in OPERATIONS.items():
        options = [
            f"`{item.name}` ({'by the size of the images' if item.default is None else _flow(item.default)}; "
            f"must {item.metadata['must']})"
            for item in dataclasses.fields(operation)
        ]
        summary = " ".join(inspect.cleandoc(operation.__doc__ or "").partition("\n\n")[0].split())
        rows.append(f"| `{name}` | {summary} | {', '.join(options)} |")
    return rows


def _data_sets() -> list[str]:
    from stillhouse.data.catalogue import dataset_facts, dataset_names, dataset_options

    rows = [
        "## Data sets",
        "",
        "| `dataset.name` | classes | images | `dataset.options` |",
        "|---|---|---|---|",
    ]
    for name in dataset_names():
        facts = dataset_facts(name)
        shape = "x".join(map(str, facts.input_shape)) if facts.input_shape else "by its files, resized to `dataset.size`"
        options = ", ".join(f"`{option}`" for option in dataset_options(name))
        rows.append(f"| `{name}` | {facts.num_classes or 'by its files'} | {shape} | {options} |")
    return [
        *rows,
        "",
        "`limit` and `limit_test` take a part of the training and of the test split, `grey` reads grey images, `ground` is the",
        "colour behind transparent parts, `test_share` the share of a folder without `test/` that becomes the test split. An",
        "`image_folder` has `train/` and `test/`, perhaps `val/` beside them, with one folder for each class, or the class",
        "folders alone; [Your own data](your-own-data.md) describes it.",
    ]
