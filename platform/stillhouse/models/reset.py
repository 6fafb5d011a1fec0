"""Fresh random weights for a model that brings its own, such as those that a user's function reads from a file."""

from collections.abc import Callable

import torch
from torch import nn

_RESETS = ("reset_parameters", "_reset_parameters")
"""What PyTorch's layers call the function that draws their weights."""


def reset_problem(model: nn.Module) -> str | None:
    """Which layer cannot draw new weights, in words; None if all can."""
    for name, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is not None and _reset_of(module) is None:
            where = f"layer '{name}'" if name else "the model itself"
            return f"{where} ({type(module).__name__}) has weights, but no function reset_parameters"
    return None


def reset_weights(model: nn.Module, seed: int) -> nn.Module:
    """The model with new random weights, a function of the seed.

    Raises:
        ValueError: a layer has weights and cannot draw new ones.
    """
    if (problem := reset_problem(model)) is not None:
        raise ValueError(problem)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in model.modules():
            if (reset := _reset_of(module)) is not None:
                reset()
    return model


def _reset_of(module: nn.Module) -> Callable[[], None] | None:
    found = (getattr(module, name, None) for name in _RESETS)
    return next((each for each in found if callable(each)), None)
