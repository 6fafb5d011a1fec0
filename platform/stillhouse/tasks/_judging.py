"""The classifier that judges generated images, as `ImageData.prepared` holds it, and what it finds in real images."""

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from stillhouse.data.images import ImageData
from stillhouse.models.features import FeatureReader
from stillhouse.models.registry import build_model
from stillhouse.tasks._frechet import FeatureStatistics, Statistics, inception_score, sharpness

MODEL: Final = "lenet"
"""Small enough for a CPU; its last hidden layer has the features."""

_BATCH = 512
_WEIGHTS = "weights."


@dataclass(frozen=True)
class Verdict:
    """What the classifier finds in images [B, channels, H, W].

    Attributes:
        features: float32 [B, D], its last hidden layer.
        probabilities: float32 [B, C].
    """

    features: Tensor
    probabilities: Tensor


def prepared(data: ImageData, judge: nn.Module, score: float) -> dict[str, NDArray[Any]]:
    """The judge's weights, its accuracy, and what it finds in the real images of the training split."""
    arrays = {f"{_WEIGHTS}{name}": value.cpu().numpy() for name, value in judge.state_dict().items()}
    statistics, probabilities, variances = None, [], []
    for pixels in _batches(data):
        verdict = _read(judge, data, pixels)
        statistics = statistics or FeatureStatistics(verdict.features.shape[1])
        statistics.update(verdict.features)
        probabilities.append(verdict.probabilities)
        variances.append(sharpness(pixels))
    assert statistics is not None, "a training split has samples"
    mean, covariance = statistics.statistics()
    numbers = [score, inception_score(torch.cat(probabilities)), float(torch.cat(variances).double().mean())]
    return arrays | {"mean": mean, "covariance": covariance, "numbers": torch.tensor(numbers, dtype=torch.float64).numpy()}


def numbers_of(data: ImageData) -> tuple[float, float, float]:
    """The judge's validation accuracy, and inception score and sharpness of the real images."""
    accuracy, score, variance = _found(data, "numbers").tolist()
    return accuracy, score, variance


def statistics_of(data: ImageData) -> Statistics:
    """Of the features of the real images."""
    return _found(data, "mean"), _found(data, "covariance")


def judge(data: ImageData, pixels: Tensor) -> Verdict:
    """What the classifier finds in images with pixels from 0 to 255, float32 [B, channels, H, W]."""
    networks = _NETWORKS.setdefault(data, {})
    if pixels.device not in networks:
        networks[pixels.device] = _network(data).to(pixels.device)
    return _read(networks[pixels.device], data, pixels)


def num_features(data: ImageData) -> int:
    """D, without a trained classifier."""
    with torch.device("meta"):
        return _width(build_model(MODEL, num_classes=data.num_classes, input_shape=data.input_shape))


_NETWORKS: weakref.WeakKeyDictionary[ImageData, dict[torch.device, nn.Module]] = weakref.WeakKeyDictionary()


def _found(data: ImageData, name: str) -> NDArray[Any]:
    assert data.prepared, "the judge of this data set is not prepared: stillhouse.teachers.judges.prepare"
    return data.prepared[name]


def _network(data: ImageData) -> nn.Module:
    _found(data, "mean")
    with torch.random.fork_rng(devices=[]):
        network = build_model(MODEL, num_classes=data.num_classes, input_shape=data.input_shape)
    weights: Mapping[str, Any] = {
        name.removeprefix(_WEIGHTS): torch.tensor(array) for name, array in data.prepared.items() if name.startswith(_WEIGHTS)
    }
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False)


def _read(network: nn.Module, data: ImageData, pixels: Tensor) -> Verdict:
    layer = str(network.pooled_layer)
    with torch.no_grad(), FeatureReader(network, [layer]) as reader:
        # A copy: normalising changes float32 pixels in place.
        logits, features = reader(data.normalise(pixels.to(torch.float32, copy=True)))
    assert logits is not None
    return Verdict(features[layer], F.softmax(logits, 1))


def _width(network: nn.Module) -> int:
    classifier = network.classifier
    assert isinstance(classifier, nn.Linear)
    return classifier.in_features


def _batches(data: ImageData) -> Iterator[Tensor]:
    for start in range(0, len(data.train), _BATCH):
        yield data.train.images[start : start + _BATCH].to(torch.float32)
