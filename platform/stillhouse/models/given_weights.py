"""Weights that a spec names: a file, a folder of timm, torchvision's published ones, or timm's in the local cache."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from stillhouse.durable import bytes_hash
from stillhouse.errors import InfrastructureError, UnknownNameError, UsageError
from stillhouse.models.checkpoint_files import Checkpoint, checkpoint_file, open_checkpoint
from stillhouse.models.heads import head_weights
from stillhouse.models.layers import Shape
from stillhouse.models.registry import sketch_model
from stillhouse.models.timm_models import stated_configuration, timm_name
from stillhouse.models.torchvision_models import model_of_weights
from stillhouse.models.weight_names import renamed
from stillhouse.models.weights import load_state

TORCHVISION, TIMM, MLFLOW = "torchvision:", "timm:", "mlflow:"
Named = tuple[str, Mapping[str, Any], int, Shape]
_CLASSES_OF_IMAGENET = 1000
_TIMM_FILES = ("model.safetensors", "pytorch_model.bin")
# Of classifiers that are used in training only, and that our models leave out.
_AUXILIARY = re.compile(r"^(aux1|aux2|AuxLogits)\.")


def open_given(reference: str) -> Checkpoint:
    """The weights that `reference` names. Those of torchvision are downloaded once, into torch's own cache, and verified.

    Args:
        reference: the path of a file or folder, `torchvision:<weights enum>` or `timm:<name>`.

    Raises:
        UsageError: there are no such weights, or they cannot be read.
        InfrastructureError: a download fails.
    """
    if not reference.startswith(TORCHVISION):
        return open_checkpoint(local_weights(reference))
    weights, name = torchvision_enum(reference), reference.removeprefix(TORCHVISION)
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise InfrastructureError(f"torchvision could not fetch the weights '{name}': {error}") from error
    return Checkpoint({key: value for key, value in state.items() if not _AUXILIARY.match(key)}, "", ())


def read_start(start: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a start under the names of the model.

    Args:
        start: `weights` as `open_given` takes them, and `rename`.

    Raises:
        UsageError: as `open_given`, or an entry of `rename` cannot be applied.
    """
    reference = str(start["weights"])
    return renamed(open_given(reference).weights, start.get("rename") or {}, reference)


def load_start(
    model: nn.Module, start: Mapping[str, Any], *, named: Named, weights: Mapping[str, Tensor] | None = None
) -> None:
    """Copies the weights of a start into a model; those of a new head stay as they are.

    Args:
        start: `weights`, `rename` and `head`.
        named: the model's name and options, the number of classes, and the shape of an image.
        weights: as `read_start` returns them, if they were read before.

    Raises:
        UsageError: they cannot be read or do not fit the model.
    """
    fresh = head_weights(*named) if start.get("head") == "new" else frozenset()
    state = read_start(start) if weights is None else weights
    load_state(model, state, source=str(start["weights"]), left_as_is=fresh)


def is_here(reference: str) -> bool:
    """Whether the weights can be read without a download; True for those that are never downloaded."""
    return not reference.startswith(TORCHVISION) or torchvision_file(reference).is_file()


def foreseen(reference: str) -> dict[str, Tensor]:
    """Torchvision's weights without storage, before they are downloaded: their names and shapes.

    Raises:
        UsageError: torchvision has no such weights, or they are of no model for classification.
    """
    published = torchvision_enum(reference)
    model = model_of_weights(type(published))
    if model is None:
        raise UsageError(f"{reference} are weights of no classification model")
    classes = len(published.meta.get("categories") or ()) or _CLASSES_OF_IMAGENET
    return dict(sketch_model(f"{TORCHVISION}{model}", num_classes=classes, input_shape=(3, 224, 224)).state_dict())


def local_weights(reference: str) -> str:
    """The path of the weights, with the key in it; that in the local cache for `timm:<name>`.

    Raises:
        UsageError: timm has no such weights, or they are not in the cache.
    """
    return str(timm_file(reference)) if reference.startswith(TIMM) else reference


def content_of(reference: str) -> dict[str, str]:
    """What tells the weights from others in a key: the name of torchvision's, the content of files.

    Raises:
        UsageError: as `local_weights`.
        OSError: the file cannot be read.
    """
    if reference.startswith((TORCHVISION, MLFLOW)):
        return {"weights": reference}
    file, key = checkpoint_file(local_weights(reference))
    return {"weights": bytes_hash(file.read_bytes()), **({"weights_key": key} if key else {})}


def torchvision_enum(reference: str) -> Any:
    """The member of torchvision's weights enums.

    Raises:
        UnknownNameError: there is none.
    """
    from torchvision.models import get_weight

    name = reference.removeprefix(TORCHVISION)
    try:
        return get_weight(name)
    except (KeyError, ValueError, AttributeError) as error:
        raise UnknownNameError(f"torchvision has no weights '{name}'; write them as ResNet18_Weights.IMAGENET1K_V1") from error


def torchvision_file(reference: str) -> Path:
    """Where torch's cache has the weights, or would have them."""
    return _in_cache_of_torch(torchvision_enum(reference).url)


def timm_file(reference: str) -> Path:
    """The file of published weights in the local cache of Hugging Face or torch; nothing is downloaded.

    Raises:
        UsageError: timm has no such weights, or they are not in the cache.
    """
    name = timm_name(reference)
    stated = stated_configuration(reference)
    for file in _TIMM_FILES if stated.get("hf_hub_id") else ():
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(stated["hf_hub_id"], file)
        if isinstance(found, str):
            return Path(found)
    if stated.get("url") and (file_of_torch := _in_cache_of_torch(stated["url"])).is_file():
        return file_of_torch
    raise UsageError(
        f"timm's weights '{name}' are not in the local cache, and nothing is downloaded; fetch them once with "
        f"python -c \"import timm; timm.create_model('{name}', pretrained=True)\", or name a file"
    )


def stated_by_weights(reference: str) -> Mapping[str, Any]:
    """What published weights of torchvision or timm state: `mean`, `std` and `input_size`, as far as they do; {} for files."""
    if reference.startswith(TIMM):
        return stated_configuration(reference)
    if not reference.startswith(TORCHVISION):
        return {}
    try:
        transforms = torchvision_enum(reference).transforms()
    except (UnknownNameError, TypeError):
        return {}
    stated = {"mean": getattr(transforms, "mean", None), "std": getattr(transforms, "std", None)}
    side = getattr(transforms, "crop_size", None)
    size = {} if not side else {"input_size": (3, side[0], side[0])}
    return {**{key: value for key, value in stated.items() if value is not None}, **size}


def _in_cache_of_torch(url: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
