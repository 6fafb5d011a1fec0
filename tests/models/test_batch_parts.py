"""The parts in which a batch is computed: small on a CPU, smaller wherever memory runs out."""

import pytest
import torch
from torch import Tensor

from stillhouse.models.batch_parts import CPU_ROWS, BatchParts


@pytest.mark.parametrize("rows", [1, CPU_ROWS - 1, CPU_ROWS, CPU_ROWS + 1, 3 * CPU_ROWS, 3 * CPU_ROWS + 5])
def test_the_pieces_of_a_batch_are_the_batch_in_its_order(rows: int) -> None:
    images = torch.arange(float(rows))
    parts = BatchParts().apply(images, lambda piece: images[piece])
    assert torch.equal(torch.cat(parts), images)
    assert all(1 <= len(part) <= CPU_ROWS for part in parts)


def test_an_empty_batch_is_one_empty_piece() -> None:
    images = torch.empty(0, 1, 8, 8)
    (piece,) = BatchParts().apply(images, lambda piece: images[piece])
    assert piece.shape == (0, 1, 8, 8)


class Memory:
    """Room for `rows` samples, and the sizes that were tried."""

    def __init__(self, rows: int, error: Exception) -> None:
        self.rows = rows
        self.error = error
        self.tried: list[int] = []

    def compute(self, images: Tensor, piece: slice) -> Tensor:
        part = images[piece]
        self.tried.append(len(part))
        if len(part) > self.rows:
            raise self.error
        return part * 2


NO_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
)


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: type(error).__name__)
def test_a_batch_that_does_not_fit_is_halved_until_it_does_and_later_ones_are_not_tried_whole(error: Exception) -> None:
    memory, parts, images = Memory(20, error), BatchParts(128), torch.arange(128.0)
    for _ in range(2):
        assert torch.equal(torch.cat(parts.apply(images, lambda piece: memory.compute(images, piece))), images * 2)
    assert memory.tried == [128, 64, 32, *[16] * 8, *[16] * 8]


def test_memory_without_room_for_one_sample_is_an_error() -> None:
    memory, images = Memory(0, NO_MEMORY[0]), torch.arange(5.0)
    with pytest.raises(torch.OutOfMemoryError):
        BatchParts().apply(images, lambda piece: memory.compute(images, piece))
    assert memory.tried[-1] == 1


def test_an_error_of_the_model_is_not_tried_again() -> None:
    memory, images = Memory(1, RuntimeError("shapes differ")), torch.arange(8.0)
    with pytest.raises(RuntimeError, match="shapes differ"):
        BatchParts().apply(images, lambda piece: memory.compute(images, piece))
    assert memory.tried == [8]
