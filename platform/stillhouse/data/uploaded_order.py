"""The indices that an epoch will read, copied to a device once."""

from collections import deque
from collections.abc import Iterable

import torch
from torch import Tensor

from stillhouse.data.read_ahead import pinned_like


class UploadedOrder:
    """Indices on a device, in the order in which parts of them will be taken.

    Args:
        parts: the coming parts, int64 [B] each on the CPU.
        device: to which all of them are copied now.
    """

    def __init__(self, parts: Iterable[Tensor], device: str) -> None:
        self._device = torch.device(device)
        self._parts = deque(parts)
        self._first = 0
        whole = torch.cat([*self._parts]) if self._parts else torch.empty(0, dtype=torch.int64)
        self._order = pinned_like(tuple(whole.shape), whole.dtype, self._device).copy_(whole).to(device, non_blocking=True)

    def take(self, part: Tensor) -> Tensor:
        """The part [B] on the device; copied alone if it is not the next one."""
        if not self._parts or not torch.equal(self._parts[0], part):
            return part.to(self._device, non_blocking=True)
        first, self._first = self._first, self._first + len(self._parts.popleft())
        return self._order[first : self._first]
