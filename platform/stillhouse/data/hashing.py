"""Counter-based randomness: every draw is a pure function of a key and a counter, vectorised over counters.

The mixing function is the finaliser of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators",
OOPSLA 2014) on 64-bit words.
"""

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.durable import bytes_hash

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)


def derive_key(*parts: str | int) -> int:
    """A 64-bit key from words and numbers: different parts give different keys, and the same keys on every machine."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def derive_seed(*parts: str | int) -> int:
    """A non-negative 63-bit seed for `torch.Generator.manual_seed`."""
    return derive_key(*parts) >> 1


def hash_counters(key: int, counters: NDArray[np.integer]) -> NDArray[np.uint64]:
    """One 64-bit hash per counter, any shape."""
    with np.errstate(over="ignore"):
        word = counters.astype(np.uint64) * _GOLDEN + np.uint64(key & 0xFFFFFFFFFFFFFFFF)
        word = (word ^ (word >> np.uint64(30))) * _MULTIPLIER_1
        word = (word ^ (word >> np.uint64(27))) * _MULTIPLIER_2
        return word ^ (word >> np.uint64(31))


def uniform(key: int, counters: NDArray[np.integer]) -> NDArray[np.float64]:
    """One float in [0, 1) per counter, with 53 random bits."""
    return (hash_counters(key, counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def integers(key: int, counters: NDArray[np.integer], bound: int) -> NDArray[np.int64]:
    """One integer in [0, bound) per counter; the bias is below bound / 2^53."""
    return (uniform(key, counters) * bound).astype(np.int64)


def reading_order(seed: int, epoch: int, length: int) -> NDArray[np.int64]:
    """The order in which a training run with `seed` reads the samples 0..length-1 in `epoch`."""
    return permutation(derive_key(seed, "batches", epoch), length)


def permutation(key: int, length: int) -> NDArray[np.int64]:
    """A permutation of 0..length-1, the same for the same key."""
    return np.argsort(hash_counters(key, np.arange(length)), kind="stable")


def array_hash(array: NDArray[Any]) -> str:
    """The hash of an array's bytes in C order."""
    return bytes_hash(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
