"""Stratified, deterministic orders of a data set's samples."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.data.hashing import hash_counters

Indices = NDArray[np.int64]


def stratified_order(labels: NDArray[Any], key: int) -> Indices:
    """A shuffle of the samples in which every beginning has the classes in (almost) the proportions of the whole.

    The sample of rank r among the n of its class is at position (r + 0.5) / n, so each class is spread evenly.
    """
    hashes = hash_counters(key, np.arange(len(labels)))
    by_class = np.lexsort((hashes, labels))
    _, starts, counts = np.unique(labels[by_class], return_index=True, return_counts=True)
    ranks = np.arange(len(labels)) - np.repeat(starts, counts)
    places = (ranks + 0.5) / np.repeat(counts, counts)
    return by_class[np.lexsort((hashes[by_class], places))]


def stratified_split(labels: NDArray[Any], size: int, key: int) -> tuple[Indices, Indices]:
    """Splits off `size` samples: (remaining indices, indices split off), both ascending, together all samples once."""
    order = stratified_order(labels, key)
    return np.sort(order[size:]), np.sort(order[:size])
