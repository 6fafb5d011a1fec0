"""A student with its preprocessing inside: it takes images as files and cameras give them, uint8 [batch, height, width, C].

Resizing does what `PIL.ImageOps.fit` with `Image.Resampling.BILINEAR` does: the largest window of the student's proportions in
the middle of the image, then triangles as wide as a pixel of the smaller of both images, rounded to whole numbers after the
horizontal and after the vertical pass. Both passes are products with a matrix that is computed from the image's size, so that
the graph takes images of any size. B images, C channels, H and W.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.export import Dim

from stillhouse.data.images import ImageData
from stillhouse.errors import UsageError, describe_error
from stillhouse.export import onnx
from stillhouse.export.agreement import Agreement, agreement

FILE = "student.raw.onnx"
_MAX_IMAGES = 128
_BATCH = 2
_RESIZED_TOLERANCE = 0.05
"""Of the largest output. Pillow computes with 22 fractional bits, we in float32: pixels near .5 may round to another number."""


class WithPreprocessing(nn.Module):
    """Outputs for raw images.

    Args:
        network: takes normalised float32 [B, C, H, W].
        mean: of each channel, with pixels in [0, 1]; so is `std`.
        size: (H, W) to which images are resized; None for images that have the network's size already.
    """

    def __init__(
        self, network: nn.Module, mean: Sequence[float], std: Sequence[float], size: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self._size = size
        self.register_buffer("_mean", torch.tensor([255.0 * value for value in mean]).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor([255.0 * value for value in std]).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.permute(0, 3, 1, 2).float()
        if self._size is not None:
            pixels = fit(pixels, self._size)
        outputs: Tensor = self.network((pixels - self.get_buffer("_mean")) / self.get_buffer("_std"))
        return outputs


def fit(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Whole numbers as float32 [B, C, H, W] cut to the proportions of `size` in the middle, and resized to it."""
    height, width = size
    high, wide = _length(pixels, 2), _length(pixels, 3)
    used_wide = torch.minimum(wide, high * (width / height))
    used_high = torch.minimum(high, wide * (height / width))
    across = _weights(_positions(pixels, 3), (wide - used_wide) / 2, used_wide, width)
    down = _weights(_positions(pixels, 2), (high - used_high) / 2, used_high, height)
    return _whole(down @ _whole(pixels @ across.T))


def _positions(pixels: Tensor, axis: int) -> Tensor:
    return torch.arange(pixels.shape[axis], dtype=torch.float32, device=pixels.device)


def _length(pixels: Tensor, axis: int) -> Tensor:
    """The number of rows or columns as a tensor, so that the graph computes with it and is not made for one size."""
    return _positions(pixels, axis).amax(0) + 1


def _weights(positions: Tensor, start: Tensor, used: Tensor, length: int) -> Tensor:
    """[length, pixels]: the share of each pixel in each of `length` new ones, which cover `used` pixels from `start` on."""
    scale = used / length
    centres = start + (torch.arange(length, dtype=torch.float32, device=positions.device) + 0.5) * scale
    reach = scale.clamp(min=1.0)
    weights = (1 - ((positions + 0.5).unsqueeze(0) - centres.unsqueeze(1)).abs() / reach).clamp(min=0.0)
    return weights / weights.sum(1, keepdim=True)


def _whole(values: Tensor) -> Tensor:
    return (values + 0.5).floor().clamp(0, 255)


def save_raw_onnx(network: nn.Module, data: ImageData, path: Path, output: str, *, resized: bool) -> Agreement:
    """Writes the student with its preprocessing as ONNX, and compares it by onnxruntime with PyTorch.

    The images of the comparison have the network's size, which are prepared as in training, and where images are resized also a
    third more rows and half as many columns again, which Pillow resizes.

    Args:
        network: in evaluation mode, on the CPU.
        output: what the output is called, such as `logits`.

    Raises:
        UsageError: torch or ONNX cannot express the network, or the file does not return what the network does.
    """
    _, height, width = data.input_shape
    module = WithPreprocessing(network, data.mean, data.std, (height, width) if resized else None).eval()
    images = data.for_checks.images[:_MAX_IMAGES].permute(0, 2, 3, 1).contiguous()
    larger = _enlarged(images, (height * 4 // 3, width * 3 // 2)) if resized else None
    sizes = {0: Dim("batch"), **({1: Dim("height"), 2: Dim("width")} if resized else {})}
    example = (images if larger is None else larger)[:_BATCH]
    try:
        traced = torch.export.export(module, (example,), dynamic_shapes=(sizes,))
    except Exception as error:
        raise UsageError(f"torch.export cannot trace the student with its preprocessing: {describe_error(error)}") from error
    onnx.save_onnx(traced, path, output, sizes={axis: each.__name__ for axis, each in sizes.items()})
    onnx.check_onnx(path)
    answer = onnx.load_answer(path)
    found = agreement(_ByHand(network, data), answer, images, what=path.name)
    if larger is None:
        return found
    return agreement(_ByHand(network, data), answer, larger, what=path.name, tolerance=_RESIZED_TOLERANCE).joined(found)


class _ByHand(nn.Module):
    """The reference: images resized by Pillow and normalised as in training."""

    def __init__(self, network: nn.Module, data: ImageData) -> None:
        super().__init__()
        self._network = network
        self._data = data

    def forward(self, images: Tensor) -> Tensor:
        _, height, width = self._data.input_shape
        if images.shape[1:3] != (height, width):
            images = torch.stack([_fitted(image, (height, width)) for image in images])
        outputs: Tensor = self._network(self._data.normalise(images.permute(0, 3, 1, 2)))
        return outputs


def _fitted(image: Tensor, size: tuple[int, int]) -> Tensor:
    """One raw image as Pillow fits it, plane by plane."""
    height, width = size
    planes = [Image.fromarray(plane.numpy()) for plane in image.unbind(2)]
    fitted = [np.asarray(ImageOps.fit(plane, (width, height), Image.Resampling.BILINEAR)) for plane in planes]
    return torch.from_numpy(np.stack(fitted, axis=2))


def _enlarged(images: Tensor, size: tuple[int, int]) -> Tensor:
    return torch.stack([_fitted(image, size) for image in images])
