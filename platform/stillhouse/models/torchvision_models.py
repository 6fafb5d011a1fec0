"""Torchvision's classification models by name, with random weights.

They are unchanged except for five things: the first convolution has the data's channels; activations do not work in place,
which would overwrite the outputs that hooks read; the pooling of models with `avgpool` and `fc` returns [B, K], so that the
embedding has a layer name; models with attention have layers that return maps (`models.stage_maps`); and `resize` scales images
to the side that an architecture requires (224 for the transformers).
"""

import importlib
from collections.abc import Mapping
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import nn

from stillhouse.models.layers import Resize, Shape
from stillhouse.models.stage_maps import Stage, add_stage_maps, output_shapes

# Models whose auxiliary classifiers would return more than logits in training.
_AUXILIARY = {"googlenet", "inception_v3"}
# Models that are built for one image size.
_SIZED = ("vit_",)
# The layers that end the stages of models with attention, whose other layers return tokens, windows or channels last.
_STAGES: Mapping[str, tuple[str, ...] | str] = {
    "swin_": tuple(f"features.{number}" for number in (1, 3, 5, 7)),
    "convnext_": tuple(f"features.{number}" for number in (1, 3, 5, 7)),
    "maxvit_": tuple(f"blocks.{number}" for number in range(4)),
    "vit_": "encoder.layers",
}
_CHANNELS_LAST = ("swin_", "vit_")


def _library() -> ModuleType:
    """`torchvision.models`, imported at its first use, since it doubles the start-up time of every worker."""
    return importlib.import_module("torchvision.models")


def torchvision_names() -> list[str]:
    names: list[str] = _library().list_models(module=_library())
    return names


def model_of_weights(kind: type) -> str | None:
    """The model whose published weights are members of the enum `kind`; None if it is none of `torchvision_names()`."""
    return next((name for name in torchvision_names() if _library().get_model_weights(name) is kind), None)


def build_torchvision(name: str, *, num_classes: int, input_shape: Shape, resize: int | None = None) -> nn.Module:
    """Torchvision's model `name` with random weights.

    Args:
        name: one of `torchvision_names()`.
        num_classes: number of logits.
        input_shape: (channels, height, width).
        resize: side to which images are scaled inside the model; None does not scale them.
    """
    options: dict[str, Any] = {"num_classes": num_classes}
    if name in _AUXILIARY:
        options |= {"aux_logits": False, "init_weights": False}
    if name.startswith(_SIZED):
        options["image_size"] = resize or input_shape[1]
    model: nn.Module = _library().get_model(name, weights=None, **options)
    if input_shape[0] != 3:
        _change_input_channels(model, input_shape[0])
    for module in model.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]  # nn.Module types its attributes as Tensor | Module
    pool = getattr(model, "avgpool", None)
    if isinstance(pool, nn.Module) and hasattr(model, "fc"):
        model.avgpool = nn.Sequential(pool, nn.Flatten())
        model.pooled_layer = "avgpool"  # type: ignore[assignment]
    inside = input_shape if resize is None else (input_shape[0], resize, resize)
    if (layers := _ends_of_stages(name, model)) is not None:
        shapes, last = _shapes(name, tuple(sorted(options.items())), inside), -1 if name.startswith(_CHANNELS_LAST) else 0
        reduction = int(getattr(model, "patch_size", 1))  # only where layers return tokens, as in vit
        add_stage_maps(model, [Stage(layer, shapes[layer][last], reduction) for layer in layers], shapes, inside)
    if resize is not None:
        model.register_forward_pre_hook(Resize(resize))
    return model


def _ends_of_stages(name: str, model: nn.Module) -> tuple[str, ...] | None:
    """The layers that end the stages of a model whose layers do not all return maps; None for others."""
    known = next((layers for prefix, layers in _STAGES.items() if name.startswith(prefix)), None)
    if isinstance(known, str):
        return tuple(f"{known}.{layer}" for layer, _ in model.get_submodule(known).named_children())
    return known


@lru_cache(maxsize=256)
def _shapes(name: str, options: tuple[tuple[str, Any], ...], inside: Shape) -> Mapping[str, tuple[int, ...]]:
    """The shapes of all layers' outputs for images of one shape, from a pass without storage."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model: nn.Module = _library().get_model(name, weights=None, **dict(options))
        if inside[0] != 3:
            _change_input_channels(model, inside[0])
        return output_shapes(model, inside)


def _change_input_channels(model: nn.Module, channels: int) -> None:
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            assert module.in_channels == 3, f"the first convolution takes {module.in_channels} channels"
            replacement = nn.Conv2d(
                channels,
                module.out_channels,
                kernel_size=module.kernel_size,  # type: ignore[arg-type]  # torch types it as tuple[int, ...]
                stride=module.stride,  # type: ignore[arg-type]
                padding=module.padding,  # type: ignore[arg-type]
                bias=module.bias is not None,
            )
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, replacement)
            return
