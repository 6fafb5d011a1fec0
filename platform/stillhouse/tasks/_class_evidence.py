"""What the logits of a classifier say beside its accuracy: calibration, fidelity to its teacher, single classes.

Shapes: N samples, C classes. All is computed in float64 on the CPU.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

ECE_BINS = 15
_TEMPERATURES = (0.05, 20.0)


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> float:
    """The mean of -log softmax(z)_y, in nats.

    Args:
        logits: [N, C], finite.
        labels: int64 [N].
    """
    return float(F.cross_entropy(logits.double(), labels))


def calibration_bins(logits: Tensor, labels: Tensor, bins: int = ECE_BINS) -> Tensor:
    """How sure a classifier is and how often it is right, by bins of equal width of the largest probability.

    Args:
        logits: [N, C], finite.
        labels: int64 [N].

    Returns:
        float64 [bins, 3]: in each bin (k / bins, (k + 1) / bins] the number of samples, the sum of their largest
        probabilities, and how many are right.
    """
    confidence, predicted = logits.double().softmax(1).max(1)
    places = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)
    found = torch.zeros(bins, 3, dtype=torch.float64)
    rows = torch.stack([torch.ones_like(confidence), confidence, (predicted == labels).double()], dim=1)
    return found.index_add_(0, places, rows)


def calibration_error(bins: Tensor) -> float:
    """The expected calibration error (1706.04599, equation 3): the mean of |accuracy - confidence| over all samples, by bins.

    Args:
        bins: as `calibration_bins` returns them, of at least one sample.
    """
    return float((bins[:, 2] - bins[:, 1]).abs().sum() / bins[:, 0].sum())


def fitted_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T in [0.05, 20] that minimises the negative log-likelihood of softmax(z / T) (1706.04599, section 4.2).

    The likelihood is convex in 1 / T, so that there is one minimum; 1.0 where there is no sample.

    Args:
        logits: [N, C], finite, of samples on which nothing is reported.
        labels: int64 [N].
    """
    if not len(labels):
        return 1.0
    # Only here, since the import takes a moment that commands without a trial need not wait for.
    from scipy.optimize import minimize_scalar

    logits = logits.double()
    low, high = (1 / each for each in reversed(_TEMPERATURES))

    def loss(scale: float) -> float:
        return negative_log_likelihood(logits * scale, labels)

    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    return 1 / float(found.x)


def agreement(logits: Tensor, reference: Tensor) -> Tensor:
    """Which samples both classify alike (2106.05945): bool [N], from logits [N, C] of each."""
    return logits.argmax(1) == reference.argmax(1)


def divergence(logits: Tensor, reference: Tensor) -> float:
    """The mean over samples of KL(softmax(reference) || softmax(logits)), in nats; both are [N, C] and finite."""
    targets = reference.double().log_softmax(1)
    return max(0.0, float(F.kl_div(logits.double().log_softmax(1), targets, reduction="batchmean", log_target=True)))


def class_counts(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """int64 [C] each: how many samples a class has, and how many of them are classified rightly."""
    classes = logits.shape[1]
    right = labels[logits.argmax(1) == labels]
    return torch.bincount(labels, minlength=classes), torch.bincount(right, minlength=classes)


def worst_class(counts: Tensor, right: Tensor) -> float:
    """The lowest accuracy of the classes that have samples; NaN if none has."""
    present = counts > 0
    return float((right[present].double() / counts[present]).min()) if bool(present.any()) else math.nan


def confusions(logits: Tensor, labels: Tensor, largest: int) -> list[list[int]]:
    """The most frequent mistakes as [class, predicted class, samples], most frequent first; at most `largest` of them."""
    classes, predicted = logits.shape[1], logits.argmax(1)
    wrong = predicted != labels
    pairs, counts = torch.unique(labels[wrong] * classes + predicted[wrong], return_counts=True)
    order: Sequence[int] = torch.sort(counts, descending=True, stable=True).indices[:largest].tolist()
    return [[int(pairs[place]) // classes, int(pairs[place]) % classes, int(counts[place])] for place in order]
