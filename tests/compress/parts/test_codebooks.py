"""k-means on a line against scikit-learn's, hand values and properties."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import Tensor

from stillhouse.compress.parts.codebooks import Start, cluster, kmeans, means_of_clusters, nearest


def draws(count: int = 500, seed: int = 0) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("k", [2, 4, 16])
def test_centroids_are_those_of_scikit_learn_from_the_same_start(k: int) -> None:
    values = draws()
    start = np.linspace(float(values.min()), float(values.max()), k)[:, None]
    theirs = KMeans(k, init=start, n_init=1, tol=0, max_iter=300, algorithm="lloyd").fit(values.numpy()[:, None])
    torch.testing.assert_close(kmeans(values, k), torch.from_numpy(np.sort(theirs.cluster_centers_[:, 0])))


def test_clusters_of_separate_groups_are_the_groups() -> None:
    values = torch.tensor([-5.0, -5.2, -4.8, 0.1, 0.3, 7.0])
    expected = torch.tensor([-5.0, 0.2, 7.0], dtype=torch.float64)
    starts: tuple[Start, ...] = ("linear", "density")
    for start in starts:
        torch.testing.assert_close(kmeans(values, 3, start), expected, rtol=0, atol=1e-6)
    assert nearest(values, expected).tolist() == [0, 0, 0, 1, 1, 2]


def test_a_value_in_the_middle_goes_to_the_larger_centroid() -> None:
    assert nearest(torch.tensor([0.5, 0.4]), torch.tensor([0.0, 1.0])).tolist() == [1, 0]


@settings(deadline=None)
@given(
    st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=60),
    st.integers(1, 20),
    st.sampled_from(["linear", "density"]),
)
def test_each_centroid_is_the_mean_of_the_values_that_are_nearest_to_it(numbers: list[float], k: int, start: Start) -> None:
    values = torch.tensor(numbers, dtype=torch.float64)
    centroids = kmeans(values, k, start)
    assert 1 <= len(centroids) <= k
    assert bool((centroids.diff() > 0).all())
    places = nearest(values, centroids)
    for place, centroid in enumerate(centroids):
        own = values[places == place]
        if len(own):
            assert float((own.mean() - centroid).abs()) < 1e-6 * max(1.0, float(centroid.abs()))


def test_few_different_values_are_their_own_centroids() -> None:
    values = torch.tensor([3.0, 1.0, 3.0, -2.0])
    assert kmeans(values, 8).tolist() == [-2.0, 1.0, 3.0]


def test_zeros_of_a_pruned_weight_stay_zero() -> None:
    weight = torch.tensor([[0.0, 0.0, 0.01, 1.0], [-1.0, 0.0, -0.02, 0.9]])
    codebook, places = cluster(weight, 4)
    rebuilt = codebook[places.long()]
    assert bool((rebuilt[weight == 0] == 0).all())
    assert bool((rebuilt[weight != 0] != 0).all())
    assert len(codebook) == 4
    assert codebook.tolist() == sorted(codebook.tolist())


def test_a_weight_of_zeros_has_one_value() -> None:
    codebook, places = cluster(torch.zeros(3, 2), 4)
    assert codebook.tolist() == [0]
    assert int(places.sum()) == 0


def test_means_of_clusters() -> None:
    weight, places = torch.tensor([[1.0, 2.0], [5.0, 9.0]]), torch.tensor([[0, 0], [2, 2]], dtype=torch.uint8)
    assert means_of_clusters(weight, places, 4).tolist() == [1.5, 0.0, 7.0, 0.0]
