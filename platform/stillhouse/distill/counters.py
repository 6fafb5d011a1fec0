"""Whole numbers that a method remembers between steps, in checkpoints and without waiting for the device."""

from typing import Any

import torch
from torch import nn


class Counters(nn.Module):
    """A module with numbers in its state that a step may read: they are buffers on the device, and known to the processor.

    Reading a buffer on a GPU waits until the GPU has finished everything before; here it happens once after a checkpoint was
    loaded.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[str, int] = {}
        self.register_load_state_dict_post_hook(_forget)  # type: ignore[no-untyped-call]

    def register_count(self, name: str, value: int) -> None:
        """Adds a number to the module's state, as a buffer of this name."""
        self.register_buffer(name, torch.tensor(value))
        self._known[name] = value

    def count(self, name: str) -> int:
        """The number `name`."""
        if name not in self._known:
            self._known[name] = int(self.get_buffer(name))
        return self._known[name]

    def set_count(self, name: str, value: int) -> None:
        self.get_buffer(name).fill_(value)
        self._known[name] = value


def _forget(module: nn.Module, _keys: Any) -> None:
    assert isinstance(module, Counters)
    module._known.clear()
