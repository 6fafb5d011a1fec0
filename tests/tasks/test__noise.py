"""The noise of generators: a function of source, view and index, normal, and independent of the batch."""

import numpy as np
import pytest
import torch
from scipy import stats

from stillhouse.tasks._noise import drawn_classes, normal_noise

VIEW = ("view", 0, 3)


def test_a_samples_noise_does_not_depend_on_its_batch() -> None:
    whole = normal_noise(VIEW, torch.arange(50), 7)
    some = torch.tensor([31, 4, 4])
    assert torch.equal(normal_noise(VIEW, some, 7), whole[some])


@pytest.mark.parametrize("other", [("view", 0, 4), ("view", 1, 3), ("split", "test")])
def test_other_views_and_splits_have_other_noise(other: tuple[str | int, ...]) -> None:
    one, two = (normal_noise(source, torch.arange(4000), 1).flatten() for source in (VIEW, other))
    assert abs(float(torch.corrcoef(torch.stack([one, two]))[0, 1])) < 0.06


def test_it_is_standard_normal_and_its_numbers_are_uncorrelated() -> None:
    noise = normal_noise(VIEW, torch.arange(3000), 5).numpy()
    assert stats.kstest(noise.flatten(), "norm").pvalue > 1e-3
    assert np.allclose(np.corrcoef(noise.T), np.eye(5), atol=0.08)


def test_every_class_is_drawn_with_the_same_probability() -> None:
    drawn = drawn_classes(VIEW, torch.arange(5000), 10)
    assert torch.equal(drawn.sum(1), torch.ones(5000))
    assert stats.chisquare(drawn.sum(0).numpy()).pvalue > 1e-3
