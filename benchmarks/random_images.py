"""A data set of random images, for benchmarks on a machine without data: `random_images:load`."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]


def load(
    root: str | None = None, shape: Sequence[int] = (3, 32, 32), count: int = 5000, limit_test: int = 500
) -> tuple[Arrays, Arrays]:
    """`count` training and `limit_test` test images of ten classes, the same ones every time."""
    draw = np.random.default_rng(0)

    def split(number: int) -> Arrays:
        return draw.integers(0, 256, (number, *shape), dtype=np.uint8), np.arange(number, dtype=np.int64) % 10

    return split(count), split(limit_test)
