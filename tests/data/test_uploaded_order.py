"""The order of an epoch on a device: one copy for all its parts."""

import pytest
import torch
from torch import Tensor

from stillhouse.data.uploaded_order import UploadedOrder

PARTS = [torch.tensor(rows) for rows in ([4, 0], [1, 5, 2], [3])]


def test_parts_in_their_turn_are_slices_of_one_copy_and_others_are_copied_alone() -> None:
    order = UploadedOrder(iter(PARTS), "cpu")
    taken = [order.take(PARTS[0]), order.take(torch.tensor([3])), order.take(PARTS[1]), order.take(PARTS[2])]
    assert [part.tolist() for part in taken] == [[4, 0], [3], [1, 5, 2], [3]]
    storages = [part.untyped_storage().data_ptr() for part in taken]
    assert storages[0] == storages[2] == storages[3] != storages[1]


def test_a_part_that_is_taken_twice_or_after_the_end_is_right_all_the_same() -> None:
    order = UploadedOrder(PARTS[:1], "cpu")
    assert [order.take(PARTS[0]).tolist() for _ in range(2)] == [[4, 0]] * 2
    assert UploadedOrder([], "cpu").take(PARTS[2]).tolist() == [3]


def test_only_one_copy_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[int] = []
    to = Tensor.to

    def counted(self: Tensor, *arguments: object, **options: object) -> Tensor:
        copies.append(len(self))
        return to(self, *arguments, **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(Tensor, "to", counted)
    order = UploadedOrder(PARTS, "cpu")
    for part in PARTS:
        order.take(part)
    assert copies == [6]
