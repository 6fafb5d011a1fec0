import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from stillhouse.data.hashing import derive_key, derive_seed, hash_counters, integers, permutation, uniform

# The first outputs of SplitMix64 seeded with 1234567, as published with its reference implementations.
SPLITMIX64_1234567 = [
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
]


def test_hashes_of_counters_are_the_published_splitmix64_sequence() -> None:
    assert hash_counters(1234567, np.arange(1, 6)).tolist() == SPLITMIX64_1234567


def test_a_hash_depends_on_its_own_counter_only() -> None:
    counters = np.array([[5, 1], [4, 5]])
    hashes = hash_counters(9, counters)
    assert hashes.shape == (2, 2)
    assert hashes[0, 0] == hashes[1, 1] == hash_counters(9, np.array([5]))[0]


def test_integers_fill_every_bin_alike() -> None:
    counts = np.bincount(integers(derive_key("bins"), np.arange(100_000), 17), minlength=17)
    assert len(counts) == 17
    assert chisquare(counts).pvalue > 0.001


def test_uniform_floats_follow_the_uniform_distribution_on_0_1() -> None:
    values = uniform(derive_key("floats"), np.arange(20_000))
    assert values.min() >= 0
    assert values.max() < 1
    assert kstest(values, "uniform").pvalue > 0.001


def test_neighbouring_keys_give_unrelated_draws() -> None:
    first, second = uniform(1, np.arange(10_000)), uniform(2, np.arange(10_000))
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(10_000)


@settings(deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 200))
def test_a_permutation_contains_every_index_once(key: int, length: int) -> None:
    assert sorted(permutation(key, length)) == list(range(length))


@pytest.mark.parametrize(
    ("one", "other"),
    [((1, 2), (2, 1)), (("1",), (1,)), (("ab", "c"), ("a", "bc")), (("a",), ("a", ""))],
    ids=["order", "type", "boundary", "length"],
)
def test_different_parts_give_different_keys(one: tuple[str | int, ...], other: tuple[str | int, ...]) -> None:
    assert derive_key(*one) != derive_key(*other)


def test_seeds_fit_a_torch_generator() -> None:
    assert all(0 <= derive_seed("seed", number) < 2**63 for number in range(100))
