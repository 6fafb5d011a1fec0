"""The share of a GPU, and whose fault an error is. CUDA's calls are replaced, so that no GPU is needed."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch

from stillhouse.device import (
    CONTEXT_BYTES,
    DeviceClock,
    check_device,
    free_memory,
    is_lost,
    is_out_of_memory,
    keep_what_is_loaded,
    limit_memory,
    memory_limit,
)
from stillhouse.errors import InfrastructureError

GIB = 1 << 30


@pytest.fixture
def fractions(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The limits that are set in this process, on a GPU of 24 GiB."""
    limits: list[float] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: SimpleNamespace(total_memory=24 * GIB))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", limits.append)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _device: limits[-1] if limits else 1.0)
    return limits


@pytest.mark.parametrize("processes", [2, 4, 10])
def test_processes_that_share_a_gpu_fit_into_it_with_their_contexts(fractions: list[float], processes: int) -> None:
    limit_memory(1 / processes)
    allocated = fractions[0] * 24 * GIB
    assert processes * (allocated + CONTEXT_BYTES) <= 24 * GIB * (1 + 1e-9)
    assert allocated > 0


@pytest.mark.parametrize("share", [0.0, 1.0, 2.0])
def test_a_process_that_shares_no_gpu_has_no_limit(fractions: list[float], share: float) -> None:
    limit_memory(share)
    assert fractions == []


def test_a_share_that_holds_not_even_the_context_is_refused_with_both_sizes(fractions: list[float]) -> None:
    with pytest.raises(InfrastructureError, match=r"^0\.02 of a GPU with 24\.0 GiB is less than the 0\.6 GiB"):
        limit_memory(0.02)
    assert fractions == []


def test_the_limit_in_bytes_is_that_of_the_allocator(fractions: list[float]) -> None:
    assert memory_limit("cpu") is None
    assert memory_limit("cuda") == 24 * GIB
    limit_memory(0.5)
    assert memory_limit("cuda") == pytest.approx(12 * GIB - CONTEXT_BYTES)


def accelerator_error(code: int) -> torch.AcceleratorError:
    error = torch.AcceleratorError("CUDA error: words that differ between versions")
    error.error_code = code  # type: ignore[attr-defined]  # set by torch's own constructor in C++
    return error


@pytest.mark.parametrize(
    ("error", "no_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (accelerator_error(2), True),  # cudaErrorMemoryAllocation
        (accelerator_error(700), False),  # cudaErrorIllegalAddress
        (accelerator_error(214), False),  # cudaErrorECCUncorrectable
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (MemoryError(), False),  # of the machine, not of the device
    ],
)
def test_missing_memory_is_recognised_wherever_it_was_missing(error: BaseException, no_memory: bool) -> None:
    assert is_out_of_memory(error) is no_memory


def poisoned() -> None:
    raise accelerator_error(700)


def test_a_process_whose_gpu_answers_no_more_is_an_infrastructure_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    check_device()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    check_device()
    monkeypatch.setattr(torch.cuda, "synchronize", poisoned)
    assert is_lost()
    with pytest.raises(InfrastructureError, match="the GPU failed in this process"):
        check_device()


def test_nothing_is_asked_of_a_gpu_that_answers_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", poisoned)
    monkeypatch.setattr(torch.cuda, "empty_cache", poisoned)
    free_memory()


def test_memory_in_a_cycle_is_freed_before_the_cache_is_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    class Node:
        def __init__(self) -> None:
            self.itself = self

    freed: list[bool] = []
    node = weakref.ref(Node())
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(node() is None))
    gc.disable()
    try:
        free_memory()
    finally:
        gc.enable()
    assert freed == [True]


def test_a_clock_on_a_gpu_marks_the_queue_and_waits_only_when_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            calls.append("record")

        def synchronize(self) -> None:
            calls.append("wait")

        def elapsed_time(self, _end: "Event") -> float:
            return 250.0  # milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    clock = DeviceClock("cuda")
    clock.stop()
    assert calls == ["record", "record"]
    clock.wait()
    assert clock.seconds == 0.25
    assert calls == ["record", "record", "wait"]


def test_a_clock_on_a_cpu_measures_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 12.5])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    clock = DeviceClock("cpu")
    clock.stop()
    clock.wait()
    assert clock.seconds == 2.5


def test_what_is_loaded_is_passed_over_and_later_cycles_are_still_freed() -> None:
    class Node:
        itself: "Node"

    try:
        keep_what_is_loaded()
        assert gc.get_freeze_count() > 10_000
        later = Node()
        later.itself = later
        gone = weakref.ref(later)
        del later
        free_memory()
        assert gone() is None
    finally:
        gc.unfreeze()
