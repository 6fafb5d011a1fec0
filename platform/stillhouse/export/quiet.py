"""Latencies under a known load: they are measured again while the machine has other work, and the fastest of each counts."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch

from stillhouse.models.size import Latency

_Form = TypeVar("_Form")
_ROUNDS, _PAUSE_S = 3, 3.0


@dataclass(frozen=True, kw_only=True)
class Load:
    """What else the machine did while latencies were measured.

    Attributes:
        average: processes that ran or waited, over the last minute before the measurement; this process is one of them. None
            where the system does not tell.
        rounds: how often everything was measured.
        busy: whether there was other work in every round, so that the latencies may still be too long.
    """

    average: float | None
    cores: int
    rounds: int
    busy: bool


def measured_quietly(
    measure: Callable[[], Mapping[_Form, Mapping[int, Latency]]],
) -> tuple[dict[_Form, dict[int, Latency]], Load]:
    """The latencies by form and batch size, and the load that they were measured under.

    On a busy machine everything is measured again, up to three times in all; of each form and batch size the round with the
    lowest median is returned, and the lowest load average is reported.
    """
    cores = os.cpu_count() or 1
    averages: list[float | None] = []
    best: dict[_Form, dict[int, Latency]] = {}
    busy = True
    while busy and len(averages) < _ROUNDS:
        if averages:
            time.sleep(_PAUSE_S)
        averages.append(_load_average())
        for form, by_size in measure().items():
            kept = best.setdefault(form, dict(by_size))
            kept |= {size: found for size, found in by_size.items() if found.p50_ms < kept[size].p50_ms}
        busy = is_busy(averages[-1], cores, torch.get_num_threads())
    known = [each for each in averages if each is not None]
    return best, Load(average=min(known, default=None), cores=cores, rounds=len(averages), busy=busy)


def is_busy(average: float | None, cores: int, threads: int) -> bool:
    """Whether other processes leave fewer than `threads` cores free; the export itself counts as one process until now."""
    return average is not None and max(0.0, average - 1) + threads > cores


def _load_average() -> float | None:
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None
