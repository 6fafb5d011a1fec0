"""Calls of many trials on one model: queued within bounds, served fairly, computed together where that pays.

Every call is a pure function of its arrays and treats the samples of a batch independently, so calls may be merged into one
batch, split, and repeated.
"""

import itertools
import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from numpy.typing import NDArray

from stillhouse.user_code import user_code

Parameters = ParamSpec("Parameters")
Answer = TypeVar("Answer")

MAX_WAITING = 48
"""Calls that may wait at once; each holds a thread of the actor, which has more."""
MAX_QUEUED_BYTES = 1 << 30
CACHE_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class QueueFull:
    """The answer to a call that found no room in the queue; the caller should repeat it after a pause.

    Attributes:
        waiting: how many calls wait.
    """

    waiting: int


class QueueFullError(Exception):
    """The queue is full: as many calls or bytes wait as may."""

    def __init__(self, waiting: int) -> None:
        super().__init__(f"{waiting} calls are waiting")
        self.waiting = waiting


def unless_full(
    answer: Callable[Parameters, Answer], *arguments: Parameters.args, **options: Parameters.kwargs
) -> "Answer | QueueFull":
    """The answer, or `QueueFull` where `QueueFullError` is raised, which another process could not catch as such."""
    try:
        return answer(*arguments, **options)
    except QueueFullError as error:
        return QueueFull(error.waiting)


class FairLock:
    """A lock that is granted in the order of the requests: a loop that takes it again and again blocks no other thread."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._held = False
        self._queue: deque[threading.Event] = deque()

    def __enter__(self) -> None:
        with self._guard:
            if not self._held:
                self._held = True
                return
            turn = threading.Event()
            self._queue.append(turn)
        turn.wait()

    def __exit__(self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        with self._guard:
            if self._queue:
                self._queue.popleft().set()
            else:
                self._held = False


@dataclass(eq=False)
class Call:
    """One call of one trial.

    Attributes:
        caller: identifies the caller; callers share the teacher equally, by rows.
        task: what is computed; calls with equal tasks can be merged.
        arrays: [B, ...] each, of the same B.
        token: names the forward pass that a gradient belongs to.
    """

    caller: str
    task: Hashable
    arrays: Sequence[NDArray[Any]]
    token: str | None = None
    done: threading.Event = field(default_factory=threading.Event)
    answer: Sequence[NDArray[Any]] = ()
    error: Exception | None = None
    turn: tuple[float, int] = (0.0, 0)

    @property
    def rows(self) -> int:
        return len(self.arrays[0])

    @property
    def num_bytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)


class CallQueue:
    """Waiting calls and the one thread that computes them.

    The next call is one of the caller with the fewest rows so far (start-time fair queueing); other calls with the same task
    join it up to `merged_rows`.

    Args:
        compute: returns the answers of calls that share a task, in order.
        merged_rows: the largest merged batch; 0 computes every call alone.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[Call]], Sequence[Sequence[NDArray[Any]]]],
        *,
        merged_rows: int = 0,
        max_waiting: int = MAX_WAITING,
        max_bytes: int = MAX_QUEUED_BYTES,
        on_idle: Callable[[], None] = lambda: None,
    ) -> None:
        self._compute = compute
        self._merged_rows = merged_rows
        self._max_waiting = max_waiting
        self._max_bytes = max_bytes
        self._on_idle = on_idle
        self._changed = threading.Condition()
        self._calls: list[Call] = []
        self._waiting = 0
        self._bytes = 0
        self._now = 0.0
        self._served_rows: dict[str, float] = {}
        self._order = itertools.count()
        self._worker: threading.Thread | None = None
        self.batches = 0
        self.calls_merged = 0

    @property
    def num_waiting(self) -> int:
        """How many calls were not answered yet."""
        return self._waiting

    def submit(self, call: Call) -> Sequence[NDArray[Any]]:
        """The answer of the call, after its turn came.

        Raises:
            QueueFullError: as many calls or bytes wait as may.
        """
        with self._changed:
            if self._waiting >= self._max_waiting or (self._waiting and self._bytes + call.num_bytes > self._max_bytes):
                raise QueueFullError(self._waiting)
            begin = max(self._now, self._served_rows.get(call.caller, 0.0))
            self._served_rows[call.caller] = begin + call.rows
            call.turn = (begin, next(self._order))
            self._calls.append(call)
            self._waiting += 1
            self._bytes += call.num_bytes
            if self._worker is None or not self._worker.is_alive():
                self._worker = threading.Thread(target=self._work, name="server", daemon=True)
                self._worker.start()
            self._changed.notify()
        call.done.wait()
        with self._changed:
            self._waiting -= 1
            self._bytes -= call.num_bytes
        if call.error is not None:
            raise call.error
        return call.answer

    def take(self, *, timeout_s: float | None = None) -> list[Call]:
        """The calls of the next batch; empty when none arrives within `timeout_s`."""
        with self._changed:
            if not self._changed.wait_for(lambda: bool(self._calls), timeout_s):
                return []
            first, *others = sorted(self._calls, key=lambda call: call.turn)
            batch, rows = [first], first.rows
            for call in others:
                if call.task == first.task and rows + call.rows <= self._merged_rows:
                    batch.append(call)
                    rows += call.rows
            self._calls = [call for call in self._calls if call not in batch]
            self._now = first.turn[0]
            self._served_rows = {caller: rows for caller, rows in self._served_rows.items() if rows > self._now}
            return batch

    def _work(self) -> None:
        while True:
            batch = self.take(timeout_s=CACHE_TIMEOUT_S)
            if not batch:
                self._on_idle()
                continue
            self._answer(batch)

    def _answer(self, batch: Sequence[Call]) -> None:
        try:
            with user_code():
                answers = self._compute(batch)
        except Exception as error:  # belongs to the caller, in whose thread it is raised
            if len(batch) > 1:
                # A faulty call of one trial must not fail those of others.
                for call in batch:
                    self._answer([call])
                return
            batch[0].error = error
        else:
            self.batches += 1
            self.calls_merged += len(batch) if len(batch) > 1 else 0
            for call, answer in zip(batch, answers, strict=True):
                call.answer = answer
        for call in batch:
            call.done.set()
