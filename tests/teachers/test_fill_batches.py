"""Claiming the batches of a view: only what is missing, each by one service, and none twice. Writers are replaced."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.teachers.fill_batches import FillBatches

BLOCKS = [np.array([0, 1]), np.array([2, 3]), np.array([4])]


class Writer:
    """A writer of 5 rows; `others` are the blocks that another service holds."""

    def __init__(self, missing: list[int], others: set[int] | None = None) -> None:
        self.missing = np.isin(np.arange(5), missing)
        self.others = others or set()
        self.claimed: set[int] = set()

    def claim(self, block: int, rows: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        if block in self.others:
            return None
        self.claimed.add(block)
        return np.asarray(self.missing[rows])

    def release(self, blocks: list[int]) -> None:
        self.claimed -= set(blocks)


def batches(writers: Mapping[str, Any]) -> FillBatches:
    return FillBatches(BLOCKS, writers)


def test_a_batch_has_the_rows_that_some_kind_misses_and_says_which() -> None:
    taken = batches({"logits": Writer([1, 4]), "feature": Writer([0, 1])})
    first, second = taken.take(), taken.take()
    assert first is not None
    assert second is not None
    assert (first.number, first.rows.tolist()) == (0, [0, 1])
    assert {name: missing.tolist() for name, missing in first.missing.items()} == {
        "logits": [False, True],
        "feature": [True, True],
    }
    assert (second.number, second.rows.tolist()) == (2, [4])
    assert taken.take() is None


def test_a_batch_that_another_service_holds_for_one_kind_is_left_for_all() -> None:
    free, held = Writer([0, 2]), Writer([0, 2], others={0})
    taken = batches({"logits": free, "feature": held})
    first = taken.take()
    assert first is not None
    assert first.number == 1
    assert free.claimed == {1}
    assert taken.take() is None
    assert taken.left, "the other service may die"
    held.others.clear()
    again = taken.take()
    assert again is not None
    assert again.number == 0
    assert not taken.left


def test_batches_that_were_read_ahead_are_taken_first_and_in_order() -> None:
    taken = batches({"logits": Writer([0, 2, 4])})
    ahead = taken.ahead()
    assert [next(ahead).tolist(), next(ahead).tolist()] == [[0], [2]]
    numbers = [batch.number for _ in range(3) if (batch := taken.take()) is not None]
    assert numbers == [0, 1, 2]


def test_finished_batches_are_released_by_every_writer() -> None:
    writers = {"logits": Writer([0]), "feature": Writer([0])}
    taken = batches(writers)
    batch = taken.take()
    assert batch is not None
    taken.finish([batch])
    assert [writer.claimed for writer in writers.values()] == [set(), set()]
