"""The cost model of `auto`: the delivery mode of each kind of knowledge, and the reason."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from stillhouse.errors import UsageError


@dataclass(frozen=True)
class DeliveryChoice:
    """A delivery mode (`cached`, `served` or `inline`) and the sentence that explains it."""

    mode: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The measured cost of one kind of knowledge.

    Attributes:
        name: the kind as users see it.
        requested: `auto`, or the delivery mode that the spec sets.
        bytes_per_sample: its size in the store.
        read_seconds: to gather one sample's knowledge from the memory-mapped store with one thread; infinite where no file
            could be written there.
        compute_seconds: for the teacher to compute it for one sample, with all passes that it takes.
        num_views: the number of views in which it is read.
    """

    name: str
    requested: str
    bytes_per_sample: int
    read_seconds: float
    compute_seconds: float
    num_views: int


def choose_delivery(costs: Mapping[str, Cost], *, num_samples: int, room_bytes: int) -> dict[str, DeliveryChoice]:
    """The delivery mode of each kind of one teacher's knowledge.

    `cached` where reading a sample is faster than computing it and the views fit into the quota, otherwise `inline`. The
    student's own step takes the same time in every mode, so it does not matter. `served` is never chosen: a trial has the
    view's pixels already, and sending them would add transfer to the teacher's time. Small kinds are placed first.

    Args:
        costs: by kind.
        room_bytes: how much the sweep may still store.

    Raises:
        UsageError: the spec sets a kind to be cached, and it does not fit.
    """
    choices: dict[str, DeliveryChoice] = {}
    # Modes that the spec sets come first, then small kinds.
    for kind, cost in sorted(costs.items(), key=lambda item: (item[1].requested == "auto", item[1].bytes_per_sample)):
        total = cost.bytes_per_sample * num_samples * cost.num_views
        read = f"{1e6 * cost.read_seconds:.2f} µs" if math.isfinite(cost.read_seconds) else "an unknown time"
        facts = f"{cost.bytes_per_sample:,} B per sample: {read} to read back, {1e6 * cost.compute_seconds:.2f} µs to compute"
        if cost.requested != "auto":
            if cost.requested == "cached" and total > room_bytes:
                raise UsageError(
                    f"knowledge.way is cached, but {cost.num_views} views of {cost.name} take {readable_bytes(total)} and "
                    f"{readable_bytes(room_bytes)} are free; raise knowledge.max_bytes, lower views.count, "
                    "or let way be auto"
                )
            choices[kind] = DeliveryChoice(cost.requested, f"specified in the spec; {facts}")
        elif total > room_bytes:
            choices[kind] = DeliveryChoice(
                "inline",
                f"{cost.num_views} views take {readable_bytes(total)}, more than the {readable_bytes(room_bytes)} free; "
                "raise knowledge.max_bytes, free some disk, or lower views.count to have them cached",
            )
        elif not math.isfinite(cost.read_seconds):
            choices[kind] = DeliveryChoice(
                "inline", f"{facts}, because no file could be written to measure reading; check the free disk space"
            )
        elif cost.read_seconds > cost.compute_seconds:
            choices[kind] = DeliveryChoice("inline", f"{facts}; recomputing is faster")
        else:
            choices[kind] = DeliveryChoice("cached", f"{facts}; {cost.num_views} views take {readable_bytes(total)}")
        if choices[kind].mode == "cached":
            room_bytes -= total
    return {kind: choices[kind] for kind in costs}


def choose_calling_mode(*, requested: str, teacher_on_gpu: bool, trials_on_gpu: bool) -> DeliveryChoice:
    """The delivery mode for methods that call the teacher on inputs that they generate, which exist in no view.

    Args:
        requested: `auto`, `served` or `inline`; the plan refuses `cached`.
        teacher_on_gpu: whether the shared actor has a GPU.
        trials_on_gpu: whether each trial has a share of one.
    """
    if requested != "auto":
        return DeliveryChoice(requested, "specified in the spec")
    if teacher_on_gpu and not trials_on_gpu:
        return DeliveryChoice(
            "served", "inputs that a method generates exist in no view, and only the shared teacher has a GPU"
        )
    return DeliveryChoice(
        "inline",
        "inputs that a method generates exist in no view, and trials are as fast as the shared teacher they would wait for",
    )


def readable_bytes(num_bytes: int) -> str:
    """A size as text: `1.50 kB` for 1500 bytes."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.2f} {unit}"
    return f"{num_bytes} B"
