"""The list of the views that a store has, read without torch, so that commands that only list them answer at once."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from stillhouse.durable import Damaged
from stillhouse.knowledge.layout import LAYOUT, MANIFEST, Layout


def stored_views(root: Path) -> Iterator[dict[str, Any]]:
    """The views below `root`: `key`, `bytes`, `sealed`, `last_used` (seconds since the epoch) and the identity of each."""
    for folder in sorted(each for each in root.iterdir() if each.is_dir()) if root.is_dir() else []:
        try:
            files = _files_in(folder)
            latest = max((file.st_mtime for file in files.values()), default=folder.stat().st_mtime)
        except (FileNotFoundError, NotADirectoryError):
            # Not a view, or one that is being removed.
            continue
        used = files.get(MANIFEST)
        entry: dict[str, Any] = {
            "key": folder.name,
            "bytes": sum(file.st_size for file in files.values()),
            "last_used": used.st_mtime if used else latest,
            "sealed": False,
            "identity": {},
        }
        for name in (LAYOUT, MANIFEST):
            with suppress(FileNotFoundError, Damaged):
                entry |= {"identity": dict(Layout.read(folder / name)[0].identity), "sealed": name == MANIFEST}
        yield entry


def _files_in(folder: Path) -> dict[str, os.stat_result]:
    """The files of a view, without those that vanish meanwhile because others fill it."""
    files = {}
    for file in folder.iterdir():
        if not file.name.startswith("."):
            with suppress(FileNotFoundError):
                files[file.name] = file.lstat()
    return files
