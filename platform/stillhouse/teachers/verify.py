"""Recomputes a random sample of the sealed knowledge, and compares."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stillhouse.data.hashing import derive_key, integers
from stillhouse.durable import Damaged
from stillhouse.knowledge.kinds import Knowledge
from stillhouse.knowledge.store import KnowledgeStore
from stillhouse.knowledge.view import View
from stillhouse.teachers.definition import view_identity

BATCH = 512
_TOLERANCE = {"float32": 1e-3, "float16": 1e-2}
"""Relative to a sample's largest value. Other batch sizes, threads and devices round differently, by about 1e-6 and 1e-3."""
_ODD_SHARE = 0.01
"""The share of a sample's values that may differ more: rounding alone changes the sign of a value near 0."""

Forward = Callable[[Mapping[str, Knowledge], int, NDArray[np.int64]], Mapping[str, NDArray[Any]]]


def verify_sealed(
    store: KnowledgeStore,
    base: Mapping[str, Any],
    kinds: Mapping[str, Knowledge],
    forward: Forward,
    *,
    rows: int,
    num_views: int,
    pairs: int,
    seed: int,
) -> dict[str, Any]:
    """Compares a random sample of (view, sample) pairs with the teacher; a view that differs is removed, to be filled again.

    Args:
        base: the fixed part of the views' identities.
        forward: computes the knowledge of samples of a view, by kind.
        pairs: how many are drawn from the sealed views.

    Returns:
        `compared`: the number of compared samples. `differences`: for each view that differs its `knowledge`, `view`, the
        `sample` that differs most and the `largest_difference`; a damaged view has a `reason` instead of the last two.
    """
    views: dict[int, dict[str, View]] = defaultdict(dict)
    found: list[dict[str, Any]] = []
    for number in range(num_views):
        for name, kind in kinds.items():
            identity = view_identity(base, kind, number)
            try:
                store.distrust(identity)
                views[number][name] = store.open(identity)
            except FileNotFoundError:
                continue
            except Damaged as error:
                found.append({"knowledge": str(kind), "view": number, "reason": str(error)})
                store.unseal(identity)
    compared = 0
    sealed = sorted(number for number, some in views.items() if some)
    for number, indices in _drawn(sealed, rows, pairs, seed):
        opened = views[number]
        worst: dict[str, tuple[float, int]] = {}
        for start in range(0, len(indices), BATCH):
            batch = indices[start : start + BATCH]
            computed = forward({name: kinds[name] for name in opened}, number, batch)
            for name, view in opened.items():
                stored = view.gather(torch.from_numpy(batch)).numpy()
                for sample, difference in _differences(stored, computed[name]):
                    worst[name] = max(worst.get(name, (0.0, 0)), (difference, int(batch[sample])))
                compared += len(batch)
        for name, (difference, sample) in worst.items():
            found.append({"knowledge": str(kinds[name]), "view": number, "sample": sample, "largest_difference": difference})
            store.remove(store.key(view_identity(base, kinds[name], number)))
    return {"compared": compared, "differences": found}


def _drawn(views: list[int], rows: int, pairs: int, seed: int) -> Iterable[tuple[int, NDArray[np.int64]]]:
    """Each view's part of the random pairs, without repetition, in the order of the view numbers."""
    if not views:
        return
    numbers = np.unique(integers(derive_key("pairs to verify", seed), np.arange(pairs), len(views) * rows))
    for position, view in enumerate(views):
        mine = numbers[(numbers >= position * rows) & (numbers < (position + 1) * rows)] - position * rows
        if len(mine):
            yield view, mine


def _differences(stored: NDArray[Any], answer: NDArray[Any]) -> Iterable[tuple[int, float]]:
    """(row, largest difference) of the rows that differ beyond rounding."""
    tolerance = _TOLERANCE[stored.dtype.name]
    stored, answer = (array.reshape(len(array), -1).astype(np.float64) for array in (stored, answer))
    gaps = np.abs(stored - answer)
    scale = np.maximum(np.abs(answer).max(1, keepdims=True), 1e-6)
    odd = (~(gaps <= tolerance * scale)).mean(1)
    for row in np.flatnonzero(odd > _ODD_SHARE):
        yield int(row), float(np.nan_to_num(gaps[row], nan=np.inf).max())
