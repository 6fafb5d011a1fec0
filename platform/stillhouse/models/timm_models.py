"""Models of timm (PyTorch Image Models) by name, with random weights; the extra `timm` installs the library.

They are unchanged except for four things: activations do not work in place, which would overwrite the outputs that hooks read;
the stages are those of timm's `feature_info`, with further layers where they are no maps (`models.stage_maps`); the layer
before the classifier is the embedding; and images are scaled inside a network that takes one size only.
"""

import warnings
from collections.abc import Mapping
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import nn

from stillhouse.errors import UsageError, did_you_mean
from stillhouse.models.layers import Resize, Shape
from stillhouse.models.stage_maps import Stage, add_stage_maps, output_shapes

PREFIX = "timm:"
INSTALL = "pip install 'stillhouse[timm]'"


def timm_library() -> ModuleType:
    """`timm`, imported at its first use.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise UsageError(f"{PREFIX} needs the library timm; run: {INSTALL}") from error
    library: ModuleType = timm
    return library


@lru_cache(maxsize=4096)
def timm_name(name: str) -> str:
    """The name without `timm:`, checked.

    Args:
        name: an architecture, `resnet18`, or one with the tag of its published weights, `resnet18.a1_in1k`.

    Raises:
        UsageError: timm is not installed, or has no such model or tag.
    """
    library, bare = timm_library(), name.removeprefix(PREFIX)
    if not library.is_model(bare):
        raise UsageError(f"timm has no model '{bare}'{did_you_mean(bare, library.list_models())}")
    if "." in bare and bare not in (known := library.list_pretrained(f"{bare.partition('.')[0]}.*")):
        raise UsageError(f"timm has no weights '{bare}'{did_you_mean(bare, known)}")
    return bare


def stated_configuration(name: str) -> Mapping[str, Any]:
    """What timm's configuration states of published weights: `input_size`, `mean`, `std`, `fixed_input_size`, and more.

    Raises:
        UsageError: as `timm_name`.
    """
    found = timm_library().get_pretrained_cfg(timm_name(name))
    return found.to_dict() if found is not None else {}


def build_timm(
    name: str,
    *,
    num_classes: int,
    input_shape: Shape,
    resize: int | None = None,
    dropout: float | None = None,
    drop_path: float | None = None,
) -> nn.Module:
    """Timm's model `name` with random weights.

    Args:
        name: as `timm_name`.
        num_classes: number of logits.
        input_shape: (channels, height, width).
        resize: side to which images are scaled inside the model, and for which a network that takes one size only is built;
            None scales them to the architecture's size for such networks, and not at all for others.
        dropout: before the classifier; None is the architecture's own.
        drop_path: the rate at which blocks are skipped in training; None is the architecture's own.

    Raises:
        UsageError: as `timm_name`.
    """
    stated = stated_configuration(name)
    given = {"drop_rate": dropout, "drop_path_rate": drop_path}
    options: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    side = resize
    if stated.get("fixed_input_size"):
        usual = int(stated["input_size"][1])
        side = resize or usual
        if side != usual:
            options["img_size"] = side
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice to timm's own callers, such as on names of earlier versions
        model: nn.Module = timm_library().create_model(
            timm_name(name), pretrained=False, num_classes=num_classes, in_chans=input_shape[0], **options
        )
    for module in model.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]  # nn.Module types its attributes as Tensor | Module
    inside = input_shape if side is None else (input_shape[0], side, side)
    shapes = _shapes(name, tuple(sorted(options.items())), num_classes, inside)
    if _in_rows(model):
        add_stage_maps(model, _stages(model), shapes, inside)
    if (pooled := _pooled(model, shapes)) is not None:
        model.pooled_layer = pooled  # type: ignore[assignment]
    if side is not None and tuple(input_shape[1:]) != (side, side):
        model.register_forward_pre_hook(Resize(side))
    return model


@lru_cache(maxsize=256)
def _shapes(name: str, options: tuple[tuple[str, Any], ...], num_classes: int, inside: Shape) -> Mapping[str, tuple[int, ...]]:
    """The shapes of all layers' outputs for images of one shape, from a pass without storage.

    Raises:
        RuntimeError: the images are too small for the network.
    """
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        model = timm_library().create_model(
            timm_name(name), pretrained=False, num_classes=num_classes, in_chans=inside[0], **dict(options)
        )
        return output_shapes(model, inside)


def _stages(model: nn.Module) -> list[Stage]:
    known = getattr(model, "feature_info", None) or []
    entries = getattr(known, "info", known)
    return [Stage(each["module"], each["num_chs"], each["reduction"]) for each in entries if each.get("module")]


def _in_rows(model: nn.Module) -> bool:
    """Whether tokens follow the image row by row: Hiera's are in the order of its windows."""
    return not hasattr(model, "unroll")


def _pooled(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The layer whose output the classifier receives; of several classifiers, the first one."""
    classifier = getattr(model, "get_classifier", lambda: None)()
    first = classifier[0] if isinstance(classifier, tuple | list) and classifier else classifier
    # Some classifiers normalise before their linear layer.
    linear = [module for module in (first.modules() if isinstance(first, nn.Module) else ()) if isinstance(module, nn.Linear)]
    name = next((name for name, module in model.named_modules() if linear and module is linear[-1]), None)
    if name is None or name not in shapes:
        return None
    before = list(shapes)[: list(shapes).index(name)]
    return next((layer for layer in reversed(before) if shapes[layer] == (linear[-1].in_features,)), None)
