"""How many layers a model may have. Checks of a plan take about a millisecond for each layer of each student."""

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from stillhouse.errors import UsageError

MAX_LAYERS = 10_000
"""Modules of a model, containers included. The ResNet of 1,001 layers (arXiv 1603.05027) has 3,400."""
_MAX_REGISTRATIONS = 5 * MAX_LAYERS
"""Parameters and modules that a model adds to its modules while it is built; some are replaced afterwards."""


class TooManyLayersError(UsageError):
    """The model has too many layers, or its function does not stop to add some."""

    def __init__(self, model: str, count: str) -> None:
        super().__init__(f"{model} must have at most {MAX_LAYERS:,} layers, it has {count}; use fewer")


@contextmanager
def bounded_building(model: str) -> Iterator[None]:
    """A context in which this thread builds a model.

    Raises:
        TooManyLayersError: as soon as the model is certain to have too many layers.
    """
    thread, count = threading.get_ident(), itertools.count(1)

    def registered(_module: nn.Module, _name: str, _what: object) -> None:
        if threading.get_ident() == thread and next(count) > _MAX_REGISTRATIONS:
            raise TooManyLayersError(model, f"more than {MAX_LAYERS:,}")

    handles = [
        register_module_module_registration_hook(registered),
        register_module_parameter_registration_hook(registered),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_layers(model: str, built: nn.Module) -> None:
    """Refuses a model with too many layers.

    Raises:
        TooManyLayersError: it has.
    """
    if (count := sum(1 for _ in built.modules())) > MAX_LAYERS:
        raise TooManyLayersError(model, f"{count:,}")
