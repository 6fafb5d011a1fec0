"""Whole numbers of a few bits, packed without gaps into bytes.

The numbers form one stream of bits: number i has the bits i b to (i + 1) b - 1, its lowest first; bit j of the stream is bit
j mod 8 of byte j div 8, where bit 0 is the lowest. The last byte is filled with zeros. Three numbers of three bits, 5, 1 and 6
(101, 001 and 110), are the bytes 10001101 and 00000001.
"""

import torch
from torch import Tensor

_BYTE = 8


def packed_length(count: int, bits: int) -> int:
    """The bytes that `count` numbers of `bits` bits take."""
    return -(-count * bits // _BYTE)


def pack_bits(numbers: Tensor, bits: int) -> Tensor:
    """The bytes [ceil(N bits / 8)] uint8 of the numbers [N], whole and in [0, 2^bits); on the meta device without values."""
    assert numbers.ndim == 1, numbers.shape
    length = packed_length(len(numbers), bits)
    if numbers.is_meta:
        return torch.empty(length, dtype=torch.uint8, device="meta")
    numbers = numbers.to(torch.int32)
    assert not len(numbers) or (int(numbers.min()) >= 0 and int(numbers.max()) < 1 << bits), "a number has more bits"
    stream = (numbers[:, None] >> torch.arange(bits, device=numbers.device)) & 1
    flat = torch.zeros(length * _BYTE, dtype=torch.int32, device=numbers.device)
    flat[: len(numbers) * bits] = stream.flatten()
    places = 1 << torch.arange(_BYTE, device=numbers.device, dtype=torch.int32)
    return (flat.reshape(length, _BYTE) * places).sum(dim=1).to(torch.uint8)


def unpack_bits(packed: Tensor, bits: int, count: int) -> Tensor:
    """The `count` numbers, int32, whose bytes `pack_bits` returned.

    Raises:
        ValueError: the bytes are not those of as many numbers.
    """
    if packed.shape != (packed_length(count, bits),):
        raise ValueError(f"{count} numbers of {bits} bits are {packed_length(count, bits)} bytes, got {list(packed.shape)}")
    if packed.is_meta:
        return torch.empty(count, dtype=torch.int32, device="meta")
    stream = (packed.to(torch.int32)[:, None] >> torch.arange(_BYTE, device=packed.device)) & 1
    numbers = stream.flatten()[: count * bits].reshape(count, bits)
    places = 1 << torch.arange(bits, device=packed.device, dtype=torch.int32)
    return (numbers * places).sum(dim=1).to(torch.int32)
