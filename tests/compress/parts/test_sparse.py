"""The stored form of sparse weights, by hand, and masks."""

import pytest
import torch
from torch import nn

from stillhouse.compress.parts.sparse import best, decode, encode, is_smaller, masked_layers, num_kept, register_masks


def test_a_bit_for_each_weight_and_the_values_in_their_order() -> None:
    weight = torch.tensor([[0.0, 3.0, 0.0], [0.0, 0.0, -5.0], [0.0, 0.0, 7.0], [0.5, 0.0, 0.0]])
    bits, values = encode(weight, kept=4)
    # Places 1, 5, 8 and 9: 2^1 + 2^5, then 2^0 + 2^1.
    assert bits.tolist() == [34, 3]
    assert bits.dtype == torch.uint8
    assert values.tolist() == [3.0, -5.0, 7.0, 0.5]
    assert torch.equal(decode(bits, values, weight.shape), weight)


def test_a_kept_weight_that_is_zero_is_stored_too_so_that_the_length_is_known_before() -> None:
    weight = torch.tensor([0.0, 1.0, 0.0, 0.0])
    bits, values = encode(weight, kept=2)
    assert len(values) == 2
    assert torch.equal(decode(bits, values, weight.shape), weight)


def test_without_storage_the_shapes_are_the_same() -> None:
    bits, values = encode(torch.empty(5, 5, device="meta"), kept=7)
    assert (bits.shape, values.shape) == ((4,), (7,))


@pytest.mark.parametrize(("count", "kept", "smaller"), [(32, 30, True), (32, 31, False), (32, 32, False), (8, 7, True)])
def test_sparse_weights_are_smaller_if_the_bits_cost_less_than_the_zeros(count: int, kept: int, *, smaller: bool) -> None:
    # count / 8 bytes of bits against 4 bytes for each zero
    assert is_smaller(count, kept, 4) is smaller


@pytest.mark.parametrize(("count", "ratio", "kept"), [(10, 0.5, 5), (10, 0.0, 10), (3, 0.5, 2), (1, 0.9, 1)])
def test_at_most_the_share_is_removed(count: int, ratio: float, kept: int) -> None:
    assert num_kept(count, ratio) == kept


def test_the_best_of_each_row() -> None:
    mask = best(torch.tensor([[3.0, 1.0, 2.0, 0.0], [0.0, 0.0, 0.0, 1.0]]), 2)
    assert mask[0].tolist() == [True, False, True, False]
    assert mask.sum(1).tolist() == [2, 2]
    assert bool(mask[1, 3])


def test_a_mask_is_part_of_the_layers_state() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    register_masks(model, {"1": None})
    ((layer, mask),) = masked_layers(model)
    assert layer is model[1]
    assert bool(mask.all())
    assert "1.pruning_mask" in model.state_dict()
