"""Degraded images, by which robustness is judged: noise, blur, and what JPEG loses, each of one fixed strength.

All is integer arithmetic, and the noise of a pixel depends on its place in the split alone: the same pixels on every machine
and in every batch. The strengths are near those of severity 3 in CIFAR-10-C (1903.12261). B images, C channels, H and W.
"""

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import cache
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stillhouse.data.hashing import derive_key, hash_counters
from stillhouse.data.images import Images, Split, read_ahead

VERSION = 1
"""Must be increased when a degradation gives other pixels than before."""

_BLOCK = 8
_SCALE_BITS = 12
_QUALITY_25 = 2
"""Times the table below: what the Independent JPEG Group's library makes of quality 25."""
_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
"""ITU-T T.81, table K.1."""


def noise(images: Tensor, first: int) -> Tensor:
    """Adds to each value a number of nearly normal distribution with mean 0 and deviation 20: a sum of four random bytes.

    Args:
        images: uint8 [B, C, H, W], consecutive samples of a split.
        first: the place of the first of them.
    """
    values = images[0].numel()
    words = -(-values // 2)
    counters = np.arange(first * words, (first + len(images)) * words)
    hashes = hash_counters(derive_key("degradation", VERSION, "noise"), counters)
    sums = hashes.astype("<u8").view(np.uint8).reshape(len(images), 2 * words, 4).sum(axis=2, dtype=np.int32)
    # The sum of four bytes has the mean 510 and the deviation 147.8; 69 / 512 of that is 19.9.
    added = torch.from_numpy(((sums[:, :values] - 510) * 69 + 256) >> 9).view(images.shape)
    return (images + added.to(images.device)).clamp(0, 255).to(torch.uint8)


def blur(images: Tensor, _first: int = 0) -> Tensor:
    """Weighs each pixel and its neighbours by (1, 2, 1) / 4 in both directions, once for every 16 pixels of the shorter side.

    The deviation of the blur is 0.7 pixels at 28x28, 1.0 at 32x32 and 2.6 at 224x224. Borders are repeated.
    """
    pixels = images.to(torch.int32)
    for _ in range(max(1, min(images.shape[2:]) // 16)):
        padded = _repeat_borders(pixels, (1, 1, 1, 1))
        rows = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
        pixels = (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:] + 8) >> 4
    return pixels.to(torch.uint8)


def jpeg(images: Tensor, _first: int = 0) -> Tensor:
    """Rounds the cosine transform of each block of 8x8 as JPEG does at quality 25; each channel as JPEG's luminance.

    The transform's matrix has 12 fractional bits. Sums of its products are whole numbers below 2^53, which float64 adds
    exactly in any order.
    """
    batch, channels, height, width = images.shape
    below, beside = -height % _BLOCK, -width % _BLOCK
    pixels = _repeat_borders(images.to(torch.int32) - 128, (0, beside, 0, below))
    high, wide = (height + below) // _BLOCK, (width + beside) // _BLOCK
    blocks = pixels.view(batch, channels, high, _BLOCK, wide, _BLOCK).transpose(3, 4).double()
    matrix, steps = (each.to(images.device) for each in _tables())
    spectrum = (matrix @ blocks @ matrix.T).long()
    unit = 1 << (2 * _SCALE_BITS)
    rounded = torch.div(spectrum + steps * (unit // 2), steps * unit, rounding_mode="floor") * steps
    restored = ((matrix.T @ rounded.double() @ matrix).long() + unit // 2) >> (2 * _SCALE_BITS)
    whole = restored.transpose(3, 4).reshape(batch, channels, height + below, width + beside)
    return (whole[:, :, :height, :width] + 128).clamp(0, 255).to(torch.uint8)


DEGRADATIONS: dict[str, Callable[[Tensor, int], Tensor]] = {"noise": noise, "blur": blur, "jpeg": jpeg}
"""By name: a function of consecutive images of a split and the place of the first."""


def degraded(split: Split, name: str) -> Split:
    """The split with its images degraded when they are read; labels are the same.

    Args:
        name: of `DEGRADATIONS`.
    """
    return Split(cast("Tensor", _DegradedImages(split.images, DEGRADATIONS[name])), split.labels, split.name)


class _DegradedImages:
    """Images that are read in consecutive batches, as an evaluation reads them."""

    def __init__(self, images: Images, change: Callable[[Tensor, int], Tensor]) -> None:
        self._images = images
        self._change = change
        self.shape = images.shape
        self.dtype = images.dtype

    def __getitem__(self, rows: slice) -> Tensor:
        first, _, step = rows.indices(self.shape[0])
        if step != 1:
            raise ValueError(f"degraded images are read in consecutive batches, got {rows}")
        return self._change(self._images[rows], first)

    def ahead(self, batches: Iterable[Tensor]) -> AbstractContextManager[None]:
        return read_ahead(self._images, batches)


def _repeat_borders(pixels: Tensor, sides: tuple[int, int, int, int]) -> Tensor:
    """Pads left, right, top and bottom of int32 [B, C, H, W]."""
    # float32 holds these numbers exactly; padding is not implemented for whole numbers.
    return F.pad(pixels.float(), sides, mode="replicate").to(torch.int32)


@cache
def _tables() -> tuple[Tensor, Tensor]:
    """The matrix of the cosine transform in 1 / 2^12, float64 [8, 8], and the steps of rounding, int64 [8, 8]."""
    cosines = [[math.cos((2 * place + 1) * row * math.pi / 16) for place in range(_BLOCK)] for row in range(_BLOCK)]
    lengths = [math.sqrt((1 if row == 0 else 2) / _BLOCK) for row in range(_BLOCK)]
    rows = [[round((1 << _SCALE_BITS) * length * each) for each in row] for row, length in zip(cosines, lengths, strict=True)]
    return torch.tensor(rows, dtype=torch.float64), _QUALITY_25 * torch.tensor(_LUMINANCE, dtype=torch.int64)
