"""The folder that an export fills: all of it or nothing, and nobody else's files."""

import json
import os
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from stillhouse.durable import fsync_folder
from stillhouse.errors import InfrastructureError, UsageError

MARK = "export.json"


def check_target(folder: str | Path, files: Collection[str]) -> Path:
    """The absolute folder, if an export may have it: it does not exist, is empty, or holds an earlier export and nothing else.

    Raises:
        UsageError: it may not.
    """
    target = Path(folder).expanduser().resolve()
    if not target.exists():
        return target
    if not target.is_dir():
        raise UsageError(f"{target} is a file; name a folder for the export")
    if Path.cwd().is_relative_to(target):
        raise UsageError(f"{target} is the folder you work in; name one inside it, as in {target / 'student'}")
    try:
        held = sorted(path.name for path in target.iterdir())
    except OSError as error:
        raise UsageError(f"{target} can not be read: {error.strerror}; name another folder") from error
    foreign = [name for name in held if name not in files]
    if foreign or (held and not _is_export(target)):
        raise UsageError(
            f"{target} is not empty ({(foreign or held)[0]}) and no earlier export; name a folder that does not exist yet"
        )
    return target


@contextmanager
def filled(target: Path) -> Iterator[Path]:
    """A folder beside `target` to fill; at the end it takes its place, on an error it is gone.

    Raises:
        InfrastructureError: the disk is full, or the folder can not be written.
    """
    beside = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    try:
        beside.mkdir(parents=True)
        yield beside
        for path in beside.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        fsync_folder(beside)
        _swap(beside, target)
        fsync_folder(target.parent)
    except OSError as error:
        raise InfrastructureError(
            f"can not write the export {target}: {error.strerror or error}; free room or rights"
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _swap(new: Path, target: Path) -> None:
    """An empty folder is replaced in one step; an earlier export steps aside, whole until the new one stands there."""
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
