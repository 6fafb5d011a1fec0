"""The random numbers of a training step: from a generator on a CPU, from a counter hash on any other device.

A generator's numbers would have to be sent to a GPU, which waits for them: a contrastive method draws two million for each
batch. Both depend on the step's seed alone, so that they are the same in every run and after every resume; a CPU and a GPU draw
different numbers.
"""

import math

import torch
from torch import Tensor

from stillhouse.data.hashing import derive_key

_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = 0x94D049BB133111EB
_BITS = 24
"""Of a uniform number: as many as a float32 holds exactly."""


def hash_counters_on(key: int, counters: Tensor) -> Tensor:
    """`data.hashing.hash_counters` of int64 counters of any shape, as int64 with the same bits, on their device.

    Products of int64 wrap as those of unsigned words do; shifts must not copy the sign.
    """
    word = counters * _signed(_GOLDEN) + _signed(key)
    word = (word ^ _shifted(word, 30)) * _signed(_MULTIPLIER_1)
    word = (word ^ _shifted(word, 27)) * _signed(_MULTIPLIER_2)
    return word ^ _shifted(word, 31)


class DeviceDraws:
    """The draws of one step on a device; the n-th call has its own numbers.

    Args:
        seed: the step's.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._seed = seed
        self._device = device
        self._number = 0

    def uniform(self, *shape: int, first: int = 0) -> Tensor:
        """float32 in [0, 1). `first` is the place of the first row among those of a whole batch."""
        return self._bits(shape, first).to(torch.float32) * 2.0**-_BITS

    def normal(self, *shape: int, first: int = 0) -> Tensor:
        """Standard normal float32, as for `uniform`.

        sqrt(-2 log u) cos(2 pi v) of uniform u in (0, 1] and v in [0, 1) (Box and Muller, 1958).
        """
        radius = ((self._bits(shape, first) + 1).to(torch.float32) * 2.0**-_BITS).log().mul(-2).sqrt()
        angle = self.uniform(*shape, first=first) * (2 * math.pi)
        return radius * angle.cos()

    def integers(self, bound: int, *shape: int, first: int = 0) -> Tensor:
        """int64 in 0..bound-1, as for `uniform`; the bias is below bound / 2^24."""
        return (self._bits(shape, first) * bound) >> _BITS

    def _bits(self, shape: tuple[int, ...], first: int) -> Tensor:
        """24 random bits each, int64."""
        key = derive_key(self._seed, "draws of a step", self._number)
        self._number += 1
        start = first * math.prod(shape[1:])
        counters = torch.arange(start, start + math.prod(shape), device=self._device).view(shape)
        return _shifted(hash_counters_on(key, counters), 64 - _BITS)


def _shifted(word: Tensor, places: int) -> Tensor:
    """A shift to the right that fills with zeros."""
    return (word >> places) & ((1 << (64 - places)) - 1)


def _signed(word: int) -> int:
    """The int64 with the bits of an unsigned word."""
    return word - (1 << 64) if word >= 1 << 63 else word
