"""Packed bits against numpy's and against bytes written by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.compress.parts.bit_packing import pack_bits, packed_length, unpack_bits


def test_the_example_of_the_documentation() -> None:
    # 5 = 101, 1 = 001, 6 = 110, lowest bit first: 1 0 1 | 1 0 0 | 0 1 and then 1, so the bytes 0b10001101 and 0b1.
    assert pack_bits(torch.tensor([5, 1, 6]), 3).tolist() == [0b10001101, 0b1]


@given(st.integers(1, 8).flatmap(lambda bits: st.tuples(st.just(bits), st.lists(st.integers(0, 2**bits - 1), max_size=40))))
def test_the_bytes_are_those_of_numpy(case: tuple[int, list[int]]) -> None:
    bits, numbers = case
    stream = [number >> place & 1 for number in numbers for place in range(bits)]
    expected = np.packbits(np.array(stream, dtype=np.uint8), bitorder="little")
    packed = pack_bits(torch.tensor(numbers, dtype=torch.int64), bits)
    assert packed.dtype == torch.uint8
    assert packed.tolist() == expected.tolist()
    assert len(packed) == packed_length(len(numbers), bits)
    assert unpack_bits(packed, bits, len(numbers)).tolist() == numbers


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_the_meta_device_gives_the_lengths(bits: int) -> None:
    packed = pack_bits(torch.empty(13, device="meta"), bits)
    assert packed.shape == (-(-13 * bits // 8),)
    assert unpack_bits(packed, bits, 13).shape == (13,)


def test_a_number_with_more_bits_is_refused() -> None:
    with pytest.raises(AssertionError, match="more bits"):
        pack_bits(torch.tensor([4]), 2)


def test_bytes_of_another_number_of_values_are_refused() -> None:
    with pytest.raises(ValueError, match="10 numbers of 3 bits are 4 bytes"):
        unpack_bits(torch.zeros(3, dtype=torch.uint8), 3, 10)
