"""A given teacher's own normalisation: where it is known from, and how the network gets it from the pixels of a student."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from stillhouse.data.images import ImageData
from stillhouse.data.normalisation import Normalisation, beside, chosen, stated_by_torchvision

_TORCHVISION = "torchvision:"


@dataclass(frozen=True)
class OwnNormalisation:
    """The normalisation of a teacher, where it is not that of the data set.

    Attributes:
        own: what the network was trained with.
        data: what the pixels have that it is called with.
        source: what states it: a key of the spec, or a file.
    """

    own: Normalisation
    data: Normalisation
    source: str = ""

    def attach(self, model: nn.Module) -> RemovableHandle:
        """Lets the model be called with the data's normalised pixels: they are converted before its first layer."""
        return model.register_forward_pre_hook(_Conversion(self))


class _Conversion:
    """(x s_d + m_d - m_t) / s_t: a student's pixels x, undone and normalised again; gradients flow through it."""

    def __init__(self, wanted: OwnNormalisation) -> None:
        pairs = list(zip(wanted.data.mean, wanted.data.std, wanted.own.mean, wanted.own.std, strict=True))
        self._scale = torch.tensor([std / own_std for _, std, _, own_std in pairs]).view(1, -1, 1, 1)
        self._shift = torch.tensor([(mean - own) / own_std for mean, _, own, own_std in pairs]).view(1, -1, 1, 1)

    def __call__(self, _model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        images, *rest = inputs
        if self._scale.device != images.device:
            self._scale, self._shift = self._scale.to(images.device), self._shift.to(images.device)
        return (images * self._scale.to(images.dtype) + self._shift.to(images.dtype), *rest)


def own_normalisation(setting: str | Mapping[str, Any] | None, weights: str | None, data: ImageData) -> OwnNormalisation | None:
    """The normalisation of a teacher; None where it is the data set's, or where nothing states another.

    Args:
        setting: the spec's `normalization`; null takes what is stated with the weights.
        weights: as in the spec, or the path of the fetched file; None for a teacher that the sweep trains.

    Raises:
        UsageError: it does not fit the data's channels.
    """
    found, source = _found(setting, weights, data)
    data_normalisation = Normalisation.of(data)
    if found is None or found == data_normalisation:
        return None
    return OwnNormalisation(found, data_normalisation, source)


def is_stated(setting: str | Mapping[str, Any] | None, weights: str | None, data: ImageData) -> bool:
    """Whether the spec or the weights state a normalisation, that of the data set included."""
    return _found(setting, weights, data)[0] is not None


def _found(setting: str | Mapping[str, Any] | None, weights: str | None, data: ImageData) -> tuple[Normalisation | None, str]:
    if weights is None:
        return None, ""
    if setting is not None:
        return chosen(setting, data), "the spec"
    if weights.startswith(_TORCHVISION):
        return stated_by_torchvision(weights.removeprefix(_TORCHVISION), data), "torchvision"
    stated = beside(Path(weights), data)
    return (None, "") if stated is None else stated
