"""The errors that users see, each with the exit code of the command that raises it."""

import difflib
import errno
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

_SURROGATE = re.compile("[\ud800-\udfff]")


class StillhouseError(Exception):
    """An error whose message is written for the user; the command line prints it without a traceback."""

    exit_code = 1

    def __str__(self) -> str:
        # A message may name a file whose name is no UTF-8.
        return printable(super().__str__())


class UsageError(StillhouseError):
    """Wrong usage, wrong input, an unreadable file."""

    exit_code = 2


class UnknownNameError(UsageError):
    """There is no data set, model, method, ... of a name; the message begins with what there is not."""


class InfrastructureError(StillhouseError):
    """Something that the sweep needs is not available: the cluster, the disk, a lock that another driver holds."""

    exit_code = 4


class DiskFullError(InfrastructureError):
    """A disk is full or its quota is used up: a retry does not help until space is freed. The message names the folder."""


class Interrupted(StillhouseError):
    """The user stopped the sweep; the message names the command that continues it."""

    exit_code = 130


class TrialError(StillhouseError):
    """A trial that cannot continue; the message becomes the reason in the ledger."""


class UserCodeExit(Exception):
    """User-defined code raised `SystemExit` or another exception that `except Exception` does not catch; the text names it."""


DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)


def is_disk_full(error: BaseException) -> bool:
    """Whether a full disk caused the error, in this process or in another one: a retry does not help."""
    return any(_is_full(each) for each in _causes(error))


def as_disk_full(error: BaseException, folder: Path | str) -> DiskFullError | None:
    """The error as a `DiskFullError` whose message names the file or the folder; None when no full disk caused it.

    Args:
        folder: named in the message when the error does not know its file.
    """
    causes = list(_causes(error))
    full = next((each for each in causes if _is_full(each)), None)
    if full is None:
        return None
    if isinstance(causes[0], InfrastructureError):
        return causes[0] if isinstance(causes[0], DiskFullError) else DiskFullError(str(causes[0]))
    if isinstance(full, OSError):
        return DiskFullError(f"{full.strerror or first_line(full)} ({full.filename or folder})")
    return DiskFullError(str(full))


def as_stillhouse_error(error: StillhouseError | OSError) -> StillhouseError:
    """The error itself, or an `OSError` as an `InfrastructureError` that names its file."""
    if isinstance(error, StillhouseError):
        return error
    where = "" if error.filename is None else f" ({error.filename})"
    return InfrastructureError(f"{error.strerror or error}{where}")


def _is_full(error: BaseException) -> bool:
    return isinstance(error, DiskFullError) or (isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes, outermost first. Ray wraps an error of another process and stores it as `cause`."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        remote = getattr(error, "cause", None)
        if isinstance(remote, BaseException):
            error = remote
            continue
        yield error
        error = error.__cause__


MAX_MESSAGE = 1_000
MAX_PROBLEMS = 50
"""The longest sentence of an error that is printed, in characters, and how many problems of a spec are."""


def shorten(text: str, limit: int = 80) -> str:
    """One line of text with at most `limit` characters; the middle of a longer one is left out."""
    text = " ".join(text.splitlines())
    return text if len(text) <= limit else f"{text[: limit // 2]}…{text[-(limit // 2) :]}"


def first_line(error: BaseException | None, otherwise: str = "") -> str:
    """The first line of the error's text that is not empty; `otherwise`, or else the name of its type, if it has none."""
    return next((line.strip() for line in str(error or "").splitlines() if line.strip()), otherwise or type(error).__name__)


def last_line(text: str, otherwise: str) -> str:
    """The last line of a text, such as a traceback, that is not empty; `otherwise` if it has none."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), otherwise)


def describe_error(error: BaseException) -> str:
    """The type and the first line of an error that a user's code or a library raised: `ValueError: no such axis`."""
    if isinstance(error, UserCodeExit):
        return str(error)
    name = type(error).__name__
    line = first_line(error)
    return name if line == name else f"{name}: {line}"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a spec, or with the arguments of a function.

    Attributes:
        key: the key as the user wrote it, dotted: `methods.kd.temperature`; "" for a problem of the whole.
        rule: what must hold, or what is wrong, in words that follow the key: `must be > 0`.
        value: what was given instead, as text: `0`; None when the rule needs none.
        remedy: what to do: `did you mean 'kd'? available: kd, scratch`.
    """

    key: str
    rule: str
    value: str | None = None
    remedy: str = ""

    @property
    def message(self) -> str:
        """Rule, value and remedy in one sentence: `must be > 0, got 0`."""
        got = "" if self.value is None else f", got {self.value}"
        return f"{self.rule}{got}" + (f"; {self.remedy}" if self.remedy else "")

    def __str__(self) -> str:
        return f"{self.key} {self.message}" if self.key else self.message

    def under(self, section: str) -> "Problem":
        """The same problem of a part of `section`: `width` becomes `students[0].width`."""
        return replace(self, key=f"{section}.{self.key}" if self.key else section)

    @classmethod
    def caused_by(cls, error: UsageError, key: str) -> "Problem":
        """The problem that using the value of `key` raised `error`."""
        if isinstance(error, UnknownNameError):
            return cls(key, f"names {error}")
        return cls(key, f"cannot be used: {error}")


class SpecError(UsageError):
    """All problems of a spec at once."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: Sequence[Problem] = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type["SpecError"], tuple[Sequence[Problem]]]:
        # An error of another process is unpickled with the constructor's argument, not with the message.
        return type(self), (self.problems,)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """What follows "no method 'kdd'": the nearest known word, then all of them."""
    return f"; {suggestion(word, known)}"


def suggestion(word: str, known: Iterable[str]) -> str:
    """The nearest known word, then all of them: `did you mean 'kd'? available: kd, scratch`."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"{hint}available: {', '.join(known) or 'none'}"


def name_all(items: Sequence[str], *, one: str, many: str, limit: int = 20) -> str:
    """One message about all of `items`: `a.png {one}`, or `12 {many}:` and the first `limit` of them, one on each line."""
    if len(items) == 1:
        return f"{items[0]} {one}"
    more = [f"and {len(items) - limit} more"] if len(items) > limit else []
    return "\n  ".join([f"{len(items)} {many}:", *items[:limit], *more])


def printable(text: str) -> str:
    r"""`text` with the bytes of a file name that are no UTF-8 as `\xe9`, so that it can be printed and stored.

    Python reads such a byte as a lone surrogate (PEP 383), which no text file may contain.
    """
    return _SURROGATE.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"
