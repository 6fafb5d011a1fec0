"""Inputs of the right shape and type for a model, of no particular content: to know its layers, its size and its speed."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from stillhouse.models.layers import Shape


def example_input(model: nn.Module, count: int, input_shape: Shape) -> Tensor:
    """Zeros for a batch of `count` samples, on the model's device.

    They are [count, *input_shape] in the model's floating dtype. A model that reads something else says so: by an attribute
    `input_dtype`, such as `torch.int64` for token ids, or by a method `example_input(count)`, which returns the batch.

    Args:
        model: may be on the meta device.
        input_shape: of one sample of the data set, (channels, height, width) for images.
    """
    own: Callable[[int], Tensor] | None = getattr(model, "example_input", None)
    if own is not None:
        return own(count)
    weight = next((parameter for parameter in model.parameters() if parameter.is_floating_point()), torch.empty(0))
    dtype: torch.dtype | None = getattr(model, "input_dtype", None)
    return torch.zeros(count, *input_shape, device=weight.device, dtype=weight.dtype if dtype is None else dtype)
