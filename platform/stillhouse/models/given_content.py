"""The weights that a user-defined model brings with it, such as those that its function reads from a file."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.models.layers import Shape
from stillhouse.models.registry import brings_weights, build_model
from stillhouse.models.weights import state_hash

_SEEDS = (0, 1)


def given_content(model: str, options: Mapping[str, Any], num_classes: int, input_shape: Shape) -> str:
    """Hash of the initial weights that no seed changes, constant ones apart; empty where there are none.

    The text of the function does not tell when a file that it reads is replaced; these weights do. Shipped models and
    those of libraries have none, but for those that come from a folder.
    """
    if not brings_weights(model):
        return ""
    first, second = (_initial(model, options, num_classes, input_shape, seed) for seed in _SEEDS)
    given = {
        name: value
        for name, value in first.items()
        if name in second and torch.equal(value, second[name]) and not _is_constant(value)
    }
    return state_hash(given) if given else ""


def _is_constant(value: Tensor) -> bool:
    """Such as the weights of a new batch normalisation."""
    return value.numel() < 2 or bool((value == value.flatten()[0]).all())


def _initial(model: str, options: Mapping[str, Any], num_classes: int, input_shape: Shape, seed: int) -> Mapping[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built: nn.Module = build_model(model, num_classes=num_classes, input_shape=input_shape, **options)
    return {name: value for name, value in built.state_dict().items() if isinstance(value, Tensor)}
