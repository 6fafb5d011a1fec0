"""What a trial's machine was doing while it trained: processor and memory, sampled at the ends of epochs."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch

INTERVAL_S = 10.0
"""The shortest time between two samples, as MLflow's own. Trials that end earlier have none."""
_MOST = 200
_MEGABYTE = 1e6


class SystemSampler:
    """Samples of this process and its machine. Beyond 200 of them every second one is dropped, and the interval doubles.

    Attributes:
        samples: each with `time_ms` (Unix time) and the numbers that this system tells.
    """

    def __init__(self, device: str) -> None:
        self.samples: list[dict[str, float]] = []
        self._device = torch.device(device)
        self._interval_s = INTERVAL_S
        self._before = self._counters()

    def sample(self) -> None:
        """Adds a sample, if the last one is old enough."""
        now = self._counters()
        if now["wall_s"] - self._before["wall_s"] < self._interval_s:
            return
        self.samples.append({"time_ms": float(int(time.time() * 1000)), **dict(self._numbers(self._before, now))})
        self._before = now
        if len(self.samples) > _MOST:
            self.samples = self.samples[1::2]
            self._interval_s *= 2

    def _numbers(self, before: dict[str, float], now: dict[str, float]) -> Iterator[tuple[str, float]]:
        spent_s = now["wall_s"] - before["wall_s"]
        yield "process_cpu_percentage", 100 * (now["process_s"] - before["process_s"]) / spent_s
        if "busy" in now and "all" in before and now["all"] > before["all"]:
            yield "cpu_utilization_percentage", 100 * (now["busy"] - before["busy"]) / (now["all"] - before["all"])
        yield from _memory()
        if self._device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self._device)
            yield "gpu_memory_usage_megabytes", (total - free) / _MEGABYTE
            yield "process_gpu_memory_megabytes", torch.cuda.memory_reserved(self._device) / _MEGABYTE

    @staticmethod
    def _counters() -> dict[str, float]:
        counters = {"wall_s": time.monotonic(), "process_s": time.process_time()}
        try:
            # user, nice, system, idle, waiting for disks, ...; the processes of guests are in the first two.
            ticks = [int(each) for each in Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]]
        except (OSError, ValueError):
            return counters
        return {**counters, "all": float(sum(ticks)), "busy": float(sum(ticks) - ticks[3] - ticks[4])}


def _memory() -> Iterator[tuple[str, float]]:
    """Nothing on systems without /proc."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        known = {name: 1024 * int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)}
        total, available = known["MemTotal"], known["MemAvailable"]
    except (OSError, ValueError, KeyError):
        return
    yield "system_memory_usage_megabytes", (total - available) / _MEGABYTE
    yield "system_memory_usage_percentage", 100 * (total - available) / total
    yield "process_memory_megabytes", pages * os.sysconf("SC_PAGE_SIZE") / _MEGABYTE
