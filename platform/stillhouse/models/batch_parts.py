"""How many samples a forward pass computes at once."""

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from stillhouse.device import free_memory, is_out_of_memory

Result = TypeVar("Result")

CPU_ROWS = 64
"""Larger batches do not fit into the processor's caches, and memory for activations of 32 MB and more is allocated anew at
every layer. On an EPYC with 32 MB of L3, one thread, a sample of a batch of 512 took a ResNet-32 2.1 times as long as one of
64, a LeNet 0.93 times."""


class BatchParts:
    """The parts of batches that passes without gradients compute one by one; smaller ones once memory ran out.

    Later batches are divided as the one that did not fit, so that memory runs out once and not for every batch.

    Args:
        rows: the largest part; by default `CPU_ROWS` on a CPU and the whole batch on a GPU.
    """

    def __init__(self, rows: int | None = None) -> None:
        self._rows = rows

    def apply(self, images: Tensor, compute: Callable[[slice], Result]) -> list[Result]:
        """The results of `compute` for each part of a batch [B, ...], in order.

        Raises:
            RuntimeError: memory ran out for a single sample.
        """
        while True:
            rows = min(max(1, len(images)), self._rows or (CPU_ROWS if images.device.type == "cpu" else len(images)) or 1)
            try:
                return [compute(slice(first, first + rows)) for first in range(0, max(1, len(images)), rows)]
            except RuntimeError as error:
                if not is_out_of_memory(error) or rows == 1:
                    raise
            # Not in the handler, where the error's frames hold the activations.
            self._rows = rows // 2
            free_memory()
