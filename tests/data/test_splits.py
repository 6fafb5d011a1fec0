from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.data.splits import stratified_order, stratified_split

KEYS = st.integers(0, 2**64 - 1)


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=120), KEYS)
def test_the_order_contains_every_sample_once(labels: Sequence[int], key: int) -> None:
    assert sorted(stratified_order(np.array(labels), key)) == list(range(len(labels)))


@settings(deadline=None)
@given(st.integers(1, 7), st.integers(1, 20), st.data(), KEYS)
def test_every_beginning_of_the_order_is_balanced_when_the_classes_are(
    num_classes: int, per_class: int, data: st.DataObject, key: int
) -> None:
    labels = np.tile(np.arange(num_classes), per_class)
    size = data.draw(st.integers(0, len(labels)))
    counts = np.bincount(labels[stratified_order(labels, key)[:size]], minlength=num_classes)
    assert counts.max() - counts.min() <= 1


def test_unequal_classes_keep_their_proportions() -> None:
    labels = np.repeat([0, 1, 2], [700, 200, 100])
    _, taken = stratified_split(labels, 100, 3)
    assert np.abs(np.bincount(labels[taken]) - [70, 20, 10]).max() <= 1


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.data(), KEYS)
def test_a_split_loses_nothing_and_shares_nothing(labels: Sequence[int], data: st.DataObject, key: int) -> None:
    size = data.draw(st.integers(0, len(labels)))
    rest, taken = stratified_split(np.array(labels), size, key)
    assert len(taken) == size
    assert sorted([*rest, *taken]) == list(range(len(labels)))


def test_a_split_is_the_same_for_the_same_key_and_another_for_another() -> None:
    labels = np.tile(np.arange(10), 30)
    assert np.array_equal(stratified_split(labels, 50, 1)[1], stratified_split(labels, 50, 1)[1])
    assert not np.array_equal(stratified_split(labels, 50, 1)[1], stratified_split(labels, 50, 2)[1])
