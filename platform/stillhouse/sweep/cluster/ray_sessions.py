"""Folders of sessions: where a Ray that a sweep started has its logs and sockets, under the folder for temporary files.

A sweep that ends well, or at the request of the user, removes its own. One that failed, or whose driver was killed, leaves it,
since its logs may explain the failure; of these the newest few remain.
"""

import fcntl
import os
import shutil
from contextlib import suppress
from pathlib import Path

KEPT = 3
"""How many folders of ended sessions remain, of one user and one folder for temporary files."""
_LOCK = "stillhouse.lock"


class RaySession:
    """The session folder of a Ray that this process started; a lock on a file inside shows that it is in use.

    Args:
        folder: `.../ray/session_<date>_<process>`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock: int | None = None
        with suppress(OSError):
            self._lock = _take(folder, os.O_CREAT)
        remove_old_sessions(folder.parent)

    def close(self, *, keep: bool) -> None:
        """After the end of Ray.

        Args:
            keep: whether the folder remains until newer ones take its place.
        """
        if not keep:
            _remove(self._folder)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def remove_old_sessions(base: Path) -> None:
    """Removes session folders of sweeps that have ended, except the newest `KEPT`; those of other programs remain."""
    ended = []
    for folder in base.glob("session_*"):
        with suppress(OSError):
            if not folder.is_symlink() and folder.stat().st_uid == os.getuid() and (lock := _take(folder)) is not None:
                ended.append((folder.stat().st_mtime, folder))
                os.close(lock)
    for _, folder in sorted(ended, reverse=True)[KEPT:]:
        _remove(folder)


def _take(folder: Path, flags: int = 0) -> int | None:
    """The descriptor of the folder's lock; None while another process holds it.

    Raises:
        FileNotFoundError: no sweep started this session.
    """
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    latest = folder.with_name("session_latest")
    # Another session may replace the link meanwhile.
    with suppress(OSError):
        if latest.is_symlink() and not latest.exists():
            latest.unlink()
