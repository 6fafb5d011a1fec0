"""The parts in which a batch is computed on a CPU."""

import pytest
import torch

from stillhouse.models.batch_parts import CPU_ROWS, batch_parts


@pytest.mark.parametrize("rows", [1, CPU_ROWS - 1, CPU_ROWS, CPU_ROWS + 1, 3 * CPU_ROWS, 3 * CPU_ROWS + 5])
def test_the_pieces_of_a_batch_are_the_batch_in_its_order(rows: int) -> None:
    images = torch.arange(float(rows))
    parts = [images[piece] for piece in batch_parts(images)]
    assert torch.equal(torch.cat(parts), images)
    assert all(1 <= len(part) <= CPU_ROWS for part in parts)


def test_an_empty_batch_is_one_empty_piece() -> None:
    (piece,) = batch_parts(torch.empty(0, 1, 8, 8))
    assert torch.empty(0, 1, 8, 8)[piece].shape == (0, 1, 8, 8)
