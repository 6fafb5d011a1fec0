"""How alike two sets of images are, by the outputs of a classifier. N images, D features, C classes.

    FID = |m - m'|^2 + tr(S + S' - 2 (S S')^(1/2))              (Heusel et al., arXiv 1706.08500, equation 6)
    IS = exp(mean_n KL(p(y | x_n) || mean_n p(y | x_n)))        (Salimans et al., arXiv 1606.03498, section 4)
    variance of the Laplacian: of each image after the 3x3 filter [[0, 1, 0], [1, -4, 1], [0, 1, 0]]; low where it is blurred

m and S are mean and covariance of the features. Both sets have as many images in every comparison of two models: the expected
FID falls with the number of images.
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

_LAPLACIAN = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])

Statistics = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Mean [D] and covariance [D, D] of features."""


def frechet_distance(one: Statistics, other: Statistics) -> float:
    """The squared distance of two normal distributions with these means and covariances; at least 0, and 0 for equal ones.

    tr((S S')^(1/2)) is computed as the sum of the roots of the eigenvalues of S^(1/2) S' S^(1/2), which is symmetric, so that
    covariances without full rank need no correction.
    """
    (mean, covariance), (other_mean, other_covariance) = one, other
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    mixed = np.linalg.eigvalsh(root @ other_covariance @ root).clip(min=0)
    traces = np.trace(covariance) + np.trace(other_covariance) - 2 * np.sqrt(mixed).sum()
    return max(0.0, float(((mean - other_mean) ** 2).sum() + traces))


class FeatureStatistics:
    """Sums of features [D] and of their products [D, D], so that parts merge exactly but for rounding; in float64."""

    def __init__(self, num_features: int) -> None:
        self.count = torch.zeros(1, dtype=torch.int64)
        self._sum = torch.zeros(num_features, dtype=torch.float64)
        self._products = torch.zeros(num_features, num_features, dtype=torch.float64)

    def update(self, features: Tensor) -> None:
        """Adds [B, D]."""
        exact = features.detach().to("cpu", torch.float64)
        self.count = self.count + len(exact)
        self._sum = self._sum + exact.sum(0)
        self._products = self._products + exact.T @ exact

    def state(self) -> dict[str, Tensor]:
        return {"count": self.count, "sum": self._sum, "products": self._products}

    def merge(self, state: Mapping[str, Tensor]) -> None:
        self.count = self.count + state["count"].cpu()
        self._sum = self._sum + state["sum"].cpu()
        self._products = self._products + state["products"].cpu()

    def statistics(self) -> Statistics:
        """Mean and unbiased covariance of at least two samples."""
        count = int(self.count)
        mean = (self._sum / count).numpy()
        covariance = (self._products.numpy() - count * np.outer(mean, mean)) / (count - 1)
        return mean, covariance


class FrechetDistance:
    """The evaluator of generators: the distance of the features that it saw from those of real images."""

    def __init__(self, real: Statistics) -> None:
        self._real = real
        self._seen = FeatureStatistics(len(real[0]))

    def update(self, outputs: Mapping[str, Tensor], targets: Tensor) -> None:
        self._seen.update(outputs["features"])

    def state(self) -> dict[str, Tensor]:
        return self._seen.state()

    def merge(self, state: Mapping[str, Tensor]) -> None:
        self._seen.merge(state)

    def result(self) -> float:
        return frechet_distance(self._seen.statistics(), self._real)


def inception_score(probabilities: Tensor) -> float:
    """From the classifier's probabilities [N, C]: 1 where all are equal, C where each class is certain and as frequent."""
    exact = probabilities.double()
    divergences = torch.special.xlogy(exact, exact) - torch.special.xlogy(exact, exact.mean(0))
    return float(divergences.sum(1).mean().exp())


def sharpness(images: Tensor) -> Tensor:
    """The variance [B] of the Laplacian of images [B, channels, H, W], whose channels are averaged first."""
    grey = images.float().mean(1, keepdim=True)
    filtered = F.conv2d(grey, _LAPLACIAN.to(images.device)[None, None])
    return filtered.flatten(1).var(1, correction=0)
