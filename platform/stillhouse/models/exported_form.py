"""The form in which a network leaves the platform: one that returns one tensor."""

from collections.abc import Callable

from torch import nn


def exported_form(model: nn.Module) -> nn.Module:
    """The network that users run, in evaluation mode, with the same weights.

    It is the model itself, unless that has a method `exported_form()`, as one that returns several tensors.
    """
    own: Callable[[], nn.Module] | None = getattr(model, "exported_form", None)
    return (model if own is None else own()).eval()
