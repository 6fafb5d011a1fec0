"""How a network expects its pixels: a mean and a deviation for each channel, and the usual choices by name."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from stillhouse.data.images import ImageData
from stillhouse.errors import UsageError
from stillhouse.spec.schema import NORMALIZATIONS

DATASET = "dataset"
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Of the training images of ImageNet, as torchvision's and timm's weights use them."""
_RANGES = {"0..1": (0.0, 1.0), "-1..1": (0.5, 0.5), "0..255": (0.0, 1 / 255)}
"""Mean and deviation with which pixels in [0, 1] get this range."""
NAMES = NORMALIZATIONS
OWN_EXPORT, TIMM_CONFIG = "preprocessing.json", "config.json"
TIMM_ATTRIBUTE = "pretrained_cfg"


@dataclass(frozen=True)
class Normalisation:
    """(pixel - mean) / std for each channel, with pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, data: ImageData) -> Self:
        """That of the data set, which its students use."""
        return cls(tuple(data.mean), tuple(data.std))

    @classmethod
    def from_values(cls, mean: Sequence[float], std: Sequence[float], channels: int) -> Self:
        """One value serves all channels.

        Raises:
            UsageError: the numbers of values are not 1 or `channels`, or a deviation is not positive.
        """
        if {len(mean), len(std)} - {1, channels} or any(value <= 0 for value in std):
            raise UsageError(
                f"needs 1 or {channels} values of mean and std, and std > 0, got mean {list(mean)} and std {list(std)}"
            )
        return cls(*(tuple(map(float, values)) * (channels if len(values) == 1 else 1) for values in (mean, std)))

    def __str__(self) -> str:
        mean, std = ([float(f"{value:.4g}") for value in values] for values in (self.mean, self.std))
        return f"mean {mean}, std {std}"

    def to_json(self) -> dict[str, list[float]]:
        return {"mean": list(self.mean), "std": list(self.std)}


def named(name: str, data: ImageData) -> Normalisation:
    """The normalisation of a name in `NAMES`.

    Raises:
        UsageError: it has another number of channels than the data.
    """
    channels = data.input_shape[0]
    if name == DATASET:
        return Normalisation.of(data)
    if name in _RANGES:
        mean, std = _RANGES[name]
        return Normalisation.from_values([mean], [std], channels)
    if channels != len(_IMAGENET[0]):
        raise UsageError(f"imagenet has 3 channels and the images have {channels}; give {{mean: [...], std: [...]}}")
    return Normalisation(*_IMAGENET)


def chosen(setting: str | Mapping[str, Any], data: ImageData) -> Normalisation:
    """The normalisation that a spec names or describes by `mean` and `std`.

    Raises:
        UsageError: it does not fit the data's channels.
    """
    if not data.mean:
        raise UsageError(f"normalization is of pixels, and {data.sample}s have none; remove it")
    if isinstance(setting, str):
        return named(setting, data)
    return Normalisation.from_values(setting["mean"], setting["std"], data.input_shape[0])


def alternatives(data: ImageData) -> dict[str, Normalisation]:
    """The usual normalisations that fit the data, by name."""
    return {name: named(name, data) for name in NAMES if name != "imagenet" or data.input_shape[0] == len(_IMAGENET[0])}


def beside(weights: Path, data: ImageData) -> tuple[Normalisation, str] | None:
    """What a file beside the weights says, and that file's name: of an export of ours, or of timm's configuration.

    None where there is none, or where it does not fit the channels.
    """
    for name in (OWN_EXPORT, TIMM_CONFIG):
        if (found := stated_in(configuration_beside(weights, name), data)) is not None:
            return found, name
    return None


def configuration_beside(weights: Path, name: str = TIMM_CONFIG) -> Any:
    """The content of a file beside the weights; of timm's, the part on published weights. None where there is none."""
    try:
        content = json.loads((weights.parent / name).read_bytes())
    except (OSError, ValueError):
        return None
    return content.get("pretrained_cfg", content) if name == TIMM_CONFIG and isinstance(content, dict) else content


def stated_by_model(model: object, data: ImageData) -> Normalisation | None:
    """What a network of timm, or one that has such an attribute, was trained with; None where it does not tell."""
    return stated_in(getattr(model, TIMM_ATTRIBUTE, None), data)


def stated_in(content: Any, data: ImageData) -> Normalisation | None:
    """The entries `mean` and `std` of a configuration; None where it has none, or where they do not fit the channels."""
    if not isinstance(content, Mapping):
        return None
    try:
        return Normalisation.from_values(list(content["mean"]), list(content["std"]), data.input_shape[0])
    except (KeyError, TypeError, ValueError, UsageError):
        return None
