"""The GPU of this process: its share of the memory, and errors that are the GPU's rather than the trial's.

Every function does nothing, or answers for a machine without a GPU, where there is none.
"""

import gc
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

from stillhouse.errors import InfrastructureError

Float32Precision = Literal["ieee", "tf32"]
"""How a GPU multiplies float32 numbers: with their 23 bits of mantissa, or rounded to 10 bits first."""

CONTEXT_BYTES = 600 << 20
"""What a process takes of a GPU outside PyTorch's allocator: CUDA's context, kernels and the workspaces of its libraries.
PyTorch with cuBLAS and cuDNN takes about 0.5 GB; no limit of the allocator covers it."""
_CUDNN: Any = torch.backends.cudnn  # a module that torch replaces by an object
_CUDA_MEMORY_ALLOCATION = 2
"""`cudaErrorMemoryAllocation` (CUDA runtime API, `cudaError_t`)."""
_NO_MEMORY_STATUSES = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED")
"""The status names of cuBLAS and cuDNN when they find no memory for a workspace; the last one is that of `cublasCreate`.
PyTorch raises them as plain `RuntimeError`s, so that the name is all that identifies them."""


def laid_out(batch: torch.Tensor, memory_format: torch.memory_format) -> torch.Tensor:
    """The batch in the memory format; one that is no batch of images or maps [B, K, H, W] in PyTorch's own."""
    return batch.contiguous(memory_format=memory_format if batch.ndim == 4 else torch.contiguous_format)


def limit_memory(gpu_share: float) -> None:
    """Limits the allocator of this process to its share of the GPU, less what the process takes outside the allocator.

    Ray only counts shares: without a limit, one of several processes on a GPU can take all of its memory.

    Args:
        gpu_share: 0 and 1 or more set no limit.

    Raises:
        InfrastructureError: the share is smaller than what every process takes.
    """
    if not 0 < gpu_share < 1 or not torch.cuda.is_available():
        return
    total = torch.cuda.get_device_properties(0).total_memory
    share = gpu_share - CONTEXT_BYTES / total
    if share <= 0:
        raise InfrastructureError(
            f"{gpu_share:g} of a GPU with {total / 2**30:.1f} GiB is less than the {CONTEXT_BYTES / 2**30:.1f} GiB that a "
            "process takes for itself; raise trial_resources.gpu, or resources.gpu of the teacher"
        )
    torch.cuda.set_per_process_memory_fraction(share)


def memory_limit(device: str) -> int | None:
    """The bytes of the device's memory that this process may allocate; None for a CPU."""
    if torch.device(device).type != "cuda":
        return None
    return int(torch.cuda.get_device_properties(0).total_memory * torch.cuda.get_per_process_memory_fraction(0))


def free_memory() -> None:
    """Frees what is no longer referenced, in cycles too, and returns unused blocks of the GPU to other processes.

    Compiled code of earlier trials counts against a limit of the whole process, so it is dropped too.
    """
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    gc.collect()
    # A GPU that is lost raises at every call.
    if torch.cuda.is_initialized() and not is_lost():
        torch.cuda.empty_cache()


def keep_what_is_loaded() -> None:
    """Lets later calls of `free_memory` pass over everything that exists now, for a process that runs trials and nothing else.

    After its first trial a worker holds half a million objects of imported code, which live as long as the process; looking for
    garbage among them takes 0.3 s.
    """
    gc.collect()
    gc.freeze()


def synchronise(device: str) -> None:
    """Waits until the device has done all that was queued for it, so that a clock measures the work and not its start."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


class DeviceClock:
    """Measures what a device takes for the work between two points of its queue, without making the processor wait for it.

    On a CPU, where nothing is queued, it measures the wall clock.

    Args:
        device: whose current queue is measured, from now on.
    """

    def __init__(self, device: str) -> None:
        self._events: tuple[Any, Any] | None = None
        if torch.device(device).type == "cuda":
            self._events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            self._events[0].record()
        self._started = self._stopped = time.perf_counter()

    def stop(self) -> None:
        """Marks the end of what is measured."""
        self._stopped = time.perf_counter()
        if self._events is not None:
            self._events[1].record()

    def wait(self) -> None:
        """Returns when the device has reached the end."""
        if self._events is not None:
            self._events[1].synchronize()

    @property
    def seconds(self) -> float:
        """After `wait`."""
        if self._events is None:
            return self._stopped - self._started
        started, stopped = self._events
        return float(started.elapsed_time(stopped)) / 1000


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error is that the device has no memory left, wherever it was allocated: in PyTorch, CUDA or a library."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    if isinstance(error, torch.AcceleratorError):
        return getattr(error, "error_code", None) == _CUDA_MEMORY_ALLOCATION
    return isinstance(error, RuntimeError) and any(status in str(error) for status in _NO_MEMORY_STATUSES)


def is_lost() -> bool:
    """Whether the GPU answers no more in this process.

    After an illegal access, an uncorrectable memory error or a failed launch, CUDA returns that error from every later call
    of the process, which can only be ended. Other errors leave the device as it was.
    """
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def check_device() -> None:
    """Raises where an error was not the trial's but the GPU's.

    Raises:
        InfrastructureError: see `is_lost`.
    """
    if is_lost():
        raise InfrastructureError("the GPU failed in this process, which must end; if it repeats, check the node's GPU")


@contextmanager
def float32_precision(precision: Float32Precision) -> Iterator[None]:
    """Convolutions and matrix products of float32 numbers have this precision on a GPU; on a CPU nothing changes.

    PyTorch's default is TF32 for convolutions, whose relative error of 1e-3 depends on the kernel, and so on the batch's size
    and on the GPU.
    """
    settings: tuple[Any, ...] = (_CUDNN.conv, torch.backends.cuda.matmul)
    before = [setting.fp32_precision for setting in settings]
    for setting in settings:
        setting.fp32_precision = precision
    try:
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value
