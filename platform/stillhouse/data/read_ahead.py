"""Reads the coming batches of an announced order in the background, one thread and a few batches ahead."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch
from torch import Tensor

Read = TypeVar("Read")

_BATCHES_AHEAD = 2


class ReadAhead(Generic[Read]):
    """Batches that are read in the background while others are computed.

    Args:
        read: reads the samples `indices` [B], int64 on the CPU; called by one thread at a time within `over`.
    """

    def __init__(self, read: Callable[[Tensor], Read]) -> None:
        self._read = read
        self._coming: Iterator[Tensor] = iter(())
        self._started: deque[tuple[Tensor, Future[Read]]] = deque()
        self._thread: ThreadPoolExecutor | None = None

    @contextmanager
    def over(self, batches: Iterable[Tensor]) -> Iterator[None]:
        """A context in which `take` will be called for these indices, in order."""
        self._coming = iter(batches)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="read ahead")
        self._fill()
        try:
            yield
        finally:
            # A thread that waits for knowledge is not waited for.
            self._thread.shutdown(wait=False, cancel_futures=True)
            self._coming, self._thread = iter(()), None
            self._started.clear()

    def take(self, indices: Tensor) -> Read:
        """The batch; read at once if it is not the next of the announced ones."""
        if self._thread is None:
            return self._read(indices)
        if not self._started or not torch.equal(self._started[0][0], indices):
            # In the thread too, since it may be reading.
            return self._thread.submit(self._read, indices).result()
        _, batch = self._started.popleft()
        self._fill()
        return batch.result()

    def _fill(self) -> None:
        assert self._thread is not None
        while len(self._started) < _BATCHES_AHEAD and (indices := next(self._coming, None)) is not None:
            self._started.append((indices, self._thread.submit(self._read, indices)))


def pinned_like(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised tensor on the CPU, in memory from which a GPU copies without the processor.

    PyTorch uses such memory again only after the copies from it are done.
    """
    return torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")


def to_host(value: Tensor) -> Tensor:
    """The tensor in the machine's memory; from a GPU a copy that is only queued, so that it must be waited for."""
    if value.device.type == "cpu":
        return value
    return pinned_like(tuple(value.shape), value.dtype, value.device).copy_(value, non_blocking=True)
