"""How a process on any node finds a home: the driver's path, the mark in it, and the keeper's name."""

import os
import re
import secrets
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from stillhouse.durable import Damaged, read_file, write_atomic
from stillhouse.errors import InfrastructureError

SCRATCH_VARIABLE = "STILLHOUSE_SCRATCH"
COMMON_VARIABLE = "STILLHOUSE_COMMON_HOME"
"""0 on nodes that must not use the home's folder even where they can access it."""
_MARK = ".mark"


@dataclass(frozen=True, kw_only=True)
class HomeAddress:
    """How a process on any node finds a home.

    Attributes:
        path: the absolute folder, as the driver sees it.
        mark: the content of the folder's mark file; a folder at this path with another mark is another home.
        keeper: the name of the actor that nodes without the folder call; None where every process can access the folder.
        max_bytes: the most that copies of sealed views may take on each node without the folder; None: a share of its disk.
    """

    path: str
    mark: str = ""
    keeper: str | None = None
    max_bytes: int | None = None

    @property
    def is_common(self) -> bool:
        """Whether this process can access the folder."""
        if self.keeper is None:
            return True
        if common_home_is_off():
            return False
        with suppress(OSError):
            return (Path(self.path) / _MARK).read_bytes() == self.mark.encode() and os.access(self.path, os.W_OK)
        return False


def shared_home(home: Path, max_bytes: int | None = None) -> HomeAddress:
    """The address of this home for processes on any node; gives the home its mark if it has none.

    Args:
        max_bytes: as for `HomeAddress`.

    Raises:
        InfrastructureError: the home cannot be written.
    """
    try:
        with suppress(FileNotFoundError, Damaged):
            if re.fullmatch("[0-9a-f]{16}", mark := read_file(home / _MARK).decode("ascii", "replace")):
                return HomeAddress(path=str(home), mark=mark, keeper=f"keeper-{mark}", max_bytes=max_bytes)
        # Raises for a file of this name, which belongs to the user and is not set aside.
        home.mkdir(parents=True, exist_ok=True)
        mark = secrets.token_hex(8)
        write_atomic(home / _MARK, mark.encode())
    except OSError as error:
        raise InfrastructureError(f"cannot write into {home}: {error.strerror or error}; choose another with --home") from error
    return HomeAddress(path=str(home), mark=mark, keeper=f"keeper-{mark}", max_bytes=max_bytes)


def common_home_is_off() -> bool:
    """Whether this node is configured not to use the home's folder."""
    return os.environ.get(COMMON_VARIABLE) == "0"


def scratch_base() -> Path:
    """The folder in which this node makes its scratch folders."""
    return Path(os.environ.get(SCRATCH_VARIABLE) or tempfile.gettempdir())


def scratch_folder(mark: str) -> Path:
    """This node's scratch folder for the home with this mark, created if necessary, which only this user can read.

    Raises:
        InfrastructureError: it cannot be created.
    """
    folder = scratch_base() / f"stillhouse-{os.getuid()}-{mark}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            raise InfrastructureError(f"{folder} belongs to another user; set {SCRATCH_VARIABLE} to a folder that is yours")
    except OSError as error:
        raise InfrastructureError(
            f"cannot make the scratch folder {folder}: {error.strerror}; set {SCRATCH_VARIABLE} on this node"
        ) from error
    return folder
