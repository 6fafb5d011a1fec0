"""Images that are too many for a GPU's memory: they stay in the machine's memory, and a batch is copied when it is read."""

from collections.abc import Iterable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from stillhouse.data.read_ahead import ReadAhead, pinned_like

RESIDENT_SHARE = 0.2
"""The largest part of a process's GPU memory that the images of a split may take."""


class HostImages:
    """The images of one split, uint8 [N, C, H, W] on the CPU, whose batches are put on a device.

    It has those members of a tensor of images that are used: `shape`, `dtype`, `device`, `to`, `len`, slices, `index_select`.

    Args:
        images: on the CPU.
        device: where batches are put.
    """

    def __init__(self, images: Tensor, device: str | torch.device) -> None:
        self._images = images
        self.device = torch.device(device)
        self.shape, self.dtype = images.shape, images.dtype
        self._ahead = ReadAhead(self._read)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, places: slice) -> Tensor:
        return self._sent(self._images[places])

    def to(self, device: str | torch.device) -> "HostImages":
        """The same images, put on `device` batch by batch."""
        return self if torch.device(device) == self.device else HostImages(self._images, device)

    def index_select(self, dim: int, indices: Tensor) -> Tensor:
        """The pixels of the samples `indices` [B], uint8 [B, C, H, W]; indices on the CPU are read without waiting."""
        assert dim == 0, "images are selected by sample"
        return self._sent(self._ahead.take(indices.cpu()))

    def ahead(self, batches: Iterable[Tensor]) -> AbstractContextManager[None]:
        """A context in which the batches that `index_select` will read next are gathered in the background.

        Args:
            batches: their indices [B], in order. If a batch is not read in its turn, only work is lost.
        """
        return self._ahead.over(batches)

    def _read(self, indices: Tensor) -> Tensor:
        pixels = pinned_like((len(indices), *self.shape[1:]), self.dtype, self.device)
        return torch.index_select(self._images, 0, indices, out=pixels)

    def _sent(self, pixels: Tensor) -> Tensor:
        return pixels.to(self.device, non_blocking=True)
