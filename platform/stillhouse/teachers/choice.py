"""The cost model behind `auto`: which way each kind of knowledge goes, and why."""

from dataclasses import dataclass

READ_BYTES_PER_SECOND = 1e9
"""Gathering rows from a memory map, one thread: 9-15 M rows of 200 bytes per second were measured, so this is cautious."""

DISK_SHARE = 0.5
"""The largest part of the free disk that one sweep's sealed views may take."""


@dataclass(frozen=True)
class Choice:
    """A way and the sentence that explains it."""

    way: str
    reason: str


def choose_way(
    *,
    asked: str,
    seconds_per_sample: float,
    bytes_per_sample: int,
    num_samples: int,
    num_views: int,
    free_bytes: int,
) -> Choice:
    """Picks `cached` where reading a sample back is quicker than recomputing it and the views fit the disk, else `inline`.

    Args:
        asked: `auto`, or the way that the spec forces.
        seconds_per_sample: the teacher's measured forward time.
    """
    if asked != "auto":
        return Choice(asked, "asked for in the spec")
    total = bytes_per_sample * num_samples * num_views
    read = bytes_per_sample / READ_BYTES_PER_SECOND
    facts = f"{bytes_per_sample:,} B per sample: {1e6 * read:.2f} µs to read back, {1e6 * seconds_per_sample:.2f} µs to compute"
    if read > seconds_per_sample:
        return Choice("inline", f"{facts}; recomputing is quicker")
    if total > DISK_SHARE * free_bytes:
        return Choice(
            "inline", f"{num_views} views take {total / 1e9:.2f} GB, more than half of the {free_bytes / 1e9:.2f} GB free"
        )
    return Choice("cached", f"{facts}; {num_views} views take {total / 1e6:.1f} MB")
