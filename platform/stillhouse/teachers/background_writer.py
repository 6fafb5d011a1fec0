"""Writes what was computed in a thread, while the caller computes what comes next."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

_JOBS_AHEAD = 2
"""Jobs that may wait for the thread. Each may hold a computed batch, and calls of trials wait for what a GPU has queued."""


class BackgroundWriter:
    """A context in which jobs run one after the other in a thread; leaving it waits for them.

    After an error no later job runs, so that nothing counts as written that follows something that is not.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._waiting: deque[Future[None]] = deque()
        self._failed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, type_: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._thread.shutdown()
        if error is None:
            self.wait()

    def submit(self, job: Callable[[], None]) -> None:
        """Adds a job; waits while too many do.

        Raises:
            Exception: that of an earlier job.
        """
        while len(self._waiting) > _JOBS_AHEAD:
            self._waiting.popleft().result()
        self._waiting.append(self._thread.submit(self._do, job))

    def wait(self) -> None:
        """Returns when all jobs are done.

        Raises:
            Exception: the first one of a job.
        """
        while self._waiting:
            self._waiting.popleft().result()

    def _do(self, job: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            job()
        except BaseException:
            self._failed = True
            raise
