"""The queue of calls: fair turns, merging, bounds, and errors that stay with their call."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stillhouse.teachers.call_queue import Call, CallQueue, FairLock, QueueFull, QueueFullError, unless_full


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_what_one_call_breaks_does_not_fail_those_it_is_merged_with() -> None:
    def compute(calls: Sequence[Call]) -> Sequence[Sequence[NDArray[Any]]]:
        if any(call.caller == "bad" for call in calls):
            raise ValueError("bad")
        return [[call.arrays[0] + 1] for call in calls]

    queue = CallQueue(compute, merged_rows=100)
    batch = [Call(caller, "task", [np.zeros(2)]) for caller in ("good", "bad", "fine")]
    queue._answer(batch)
    assert [call.error is None for call in batch] == [True, False, True]
    assert batch[2].answer[0].tolist() == [1, 1]


def waiting_calls(queue: CallQueue, *calls: tuple[str, str, int]) -> None:
    """Queues (caller, task, rows) in order, with no thread to compute them."""
    queue._worker = threading.current_thread()
    for place, (caller, task, rows) in enumerate(calls, start=1):
        threading.Thread(target=queue.submit, args=(Call(caller, task, [np.zeros(rows)]),), daemon=True).start()
        wait_until(lambda place=place: len(queue._calls) == place)  # type: ignore[misc]


def test_a_caller_with_many_or_large_calls_gets_no_more_rows_than_the_others() -> None:
    queue = CallQueue(lambda calls: [], merged_rows=0)
    waiting_calls(queue, *[("greedy", "task", 100 + n) for n in range(4)], ("modest", "task", 10), ("modest", "task", 20))
    order = [queue.take(timeout_s=0)[0] for _ in range(6)]
    assert [(call.caller, call.rows) for call in order] == [
        ("greedy", 100),
        ("modest", 10),
        ("modest", 20),
        ("greedy", 101),
        ("greedy", 102),
        ("greedy", 103),
    ]


def test_only_equal_tasks_are_merged_and_only_up_to_the_row_limit() -> None:
    queue = CallQueue(lambda calls: [], merged_rows=10)
    waiting_calls(
        queue, ("a", "forward", 4), ("b", "backward", 3), ("c", "forward", 5), ("d", "forward", 2), ("e", "forward", 1)
    )
    batches = [[call.caller for call in queue.take(timeout_s=0)] for _ in range(3)]
    assert batches == [["a", "c", "e"], ["b"], ["d"]]
    assert queue.take(timeout_s=0) == []


@pytest.mark.parametrize("limit", [{"max_waiting": 2}, {"max_bytes": 20}], ids=["calls", "bytes"])
def test_a_call_beyond_the_bound_is_turned_away_and_holds_nothing(limit: dict[str, Any]) -> None:
    queue = CallQueue(lambda calls: [[call.arrays[0]] for call in calls], **limit)
    waiting_calls(queue, ("a", "task", 1), ("b", "task", 1))
    refused = Call("c", "task", [np.zeros(1)])
    with pytest.raises(QueueFullError):
        queue.submit(refused)
    assert unless_full(queue.submit, refused) == QueueFull(2)
    assert len(queue._calls) == 2
    queue._worker = None
    threading.Thread(target=queue._work, daemon=True).start()
    wait_until(lambda: queue._waiting == 0)
    assert queue._bytes == 0
    assert queue.submit(Call("c", "task", [np.zeros(100)]))[0].shape == (100,), "a call larger than the bound goes alone"


def test_a_lock_is_granted_in_the_order_of_the_requests() -> None:
    lock, order, threads = FairLock(), [], []
    with lock:
        for number in range(5):

            def take(number: int = number) -> None:
                with lock:
                    order.append(number)

            threads.append(threading.Thread(target=take))
            threads[-1].start()
            wait_until(lambda number=number: len(lock._queue) == number + 1)  # type: ignore[misc]
    for thread in threads:
        thread.join(10)
    assert order == list(range(5))
