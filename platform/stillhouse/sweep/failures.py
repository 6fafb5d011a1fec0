"""What ends a sweep too early, as one sentence for the user: an interrupt, a full disk, a folder that was removed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stillhouse.errors import DiskFullError, InfrastructureError, Interrupted, StillhouseError, as_disk_full
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.sweep.run_context import resume_command


def interrupted_message(sweep_home: SweepHome) -> str:
    """What an interrupted sweep prints last."""
    return f"interrupted; {stored_message(sweep_home)}"


def stored_message(sweep_home: SweepHome) -> str:
    """What follows the reason why a sweep ended early."""
    return f"finished trials are stored. Continue with: {resume_command(sweep_home)}"


@contextmanager
def user_errors(sweep_home: SweepHome) -> Iterator[None]:
    """Turns an interruption and errors of the disk into errors that name the remedy.

    Raises:
        Interrupted: by the user.
        DiskFullError: a disk is full.
        InfrastructureError: a file cannot be read or written.
    """
    try:
        yield
    except (KeyboardInterrupt, Interrupted) as interrupt:
        raise Interrupted(interrupted_message(sweep_home) if sweep_home.folder.exists() else "interrupted") from interrupt
    except (OSError, InfrastructureError) as error:
        if (full := as_disk_full(error, sweep_home.folder)) is not None:
            raise DiskFullError(
                f"{full}; finished trials are stored. Free some space (`stillhouse teachers prune` helps) and continue with: "
                f"{resume_command(sweep_home)}"
            ) from error
        if isinstance(error, InfrastructureError):
            raise
        # Not every error of a write knows its file.
        raise InfrastructureError(f"{error.strerror or error} ({error.filename or sweep_home.folder})") from error


@contextmanager
def folder_errors(sweep_home: SweepHome) -> Iterator[None]:
    """Reports a folder that was removed, or that cannot be written, as the reason of whatever fails because of it.

    Raises:
        InfrastructureError: the sweep's folder was removed, or cannot be written.
    """
    try:
        yield
    except (OSError, StillhouseError, KeyboardInterrupt) as error:
        check_folder(sweep_home, error)
        raise


def check_folder(sweep_home: SweepHome, cause: BaseException | None = None) -> None:
    """Refuses to go on without the sweep's folder.

    Raises:
        InfrastructureError: the folder was removed since the sweep started, or cannot be written.
    """
    if (problem := folder_problem(sweep_home)) is not None:
        raise InfrastructureError(problem) from cause


def check_teacher_folders(home: Path) -> None:
    """Refuses to start teachers in a home where their weights or their sealed views cannot be stored.

    Raises:
        InfrastructureError: one of the folders cannot be written.
    """
    for part, what in (("teachers", "weights"), ("knowledge", "sealed views")):
        folder = home / part
        # A file in its place is set aside later.
        if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
            raise InfrastructureError(
                f"the folder {folder} cannot be written, and the teachers' {what} are stored there; make it writable, or "
                "choose another home with --home"
            )


def folder_problem(sweep_home: SweepHome) -> str | None:
    """Why no trial of the sweep can store its result; None if it can, as far as this process can tell."""
    if sweep_home.is_removed:
        return (
            f"the folder {sweep_home.folder} was removed while the sweep ran, and its finished trials with it; "
            f"teachers and their knowledge are still there. Start the sweep again with its YAML file"
        )
    if (folder := sweep_home.unwritable_folder()) is not None:
        return (
            f"the folder {folder} cannot be written; finished trials are stored. Make it writable and continue with: "
            f"{resume_command(sweep_home)}"
        )
    return None
