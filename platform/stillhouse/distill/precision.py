"""The number format in which networks compute during a training: `training.mixed_precision`."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

Precision = Literal["off", "bfloat16", "float16"]
_HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """A context in which convolutions and matrix products on the device have the precision; `off` changes nothing."""
    return nullcontext() if precision == "off" else torch.autocast(device.type, dtype=_HALVES[precision])


def run_network(precision: Precision, network: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """What the network returns for the inputs, computed in the precision; float32 unless that is `off`."""
    with autocast(precision, inputs[0].device):
        output = network(*inputs)
    return output if precision == "off" else output.float()
