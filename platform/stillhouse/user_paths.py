"""Paths that a user names: every one can be shown, and a file is a regular one of bounded size.

A pipe, a device, a loop of links or a huge file must not hold a command up.
"""

import os
import stat
from pathlib import Path

from stillhouse.errors import UsageError, printable

_SHOWN = 300
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def expand_user(path: str | Path, what: str) -> Path:
    """The path with `~` replaced by the folder of the user.

    Args:
        what: the path in an error message, such as `the spec`.

    Raises:
        UsageError: there is no such user, or the path has a zero byte.
    """
    try:
        if "\0" in str(path):
            raise UsageError(f"{what} {show_path(path)} cannot be used: it contains a zero byte")
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{what} {show_path(path)} cannot be used: no such user; write the path in full") from error


def resolve_path(path: str | Path, what: str) -> Path:
    """The absolute path without links and without `~`. It need not exist.

    Raises:
        UsageError: there is no such user, or its links lead back to themselves.
    """
    try:
        return expand_user(path, what).resolve()
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "its symbolic links lead back to themselves"
        raise UsageError(f"{what} {show_path(path)} cannot be used: {reason}; choose another path") from error


def is_folder(path: str | Path) -> bool:
    """Whether there is a folder of this path, in which `~` is the folder of the user."""
    try:
        return expand_user(path, "the folder").is_dir()
    except (UsageError, OSError):
        return False


def is_utf8(path: str | Path) -> bool:
    """Whether the bytes of a path are UTF-8, so that it can be written into files and databases."""
    try:
        os.fsencode(path).decode()
    except UnicodeError:
        return False
    return True


def show_path(path: str | Path) -> str:
    """A path for a message: bytes that are no UTF-8 and control characters escaped, the middle of a very long one left out."""
    text = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in printable(str(path)))
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}…{text[-_SHOWN // 2 :]}"


def read_regular(path: Path, what: str, max_bytes: int) -> bytes:
    """The content of a file.

    Raises:
        UsageError: it cannot be read, is no regular file, or has more than `max_bytes`.
    """
    check_regular(path, what, max_bytes)
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise _unreadable(path, what, error) from error
    if len(content) > max_bytes:
        raise _too_large(path, what, len(content), max_bytes)
    return content


def check_regular(path: Path, what: str, max_bytes: int) -> int:
    """The size of a file in bytes. The file is not opened, since opening a pipe waits for its other end.

    Raises:
        UsageError: it is not there, is no regular file, or has more than `max_bytes`.
    """
    try:
        facts = path.stat()
    except (OSError, ValueError) as error:
        raise _unreadable(path, what, error) from error
    if not stat.S_ISREG(facts.st_mode):
        kind = _KINDS.get(stat.S_IFMT(facts.st_mode), "no regular file")
        raise UsageError(f"{what} {show_path(path)} cannot be read: it is {kind}")
    if facts.st_size > max_bytes:
        raise _too_large(path, what, facts.st_size, max_bytes)
    return facts.st_size


def _unreadable(path: Path, what: str, error: Exception) -> UsageError:
    return UsageError(f"{what} {show_path(path)} cannot be read: {getattr(error, 'strerror', None) or error}")


def _too_large(path: Path, what: str, size: int, max_bytes: int) -> UsageError:
    return UsageError(f"{what} {show_path(path)} has {size:,} bytes; at most {max_bytes:,} are read")
