"""Files that survive a crash: written under a temporary name, fsynced, renamed, and verified when read.

A *checked* file begins with one line, `stillhouse1 <blake2b-128> <bytes>`, followed by the payload.
Reading it returns exactly the payload that was written, or raises `Damaged`.
"""

import errno
import hashlib
import itertools
import json
import os
import secrets
from pathlib import Path
from typing import Any

_MAGIC = "stillhouse1"


NO_FILE = (errno.ENOENT, errno.EISDIR, errno.ELOOP, errno.ENOTDIR)
"""Errors of a path that leads to nothing, or to something else than a file."""


class Damaged(ValueError):
    """A file that is truncated, damaged, or not written by Stillhouse."""


def canonical_json(value: Any) -> str:
    """The one JSON text of `value`: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def content_hash(value: Any, *, digits: int = 32) -> str:
    """Hex blake2b of the canonical JSON of `value`; equal content gives equal hashes on every machine."""
    return bytes_hash(json_bytes(canonical_json(value)), digits=digits)


def json_bytes(text: str) -> bytes:
    r"""JSON text as UTF-8, with a lone surrogate, which stands for a byte of a file name that is no UTF-8, as `\udce9`.

    JSON reads that escape as the same surrogate, so the name of the file survives.
    """
    return text.encode("utf-8", "backslashreplace")


def bytes_hash(payload: bytes | memoryview, *, digits: int = 32) -> str:
    """Hex blake2b of the bytes, with `digits` hex digits."""
    return hashlib.blake2b(payload, digest_size=digits // 2).hexdigest()


def fsync_folder(folder: Path) -> None:
    """Makes a rename inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Makes a folder and its parents; a file or a broken link in its place is set aside.

    Raises:
        OSError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        set_aside(folder)
        folder.mkdir(parents=True, exist_ok=True)


def move_into_place(beside: Path, path: Path) -> None:
    """Renames a complete file to its name; a folder that has this name is set aside."""
    if path.is_dir() and not path.is_symlink():
        set_aside(path)
    beside.replace(path)


def write_atomic(path: Path, payload: bytes, *, private: bool = False) -> None:
    """Writes `payload` so that `path` holds either its old content or all of the new one, also after a crash.

    A folder in its place is set aside, and so is a file in the place of its folder.

    Args:
        private: only the user may read the file, from its first byte on.

    Raises:
        OSError: the disk is full or the folder is not writable; `path` is unchanged.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    try:
        with open(temporary, "xb", opener=_open_private if private else None) as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        move_into_place(temporary, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            # An error of `write` or `fsync` does not name its file.
            error.filename = str(path)
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def read_file(path: Path) -> bytes:
    """The content of a file.

    Raises:
        Damaged: in its place is a folder, a link that leads to itself, or something else that is no file.
        FileNotFoundError: the file does not exist.
        OSError: it cannot be read, such as for its rights.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise Damaged(f"{path} is no regular file")
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in NO_FILE:
            raise Damaged(f"{path} is no file: {error.strerror}") from error
        raise


def set_aside(path: Path) -> Path | None:
    """Renames what is damaged, so that its place is free and nothing is lost. Returns its new path; None if there is none."""
    for number in itertools.count(1):
        aside = path.with_name(f"{path.name}.damaged-{number}")
        if os.path.lexists(aside):
            continue
        try:
            path.rename(aside)
        except FileNotFoundError:
            return None
        return aside
    raise AssertionError("the numbers do not end")


def write_checked(path: Path, payload: bytes) -> None:
    """Writes a line with the checksum and length of `payload`, then `payload`; `read_checked` verifies both."""
    header = f"{_MAGIC} {bytes_hash(payload)} {len(payload)}\n".encode()
    write_atomic(path, header + payload)


def read_checked(path: Path) -> bytes:
    """The payload of a file that `write_checked` wrote.

    Raises:
        Damaged: the file is not exactly what was written.
        FileNotFoundError: the file does not exist.
    """
    header, separator, payload = read_file(path).partition(b"\n")
    words = header.decode("ascii", "replace").split(" ")
    if not separator or len(words) != 3 or words[0] != _MAGIC:
        raise Damaged(f"{path} does not begin with a stillhouse header")
    if words[2] != str(len(payload)):
        raise Damaged(f"{path} has {len(payload)} bytes, expected {words[2]}")
    if words[1] != bytes_hash(payload):
        raise Damaged(f"{path} does not match its checksum")
    return payload


def write_json(path: Path, value: Any, *, private: bool = False) -> None:
    """Atomic, indented JSON for people and scripts to read; `private` as for `write_atomic`."""
    write_atomic(path, json_bytes(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"), private=private)


def read_json(path: Path) -> Any:
    """The JSON of a file.

    Raises:
        Damaged: the file is cut, or it is no JSON in UTF-8.
        FileNotFoundError: the file does not exist.
        OSError: it cannot be read, such as for its rights.
    """
    try:
        return json.loads(read_file(path))
    except (ValueError, RecursionError) as error:
        raise error if isinstance(error, Damaged) else Damaged(f"{path} is no JSON ({error})") from error
