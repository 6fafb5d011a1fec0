"""The folder of an export: written whole or not at all, and never over other files."""

import json
import os
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from stillhouse.durable import fsync_folder
from stillhouse.errors import InfrastructureError, UsageError
from stillhouse.user_paths import resolve_path

MARK = "export.json"


def check_target(folder: str | Path, files: Collection[str]) -> Path:
    """The absolute path of a folder that does not exist, is empty, or contains an earlier export and nothing else.

    Raises:
        UsageError: it is another folder, or a file.
    """
    target = resolve_path(folder, "the folder")
    if not target.exists():
        return target
    if not target.is_dir():
        raise UsageError(f"{target} is a file; name a folder for the export")
    if Path.cwd().is_relative_to(target):
        raise UsageError(f"{target} is the folder you work in; name one inside it, as in {target / 'student'}")
    try:
        held = sorted(path.name for path in target.iterdir())
    except OSError as error:
        raise UsageError(f"{target} cannot be read: {error.strerror}; name another folder") from error
    foreign = [name for name in held if name not in {*files, *_files_of_export(target)}]
    if foreign or (held and not _is_export(target)):
        raise UsageError(
            f"{target} is not empty ({(foreign or held)[0]}) and is no earlier export; name a folder that does not exist yet"
        )
    return target


@contextmanager
def filled(target: Path) -> Iterator[Path]:
    """A temporary folder next to `target` to fill. At the end it replaces `target`; after an error it is removed.

    Raises:
        InfrastructureError: the disk is full, or the folder cannot be written.
    """
    partial = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    try:
        partial.mkdir(parents=True)
        yield partial
        for path in partial.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        fsync_folder(partial)
        _swap(partial, target)
        fsync_folder(target.parent)
    except OSError as error:
        raise InfrastructureError(
            f"cannot write the export {target}: {error.strerror or error}; make room, or check the permissions"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _swap(new: Path, target: Path) -> None:
    """Replaces an empty folder in one step; an earlier export is moved aside and stays whole until then."""
    if not target.exists() or not any(target.iterdir()):
        new.rename(target)
        return
    old = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.old")
    target.rename(old)
    try:
        new.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old)


def _is_export(folder: Path) -> bool:
    try:
        document = json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and "stillhouse_export" in document


def _files_of_export(folder: Path) -> list[str]:
    """What the mark of an earlier export lists, which may be more than the next one writes; nothing without a mark."""
    try:
        return list(json.loads((folder / MARK).read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return []
