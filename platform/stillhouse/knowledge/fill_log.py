"""The log of fills: which stretch of which view was computed, by which teacher, for which sweeps."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from stillhouse.durable import set_aside


class _Fill(BaseModel, extra="allow"):
    """The shape of a line, as far as its readers rely on it."""

    teacher: str
    rows: float
    bytes: float
    seconds: float
    sweeps: list[str] = []


def fill_log(store: Path) -> Path:
    return store / "fills.jsonl"


def append_line(path: Path, line: str) -> None:
    """Appends one line durably; lines of several processes do not mix, and a torn line does not hide the next one.

    Raises:
        OSError: the disk is full.
    """
    content = f"\n{line}\n".encode()
    if os.path.lexists(path) and not path.is_file():
        set_aside(path)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        if os.write(descriptor, content) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def count_fills(store: Path, weights_hash: str, *, since_byte: int = 0, sweep: str | None = None) -> dict[str, float]:
    """`samples`, `bytes` and `seconds` of the teacher with these weights, by the log after byte `since_byte`.

    Args:
        sweep: counts only fills of views that this sweep requested; None counts all.
    """
    counts = {"samples": 0.0, "bytes": 0.0, "seconds": 0.0}
    for entry in _fills(store, weights_hash, since_byte):
        if sweep is not None and sweep not in entry.get("sweeps", (sweep,)):
            continue
        counts["samples"] += entry["rows"]
        counts["bytes"] += entry["bytes"]
        counts["seconds"] += entry["seconds"]
    return counts


def logged_stretches(store: Path, weights_hash: str) -> set[str]:
    """The names of this teacher's stretches in the log."""
    return {str(entry.get("stretch")) for entry in _fills(store, weights_hash)}


def _fills(store: Path, weights_hash: str, since_byte: int = 0) -> Iterator[dict[str, Any]]:
    """The complete lines of the log about one teacher."""
    if not fill_log(store).is_file():
        return
    with contextlib.suppress(FileNotFoundError), fill_log(store).open("rb") as file:
        file.seek(since_byte)
        for line in file:
            with contextlib.suppress(ValidationError):
                entry = _Fill.model_validate_json(line)
                if entry.teacher == weights_hash:
                    yield entry.model_dump(exclude_unset=True)
