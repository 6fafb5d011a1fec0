"""The cost model behind `auto`: which way each kind of knowledge goes, and why."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from stillhouse.errors import UsageError


@dataclass(frozen=True)
class DeliveryChoice:
    """A way and the sentence that explains it."""

    mode: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one kind of knowledge costs, as it was measured.

    Attributes:
        name: the kind in the user's words.
        requested: `auto`, or the way that the spec forces.
        bytes_per_sample: in the store.
        read_seconds: in which a sample's knowledge is gathered from a map of the store, one thread; infinite where no file
            could be written there.
        compute_seconds: in which the teacher computes it for a sample, with all passes that it takes.
        num_views: in which it is read.
    """

    name: str
    requested: str
    bytes_per_sample: int
    read_seconds: float
    compute_seconds: float
    num_views: int


def choose_delivery(costs: Mapping[str, Cost], *, num_samples: int, room_bytes: int) -> dict[str, DeliveryChoice]:
    """The way of each kind of one teacher's knowledge.

    `cached` where reading a sample back is quicker than computing it and the views fit the room, else `inline`. The student's
    own step is the same either way, so its time decides nothing; pixels of a view are at hand in the trial, so sending them
    to a served teacher would cost the teacher's time and the way besides. Small kinds take their room first.

    Args:
        costs: by kind.
        room_bytes: what the sweep may still take of the store.

    Raises:
        UsageError: a kind that is forced to be cached does not fit.
    """
    choices: dict[str, DeliveryChoice] = {}
    # What is forced goes first, then by size.
    for kind, cost in sorted(costs.items(), key=lambda item: (item[1].requested == "auto", item[1].bytes_per_sample)):
        total = cost.bytes_per_sample * num_samples * cost.num_views
        read = f"{1e6 * cost.read_seconds:.2f} µs" if math.isfinite(cost.read_seconds) else "an unknown time"
        facts = f"{cost.bytes_per_sample:,} B per sample: {read} to read back, {1e6 * cost.compute_seconds:.2f} µs to compute"
        if cost.requested != "auto":
            if cost.requested == "cached" and total > room_bytes:
                raise UsageError(
                    f"knowledge.way is cached, but {cost.num_views} views of {cost.name} take {readable_bytes(total)} and "
                    f"there is room for {readable_bytes(room_bytes)}; raise knowledge.max_bytes, lower views.count, "
                    "or let way be auto"
                )
            choices[kind] = DeliveryChoice(cost.requested, f"specified in the spec; {facts}")
        elif total > room_bytes:
            choices[kind] = DeliveryChoice(
                "inline",
                f"{cost.num_views} views take {readable_bytes(total)}, more than the {readable_bytes(room_bytes)} of room; "
                "raise knowledge.max_bytes, free some disk, or lower views.count to have them cached",
            )
        elif not math.isfinite(cost.read_seconds):
            choices[kind] = DeliveryChoice(
                "inline", f"{facts}, since no file could be written to time it; see what room the disk has"
            )
        elif cost.read_seconds > cost.compute_seconds:
            choices[kind] = DeliveryChoice("inline", f"{facts}; recomputing is quicker")
        else:
            choices[kind] = DeliveryChoice("cached", f"{facts}; {cost.num_views} views take {readable_bytes(total)}")
        if choices[kind].mode == "cached":
            room_bytes -= total
    return {kind: choices[kind] for kind in costs}


def choose_calling_mode(*, requested: str, teacher_on_gpu: bool, trials_on_gpu: bool) -> DeliveryChoice:
    """Picks where the teacher runs for methods that call it on inputs of their own making, which exist in no view.

    Args:
        requested: `auto`, `served` or `inline`; the plan refuses `cached`.
        teacher_on_gpu: whether the shared actor has a GPU.
        trials_on_gpu: whether each trial has a share of one.
    """
    if requested != "auto":
        return DeliveryChoice(requested, "specified in the spec")
    if teacher_on_gpu and not trials_on_gpu:
        return DeliveryChoice(
            "served", "inputs of a method's own making exist in no view, and only the shared teacher has a GPU"
        )
    return DeliveryChoice(
        "inline",
        "inputs of a method's own making exist in no view, and trials are as fast as the shared teacher they would wait for",
    )


def readable_bytes(num_bytes: int) -> str:
    """In the unit that leaves it at least 1: `1.50 kB` of 1000 bytes each."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.2f} {unit}"
    return f"{num_bytes} B"
