"""Samples of processor and memory while a trial trains."""

import time
from typing import Any

import pytest

from stillhouse.sweep.execution.system_metrics import SystemSampler


class Clock:
    """The time as the sampler reads it, moved by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall_s, self.process_s = 100.0, 7.0
        monkeypatch.setattr("stillhouse.sweep.execution.system_metrics.time.monotonic", lambda: self.wall_s)
        monkeypatch.setattr("stillhouse.sweep.execution.system_metrics.time.process_time", lambda: self.process_s)

    def spend(self, wall_s: float, process_s: float) -> None:
        self.wall_s += wall_s
        self.process_s += process_s


def test_a_short_trial_has_no_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    sampler = SystemSampler("cpu")
    for _ in range(9):
        clock.spend(1, 1)
        sampler.sample()
    assert sampler.samples == []


def test_a_sample_has_the_share_of_a_core_since_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    sampler = SystemSampler("cpu")
    for process_s in (5.0, 15.0):
        clock.spend(10, process_s)
        sampler.sample()
    assert [sample["process_cpu_percentage"] for sample in sampler.samples] == [50.0, 150.0]
    assert all(abs(sample["time_ms"] - 1000 * time.time()) < 60_000 for sample in sampler.samples)


def test_memory_is_that_of_the_machine_and_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    sampler = SystemSampler("cpu")
    clock.spend(10, 1)
    sampler.sample()
    (found,) = sampler.samples
    assert 0 < found["process_memory_megabytes"] < found["system_memory_usage_megabytes"]
    assert 0 < found["system_memory_usage_percentage"] <= 100
    # Missing where no tick of the clock passed.
    assert 0 <= found.get("cpu_utilization_percentage", 0) <= 100
    assert not [name for name in found if "gpu" in name]


def test_a_long_trial_has_fewer_than_two_hundred_samples_over_its_whole_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    moments = iter(range(10_000))
    monkeypatch.setattr("stillhouse.sweep.execution.system_metrics.time.time", lambda: float(next(moments)))
    sampler = SystemSampler("cpu")
    for _ in range(5000):
        clock.spend(10, 1)
        sampler.sample()
    assert 100 <= len(sampler.samples) <= 200
    times = [sample["time_ms"] for sample in sampler.samples]
    assert times == sorted(times)


def test_a_system_without_proc_tells_what_python_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: Any, **_options: Any) -> str:
        raise OSError("no such file")

    monkeypatch.setattr("stillhouse.sweep.execution.system_metrics.Path.read_text", refuse)
    clock = Clock(monkeypatch)
    sampler = SystemSampler("cpu")
    clock.spend(10, 1)
    sampler.sample()
    assert sampler.samples[0].keys() == {"time_ms", "process_cpu_percentage"}
