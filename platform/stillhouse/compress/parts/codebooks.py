"""Codebooks: the few values that the weights of a layer share, by k-means on a line."""

from typing import Literal

import torch
from torch import Tensor

Start = Literal["linear", "density"]

_MAX_ROUNDS = 300


def kmeans(values: Tensor, k: int, start: Start = "linear") -> Tensor:
    """At most `k` centroids, ascending, float64: a minimum of sum (x - nearest centroid)^2 (Lloyd's algorithm).

    A centroid that no value is nearest to is left out.

    Args:
        values: [N], N >= 1, on the CPU.
        start: the first centroids (Han et al., arXiv 1510.00149, section 3.2): "linear" from the smallest to the largest value,
            "density" at equal shares of the values.
    """
    ordered: Tensor = values.detach().double().sort().values
    distinct: Tensor = ordered.unique_consecutive()
    if len(distinct) <= k:
        return distinct
    if start == "linear":
        centroids = torch.linspace(float(ordered[0]), float(ordered[-1]), k, dtype=torch.float64)
    else:
        places = (torch.arange(k, dtype=torch.float64) + 0.5) / k * len(ordered)
        centroids = ordered[places.long()].unique_consecutive()
    sums = torch.cat([torch.zeros(1, dtype=torch.float64), ordered.cumsum(0)])
    ends = torch.empty(0, dtype=torch.int64)
    for _ in range(_MAX_ROUNDS):
        # Of a sorted line, cluster i is the values between the middles of neighbouring centroids.
        inner = torch.searchsorted(ordered, (centroids[1:] + centroids[:-1]) / 2)
        new = torch.cat([torch.zeros(1, dtype=torch.int64), inner, torch.tensor([len(ordered)])])
        if torch.equal(new, ends):
            break
        ends = new
        counts = ends.diff()
        means = sums[ends].diff() / counts.clamp_min(1)
        centroids = torch.where(counts > 0, means, centroids)
    used: Tensor = centroids[ends.diff() > 0]
    return used


def nearest(values: Tensor, codebook: Tensor) -> Tensor:
    """Of each value, any shape, the place of the nearest of the ascending centroids, uint8; of two as near, the larger one."""
    middles = (codebook[1:] + codebook[:-1]) / 2
    return torch.bucketize(values.detach().double(), middles.double(), right=True).to(torch.uint8)


def cluster(weight: Tensor, k: int, start: Start = "linear") -> tuple[Tensor, Tensor]:
    """Codebook, float64 and ascending, of at most `k` values, and the place of each weight in it, uint8.

    If weights are exactly zero, as after pruning, zero is one of the values and only theirs.
    """
    flat = weight.detach().cpu().double()
    zeros = flat == 0
    if not bool(zeros.any()):
        codebook = kmeans(flat.flatten(), k, start)
        return codebook, nearest(flat, codebook)
    others = flat[~zeros]
    if not len(others):
        return torch.zeros(1, dtype=torch.float64), torch.zeros(weight.shape, dtype=torch.uint8)
    codebook = kmeans(others, k - 1, start)
    places = nearest(flat, codebook)
    zero_at = int(torch.searchsorted(codebook, 0.0))
    places = torch.where(places >= zero_at, places + 1, places)
    codebook = torch.cat([codebook[:zero_at], torch.zeros(1, dtype=torch.float64), codebook[zero_at:]])
    return codebook, torch.where(zeros, zero_at, places).to(torch.uint8)


def means_of_clusters(weight: Tensor, places: Tensor, k: int) -> Tensor:
    """The mean of the weights of each cluster, [k] float64 on their device; 0 for an empty cluster.

    The sums are those of an embedding's gradient, which is computed in the same order in every run, on a GPU too.
    """
    flat, index = weight.detach().double().flatten(), places.flatten().long()
    ones = torch.ones_like(flat)
    both = torch.ops.aten.embedding_dense_backward(torch.stack([flat, ones], dim=1), index, k, -1, False)
    means: Tensor = both[:, 0] / both[:, 1].clamp_min(1)
    return means
