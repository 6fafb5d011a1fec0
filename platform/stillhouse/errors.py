"""The errors a user may see, each with the exit code of the command that meets it."""

import difflib
import errno
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class StillhouseError(Exception):
    """An error with one sentence for the user; the command line prints it without a traceback."""

    exit_code = 1


class UsageError(StillhouseError):
    """Wrong usage, wrong input, an unreadable file."""

    exit_code = 2


class InfrastructureError(StillhouseError):
    """Something the sweep stands on is gone: the cluster, the disk, another driver's lock."""

    exit_code = 4


class Interrupted(StillhouseError):
    """The user stopped the sweep; the message says how to go on."""

    exit_code = 130


class TrialError(StillhouseError):
    """A trial that can not go on; its message becomes the reason in the ledger."""


_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_disk_full(error: BaseException) -> bool:
    """Whether the error, or what it tells of another process, is a disk without room: trying again does not help."""
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return True
    if not isinstance(error, OSError | InfrastructureError):
        return False
    text = str(error).lower()
    return "no room for" in text or any(os.strerror(number).lower() in text for number in _DISK_FULL)


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a spec.

    Attributes:
        key: the key as the user wrote it, dotted: `methods.kd.temperature`.
        message: rule, value and remedy: `must be > 0, got 0`.
    """

    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.key} {self.message}" if self.key else self.message


class SpecError(UsageError):
    """All problems of a spec at once."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: Sequence[Problem] = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The half-sentence that follows "no method 'kdd'": the nearest known word, then all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else ";"
    return f"{hint} available: {', '.join(known) or 'none'}"
