"""The Frechet distance against closed forms and torchmetrics; parts against the whole; scores whose value is known."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from stillhouse.tasks._frechet import FeatureStatistics, FrechetDistance, frechet_distance, inception_score, sharpness


def features(seed: int, count: int = 200, size: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(size, size, generator=generator)
    return torch.randn(count, size, generator=generator) @ mixed + seed


def seen(*parts: Tensor) -> FeatureStatistics:
    found = FeatureStatistics(parts[0].shape[1])
    for part in parts:
        found.update(part)
    return found


def test_the_distance_of_normal_distributions_with_diagonal_covariances_has_a_closed_form() -> None:
    """|m - m'|^2 + sum_i (sqrt(s_i) - sqrt(s'_i))^2 = (1 + 4) + (1 - 2)^2 + (3 - 5)^2."""
    one = np.array([0.0, 0.0]), np.diag([1.0, 9.0])
    other = np.array([1.0, -2.0]), np.diag([4.0, 25.0])
    assert frechet_distance(one, other) == pytest.approx(5 + 1 + 4)
    assert frechet_distance(other, one) == pytest.approx(10)


def test_equal_statistics_have_the_distance_zero_even_without_full_rank() -> None:
    flat = np.zeros(3), np.outer([1.0, 2.0, 0.0], [1.0, 2.0, 0.0])
    assert frechet_distance(flat, flat) == pytest.approx(0, abs=1e-9)


class _Identity(nn.Module):
    """Features as images [B, D], since torchmetrics takes its extractor from us."""

    num_features = 6

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def test_it_is_the_distance_of_torchmetrics() -> None:
    real, made = features(1), features(2)
    theirs: Any = FrechetInceptionDistance(feature=_Identity(), normalize=True, input_img_size=(6, 1, 1))
    theirs.set_dtype(torch.float64)
    for values, is_real in ((real, True), (made, False)):
        theirs.update(values.double()[:, :, None, None], real=is_real)
    ours = frechet_distance(seen(made).statistics(), seen(real).statistics())
    assert ours == pytest.approx(float(theirs.compute()), rel=1e-6)


def test_mean_and_covariance_are_those_of_numpy_for_parts_in_any_order() -> None:
    whole = features(3)
    mean, covariance = seen(whole[150:], whole[:30], whole[30:150]).statistics()
    assert np.allclose(mean, whole.numpy().mean(0))
    assert np.allclose(covariance, np.cov(whole.double().numpy().T))


def test_halves_that_are_merged_equal_the_whole() -> None:
    made, real = features(4), seen(features(5)).statistics()
    whole, first, second = FrechetDistance(real), FrechetDistance(real), FrechetDistance(real)
    for evaluator, part in ((whole, made), (first, made[:80]), (second, made[80:])):
        evaluator.update({"features": part}, torch.zeros(len(part)))
    second.merge(first.state())
    assert second.result() == pytest.approx(whole.result(), rel=1e-9)


def test_the_inception_score_is_one_where_all_images_look_alike_and_the_number_of_classes_at_best() -> None:
    assert inception_score(torch.full((8, 4), 0.25)) == pytest.approx(1)
    assert inception_score(torch.eye(4).repeat(3, 1)) == pytest.approx(4)


def test_the_inception_score_of_two_even_halves_is_worked_out_by_hand() -> None:
    """Half the images are class 0, half are even between both: p = (3/4, 1/4).

    KL of the first: log(4/3); of the second: (log(2/3) + log 2) / 2.
    """
    score = inception_score(torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
    assert score == pytest.approx(np.exp((np.log(4 / 3) + (np.log(2 / 3) + np.log(2)) / 2) / 2))


def test_the_laplacian_of_a_slope_is_zero_and_of_a_point_is_known() -> None:
    slope = torch.arange(6.0).expand(6, 6)[None, None]
    point = torch.zeros(1, 1, 5, 5)
    point[0, 0, 2, 2] = 2
    # Inside the 3x3 area that the filter covers: -8 at the point, 2 at its four neighbours, 0 elsewhere.
    values = np.array([-8.0] + [2.0] * 4 + [0.0] * 4)
    assert sharpness(slope).tolist() == [0]
    assert sharpness(point)[0].item() == pytest.approx(values.var())
    assert sharpness(point.expand(1, 3, 5, 5))[0].item() == pytest.approx(values.var())
