"""Temporary folders that the next run removes if their process was killed."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "stillhouse-"
_LOCK, _CONTENT = "in-use.lock", "files"
_UNLOCKED = ("tune", "code", "latency", "tracking", "model")
"""Kinds of folders that earlier releases made, without a lock."""
_UNUSED_S = 7 * 24 * 3600.0
"""A folder without a lock is removed when nothing in it changed for so long."""


@contextmanager
def temporary_folder(kind: str) -> Iterator[Path]:
    """An empty folder that only this user can read; it is removed when the block ends, or by a later call if the process dies.

    Args:
        kind: what it is for, a word in its name.

    Raises:
        OSError: it cannot be made.
    """
    remove_abandoned()
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{kind}-"))
    lock = None
    try:
        lock = _locked_file(folder)
        content = folder / _CONTENT
        content.mkdir()
        yield content
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def remove_abandoned() -> None:
    """Removes this user's temporary folders whose processes have ended; others and those in use remain."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        with suppress(OSError):
            if folder.is_symlink() or not folder.is_dir() or folder.stat().st_uid != os.getuid():
                continue
            if (folder / _LOCK).is_file():
                _remove_if_free(folder)
            elif _is_of_an_earlier_release(folder) and time.time() - _last_change(folder) > _UNUSED_S:
                shutil.rmtree(folder, ignore_errors=True)


def _locked_file(folder: Path) -> int:
    """The descriptor of a lock file that is locked before it has its name, so that no other process can lock it first."""
    beside = folder / f".{_LOCK}"
    descriptor = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with suppress(OSError):  # a file system without locks: the folder is removed at the end, as before
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        beside.rename(folder / _LOCK)
    return descriptor


def _remove_if_free(folder: Path) -> None:
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(descriptor)


def _is_of_an_earlier_release(folder: Path) -> bool:
    return folder.name.startswith(tuple(f"{_PREFIX}{kind}-" for kind in _UNLOCKED))


def _last_change(folder: Path) -> float:
    """When anything in the folder was last written, in seconds since the epoch."""
    return max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))
