"""The memory of this machine, and whether a data set fits into it."""

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from stillhouse.errors import UsageError

_CGROUP = Path("/sys/fs/cgroup")
_GIB = 1 << 30


def memory_bytes() -> int:
    """How much memory this process can use: that of the machine, or a lower limit of its control group (containers)."""
    return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *_limits()])


def check_memory(shape: Sequence[int], *, what: str, copies: int = 1) -> None:
    """Checks before an array uint8 of `shape` is made that `copies` of it fit into memory.

    Args:
        what: the images in messages.

    Raises:
        UsageError: they do not.
    """
    num_images, channels, height, width = shape
    check_room(
        copies * math.prod(shape),
        samples=f"{num_images:,} images of {channels}x{height}x{width}",
        what=what,
        remedy="lower dataset.size, set dataset.options.limit, or pack an image folder (stillhouse data pack)",
    )


def check_room(needed: int, *, samples: str, what: str, remedy: str) -> None:
    """Checks before `needed` bytes are taken that they fit into memory.

    Args:
        samples: how many samples of which size they are for, in messages.
        what: whose samples these are.
        remedy: what to change.

    Raises:
        UsageError: they do not.
    """
    room = memory_bytes()
    if needed > room:
        raise UsageError(f"{samples} need {_gib(needed)} GiB of memory ({what}), and there are {_gib(room)} GiB; {remedy}")


def _limits() -> Iterator[int]:
    """The limits of this process's control group, in either version of the kernel's interface."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            text = (_CGROUP / name).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdecimal():
            yield int(text)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes // _GIB:,}" if num_bytes >= 100 * _GIB else f"{num_bytes / _GIB:.1f}"
