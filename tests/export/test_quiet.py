"""Latencies are measured again while the machine has other work, and the fastest of each counts."""

from collections.abc import Iterator, Mapping

import pytest
import torch

from stillhouse.export import quiet
from stillhouse.export.quiet import is_busy, measured_quietly
from stillhouse.models.size import Latency


@pytest.mark.parametrize(
    ("average", "cores", "threads", "busy"),
    [(1.0, 2, 2, False), (1.5, 2, 2, True), (1.9, 2, 1, False), (2.5, 2, 1, True), (0.1, 2, 2, False), (None, 2, 2, False)],
)
def test_a_machine_is_busy_if_others_leave_too_few_cores(average: float | None, cores: int, threads: int, busy: bool) -> None:
    assert is_busy(average, cores, threads) == busy


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The load averages that are read, first to last; the last one stays."""
    values = [9.0]
    monkeypatch.setattr(quiet, "_load_average", lambda: values.pop(0) if len(values) > 1 else values[0])
    monkeypatch.setattr(quiet, "_PAUSE_S", 0.0)
    monkeypatch.setattr("stillhouse.export.quiet.os.cpu_count", lambda: 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    return values


def rounds() -> Iterator[Mapping[str, Mapping[int, Latency]]]:
    for one, many in ((5.0, 50.0), (4.0, 70.0), (6.0, 60.0)):
        yield {"eager": {1: Latency(1, one, one), 64: Latency(64, many, many)}}


def test_on_a_busy_machine_everything_is_measured_three_times(loads: list[float]) -> None:
    measured = rounds()
    found, load = measured_quietly(lambda: next(measured))
    assert (found["eager"][1].p50_ms, found["eager"][64].p50_ms) == (4.0, 50.0)
    assert (load.average, load.cores, load.rounds, load.busy) == (9.0, 4, 3, True)


def test_the_first_quiet_round_is_the_last(loads: list[float]) -> None:
    loads[:] = [9.0, 1.0]
    measured = rounds()
    found, load = measured_quietly(lambda: next(measured))
    assert found["eager"][64].p50_ms == 50.0
    assert (load.average, load.rounds, load.busy) == (1.0, 2, False)


def test_on_a_quiet_machine_there_is_one_round(loads: list[float]) -> None:
    loads[:] = [2.0]
    measured = rounds()
    _, load = measured_quietly(lambda: next(measured))
    assert (load.rounds, load.busy) == (1, False)
