"""Writing in the background: in order, bounded, and never after something that failed."""

import threading

import pytest

from stillhouse.teachers import background_writer
from stillhouse.teachers.background_writer import BackgroundWriter


def test_jobs_run_in_order_while_the_caller_goes_on_and_are_done_when_the_context_ends() -> None:
    done: list[int] = []
    may_start = threading.Event()
    with BackgroundWriter() as background:
        background.submit(lambda: done.extend([0] * may_start.wait(20)))
        background.submit(lambda: done.append(1))
        assert done == [], "the caller has not waited"
        may_start.set()
    assert done == [0, 1]


def test_no_more_jobs_wait_than_may() -> None:
    may_start, submitted = threading.Event(), threading.Semaphore(0)

    def hold() -> None:
        may_start.wait(20)

    def compute() -> None:
        with BackgroundWriter() as background:
            for _ in range(background_writer._JOBS_AHEAD + 3):
                background.submit(hold)
                submitted.release()

    thread = threading.Thread(target=compute)
    thread.start()
    # One is at work, as many as may wait do, and the next one is not taken.
    for _ in range(background_writer._JOBS_AHEAD + 1):
        assert submitted.acquire(timeout=20)
    assert not submitted.acquire(timeout=0.2)
    may_start.set()
    thread.join(20)
    assert submitted.acquire(timeout=1)


def test_after_an_error_nothing_is_written_and_the_caller_learns_of_it() -> None:
    done: list[int] = []

    def fail() -> None:
        raise OSError("no space")

    def write() -> None:
        with BackgroundWriter() as background:
            background.submit(fail)
            background.submit(lambda: done.append(1))

    with pytest.raises(OSError, match="no space"):
        write()
    assert done == []


def test_the_callers_own_error_stays_the_error_and_what_was_submitted_before_is_done() -> None:
    done: list[int] = []

    def write() -> None:
        with BackgroundWriter() as background:
            background.submit(lambda: done.append(1))
            raise KeyError("the caller's")

    with pytest.raises(KeyError):
        write()
    assert done == [1]
