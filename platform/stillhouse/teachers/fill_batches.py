"""The batches of a view that are still to be filled, claimed one after another among several services."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stillhouse.knowledge.writer import ViewWriter


@dataclass(frozen=True, eq=False)
class FillBatch:
    """A batch that this service has claimed.

    Attributes:
        rows: [B], of which some kind of knowledge is missing.
        missing: [B], by kind: whether the row misses it.
    """

    number: int
    rows: NDArray[np.int64]
    missing: Mapping[str, NDArray[np.bool_]]


class FillBatches:
    """The batches of a view that are not durable yet, claimed one after another among several services."""

    def __init__(self, blocks: Sequence[NDArray[np.int64]], writers: Mapping[str, ViewWriter]) -> None:
        self._blocks = blocks
        self._writers = writers
        missing = np.logical_or.reduce([writer.missing for writer in writers.values()])
        self._unclaimed = [number for number, rows in enumerate(blocks) if missing[rows].any()]
        self._claimed: deque[FillBatch] = deque()

    @property
    def left(self) -> bool:
        """Whether some batch may still be missing."""
        return bool(self._claimed or self._unclaimed)

    def take(self) -> FillBatch | None:
        """The next batch; None while other services hold all that is left."""
        return self._claimed.popleft() if self._claimed else self._claim()

    def ahead(self) -> Iterator[NDArray[np.int64]]:
        """The rows of the batches that `take` will return, each claimed when it is read here."""
        while (batch := self._claim()) is not None:
            self._claimed.append(batch)
            yield batch.rows

    def finish(self, batches: Iterable[FillBatch]) -> None:
        """Releases the claims of batches that are durable and counted."""
        numbers = [batch.number for batch in batches]
        for writer in self._writers.values():
            writer.release(numbers)

    def _claim(self) -> FillBatch | None:
        for number in list(self._unclaimed):
            rows = self._blocks[number]
            missing: dict[str, NDArray[np.bool_]] = {}
            for name, writer in self._writers.items():
                mine = writer.claim(number, rows)
                if mine is None:
                    break
                missing[name] = mine
            if len(missing) < len(self._writers):
                for name in missing:
                    self._writers[name].release([number])
                continue
            self._unclaimed.remove(number)
            some = np.logical_or.reduce(list(missing.values()))
            if some.any():
                return FillBatch(number, rows[some], {name: mine[some] for name, mine in missing.items()})
        return None
