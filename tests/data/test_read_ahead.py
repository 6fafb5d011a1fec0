"""Batches that are read in the background, in an announced order or against it."""

import threading

import pytest
import torch
from torch import Tensor

from stillhouse.data.read_ahead import ReadAhead, pinned_like

BATCHES = [torch.arange(first, first + 4) for first in range(0, 40, 4)]


def test_batches_come_in_their_order_and_the_next_ones_are_read_meanwhile() -> None:
    read: list[int] = []
    two_read = threading.Event()

    def slow(indices: Tensor) -> Tensor:
        read.append(int(indices[0]))
        if len(read) == 3:
            two_read.set()
        return indices * 2

    ahead = ReadAhead(slow)
    with ahead.over(BATCHES):
        assert torch.equal(ahead.take(BATCHES[0]), BATCHES[0] * 2)
        assert two_read.wait(30), "nothing was read before it was needed"
        for batch in BATCHES[1:]:
            assert torch.equal(ahead.take(batch), batch * 2)
    assert read == [int(batch[0]) for batch in BATCHES]


def test_other_batches_than_the_announced_ones_are_read_too() -> None:
    ahead = ReadAhead(lambda indices: indices + 1)
    assert torch.equal(ahead.take(BATCHES[3]), BATCHES[3] + 1)
    with ahead.over(BATCHES):
        assert torch.equal(ahead.take(BATCHES[5]), BATCHES[5] + 1)
        assert torch.equal(ahead.take(BATCHES[0]), BATCHES[0] + 1)
    assert torch.equal(ahead.take(BATCHES[1]), BATCHES[1] + 1)


def test_an_error_is_raised_where_its_batch_is_taken() -> None:
    def read(indices: Tensor) -> Tensor:
        if int(indices[0]) == 4:
            raise OSError("unreadable")
        return indices

    ahead = ReadAhead(read)
    with ahead.over(BATCHES):
        ahead.take(BATCHES[0])
        with pytest.raises(OSError, match="unreadable"):
            ahead.take(BATCHES[1])


def test_leaving_early_does_not_wait_for_what_nobody_needs() -> None:
    go_on = threading.Event()
    ahead = ReadAhead(lambda indices: (go_on.wait(60), indices)[1])
    with ahead.over(BATCHES):
        pass
    go_on.set()


def test_memory_is_pinned_for_a_gpu_alone() -> None:
    assert not pinned_like((2, 3), torch.uint8, torch.device("cpu")).is_pinned()
