"""Several computations that take turns in one thread, each with random numbers and a stream of its own."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor

Job = Generator[None, None, Any]
Result = TypeVar("Result")


class _Turns:
    """One job: what remains of it, and PyTorch's random numbers as it left them."""

    def __init__(self, name: str, job: Job, future: Future[Any]) -> None:
        self.name = name
        self.job = job
        self.future = future
        self._random: Tensor | None = None
        self._random_on_gpu: Tensor | None = None

    def take(self, *, on_gpu: bool) -> bool:
        """Runs the next part; returns whether more remain."""
        if self._random is not None:
            torch.set_rng_state(self._random)
        if self._random_on_gpu is not None:
            torch.cuda.set_rng_state(self._random_on_gpu)
        try:
            next(self.job)
        except StopIteration as end:
            self.future.set_result(end.value)
            return False
        except BaseException as error:
            self.future.set_exception(error)
            return False
        self._random = torch.get_rng_state()
        self._random_on_gpu = torch.cuda.get_rng_state() if on_gpu else None
        return True


class Interleaver:
    """Runs jobs in one thread, a part of each in turn. No job sees that others exist: its result is that of the job alone.

    On a GPU, the jobs of each name use a stream of their own, so that small kernels of several jobs run at the same time.

    Args:
        device: where the jobs compute.
        alone: runs each job to its end before the next one.
        on_change: called with the names of the jobs that take turns whenever they change, before the next part runs.
    """

    def __init__(
        self, *, device: str = "cpu", alone: bool = False, on_change: Callable[[Sequence[str]], None] = lambda _names: None
    ) -> None:
        self._on_gpu = torch.device(device).type == "cuda"
        self._alone = alone
        self._on_change = on_change
        self._streams: dict[str, Any] = {}
        self._new: deque[_Turns] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="interleaver", daemon=True)
        self._thread.start()

    def submit(self, name: str, job: Job) -> Future[Any]:
        """Adds a job; the future has its result or its error. Jobs of one name must not overlap."""
        turns = _Turns(name, job, Future())
        with self._changed:
            if self._closed:
                raise RuntimeError("the interleaver is closed")
            self._new.append(turns)
            self._changed.notify()
        return turns.future

    def forget(self, name: str) -> None:
        """Drops the stream of a name whose jobs are done."""
        self._streams.pop(name, None)

    def close(self) -> None:
        """Ends the thread after the jobs that were submitted."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        running: deque[_Turns] = deque()
        known: list[str] = []
        while True:
            with self._changed:
                while not running and not self._new and not self._closed:
                    self._changed.wait()
                while self._new and not (self._alone and running):
                    running.append(self._new.popleft())
                    if self._alone:
                        break
            if not running:
                return
            if (names := sorted(turns.name for turns in running)) != known:
                self._on_change(known := names)
            turns = running.popleft()
            with self._stream_of(turns.name):
                if turns.take(on_gpu=self._on_gpu):
                    running.append(turns)
            if not running and not self._new:
                self._on_change(known := [])

    def _stream_of(self, name: str) -> AbstractContextManager[Any]:
        if not self._on_gpu:
            return nullcontext()
        if name not in self._streams:
            self._streams[name] = torch.cuda.Stream()
        stream: AbstractContextManager[Any] = torch.cuda.stream(self._streams[name])
        return stream


def run_out(parts: Generator[None, None, Result]) -> Result:
    """Runs all parts of a computation at once; returns its result."""
    while True:
        try:
            next(parts)
        except StopIteration as end:
            result: Result = end.value
            return result
