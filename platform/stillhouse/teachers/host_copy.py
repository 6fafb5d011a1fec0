"""Computed knowledge on its way from the teacher's device into the machine's memory."""

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from stillhouse.data.read_ahead import to_host
from stillhouse.device import DeviceClock
from stillhouse.distill.sources import Finiteness

_DTYPES = {"float32": torch.float32, "float16": torch.float16}


class HostCopy:
    """A batch's knowledge in the number format of sealed views.

    On a GPU, values are rounded before they travel, and the copy into pinned memory is queued after the computation, so that
    the processor can queue the next batch at once. `wait` must be called before anything is read.

    Args:
        values: {kind: [B, ...]} on the teacher's device.
        dtype: float32 or float16.
        finiteness: has noted the values and the outputs.
        clock: was started before the computation was queued.
    """

    def __init__(self, values: Mapping[str, Tensor], dtype: str, finiteness: Finiteness, clock: DeviceClock) -> None:
        wanted = _DTYPES[dtype]
        whole = {name: value.float() for name, value in values.items()}
        self._values = {name: to_host(value.to(wanted)) for name, value in whole.items()}
        # What a value was before it became infinite in the smaller format.
        narrowed = whole if wanted != torch.float32 else {}
        self._largest = {name: to_host(value.abs().amax()) for name, value in narrowed.items()}
        self._finiteness = finiteness
        finiteness.send_to_host()
        self._clock = clock
        clock.stop()

    @property
    def seconds(self) -> float:
        """What the device took to compute and to copy; after `wait`."""
        return self._clock.seconds

    def wait(self) -> None:
        """Returns when all values have arrived.

        Raises:
            TrialError: the teacher's outputs are not all finite.
        """
        self._clock.wait()
        self._finiteness.check()

    def rows(self, name: str) -> NDArray[Any]:
        """[B, ...] of this kind."""
        array: NDArray[Any] = self._values[name].numpy()
        return array

    def largest(self, name: str) -> float | None:
        """The largest magnitude of a value before it was rounded; None where nothing was."""
        return float(self._largest[name]) if name in self._largest else None
