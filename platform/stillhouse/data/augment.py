"""The operations of a view policy, in integer arithmetic: the same pixels on every device and in every batch.

Each operation *draws* its parameters for all samples of a view at once and *applies* them to a batch. A draw depends only
on (key, sample index), and the pixels only on the parameters. B batch, C channels, H and W height and width, N samples.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillhouse.data.hashing import derive_key, integers, permutation, uniform
from stillhouse.errors import Problem

Shape = tuple[int, ...]
Parameters = Mapping[str, Tensor]
_TABLE_SIZE = 4096
_CUTOUT_SIZE = 8


@dataclass(frozen=True)
class Draws:
    """The random numbers of one operation in one view: one per sample, by parameter name."""

    key: tuple[str | int, ...]
    num_samples: int

    def uniform(self, name: str) -> NDArray[np.float64]:
        """Floats in [0, 1), [N]."""
        return uniform(derive_key(*self.key, name), np.arange(self.num_samples))

    def integers(self, name: str, bound: int) -> NDArray[np.int64]:
        """Integers in [0, bound), [N]."""
        return integers(derive_key(*self.key, name), np.arange(self.num_samples), bound)

    def permutation(self, name: str) -> NDArray[np.int64]:
        return permutation(derive_key(*self.key, name), self.num_samples)


def _option(default: Any, must: str, holds: Callable[[Any], bool]) -> Any:
    return field(default=default, metadata={"must": must, "holds": holds})


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_range(value: Any, low: float, high: float) -> bool:
    return (
        isinstance(value, Sequence)
        and len(value) == 2
        and all(_is_number(end) for end in value)
        and low < value[0] <= value[1] <= high
    )


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One step of a policy.

    Attributes:
        name: its name in a policy.
        mixes: whether it mixes each sample with another one, and thereby the labels.
    """

    name: ClassVar[str]
    mixes: ClassVar[bool] = False

    def problems(self) -> list[Problem]:
        """What is wrong with the options, independent of the images."""
        return [
            Problem(f"{self.name}.{item.name}", f"must {item.metadata['must']}", repr(getattr(self, item.name)))
            for item in dataclasses.fields(self)
            if not item.metadata["holds"](getattr(self, item.name))
        ]

    def misfits(self, shape: Shape) -> list[Problem]:
        """What is wrong with the options for images of `shape`."""
        return []

    def options(self, shape: Shape) -> dict[str, Any]:
        """All options as plain JSON data, as they act on images of `shape`."""
        given = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}

    def draw(self, draws: Draws, shape: Shape) -> dict[str, NDArray[np.int64]]:
        """The parameters of all samples, [N] each, within int32."""
        raise NotImplementedError

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        """The changed images, uint8 [B, C, H, W]; parameters are int64 [B]."""
        raise NotImplementedError

    def move_boxes(self, boxes: Tensor, parameters: Parameters, shape: Shape) -> Tensor:
        """Where boxes (x1, y1, x2, y2) [B, M, 4] are after `apply`, in pixels; they may reach beyond the image.

        Operations that move no pixel need not define it.
        """
        return boxes


class Mixing(Operation):
    """An operation that mixes each sample with a partner; the operations before it were applied to both."""

    mixes = True

    def mix(self, images: Tensor, partners: Tensor, parameters: Parameters) -> Tensor:
        raise NotImplementedError

    def share(self, parameters: Parameters, shape: Shape) -> Tensor:
        """The sample's own share of its pixels, float32 [B] in [0, 1]."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Crop(Operation):
    """Pads each side by `padding` pixels, with black or with the mirrored image, and cuts out a window of the original size.

    The default padding is an eighth of the shorter side: the usual 4 pixels at 32x32, and 1 at 8x8, where 4 would hide the
    object.
    """

    name = "crop"
    padding: int | None = _option(
        None, "be a whole number >= 1", lambda value: value is None or (_is_whole(value) and value >= 1)
    )
    mode: str = _option("zero", "be 'zero' or 'reflect'", lambda value: value in ("zero", "reflect"))

    def misfits(self, shape: Shape) -> list[Problem]:
        return _too_large("crop.padding", self._edge(*shape[1:]), shape)

    def options(self, shape: Shape) -> dict[str, Any]:
        return {**super().options(shape), "padding": self._edge(*shape[1:])}

    def draw(self, draws: Draws, shape: Shape) -> dict[str, NDArray[np.int64]]:
        return {side: draws.integers(side, 2 * self._edge(*shape[1:]) + 1) for side in ("top", "left")}

    def _edge(self, height: int, width: int) -> int:
        return max(1, min(height, width) // 8) if self.padding is None else self.padding

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        batch, channels, height, width = images.shape
        padded = self._padded(images)
        rows, columns = padded.shape[2:]
        # A window's row is a run of consecutive bytes; copying runs is 10 times faster than indexing single pixels.
        planes = torch.arange(batch * channels, device=images.device).view(batch, channels, 1) * rows
        lines = planes + parameters["top"].view(-1, 1, 1) + torch.arange(height, device=images.device)
        starts = lines * columns + parameters["left"].view(-1, 1, 1)
        return padded.view(-1).unfold(0, width, 1).index_select(0, starts.view(-1)).view(images.shape)

    def move_boxes(self, boxes: Tensor, parameters: Parameters, shape: Shape) -> Tensor:
        edge = self._edge(*shape[1:])
        x, y = edge - parameters["left"].view(-1, 1), edge - parameters["top"].view(-1, 1)
        return boxes + torch.stack((x, y, x, y), -1).to(boxes.dtype)

    def _padded(self, images: Tensor) -> Tensor:
        batch, channels, height, width = images.shape
        edge = self._edge(height, width)
        padded = images.new_zeros(batch, channels, height + 2 * edge, width + 2 * edge)
        padded[:, :, edge:-edge, edge:-edge] = images
        if self.mode == "reflect":
            padded[:, :, edge:-edge, :edge] = images[:, :, :, 1 : edge + 1].flip(3)
            padded[:, :, edge:-edge, -edge:] = images[:, :, :, -edge - 1 : -1].flip(3)
            padded[:, :, :edge] = padded[:, :, edge + 1 : 2 * edge + 1].flip(2)
            padded[:, :, -edge:] = padded[:, :, -2 * edge - 1 : -edge - 1].flip(2)
        return padded


@dataclass(frozen=True, kw_only=True)
class Flip(Operation):
    """Mirrors the image left to right with `probability`."""

    name = "flip"
    probability: float = _option(0.5, "be in [0, 1]", lambda value: _is_number(value) and 0 <= value <= 1)

    def draw(self, draws: Draws, shape: Shape) -> dict[str, NDArray[np.int64]]:
        return {"flipped": (draws.uniform("flipped") < self.probability).astype(np.int64)}

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        # Bit masks instead of torch.where, which is 6 times slower with one flag per image.
        mask = (parameters["flipped"] * 255).to(torch.uint8).view(-1, 1, 1, 1)
        return images.flip(3).bitwise_xor_(images).bitwise_and_(mask).bitwise_xor_(images)

    def move_boxes(self, boxes: Tensor, parameters: Parameters, shape: Shape) -> Tensor:
        x1, y1, x2, y2 = boxes.unbind(-1)
        mirrored = torch.stack((shape[2] - x2, y1, shape[2] - x1, y2), -1)
        return torch.where(parameters["flipped"].view(-1, 1, 1) == 1, mirrored, boxes)


@dataclass(frozen=True, kw_only=True)
class Cutout(Operation):
    """Paints a square of `size` pixels, whose centre is any pixel, with the value `fill` (arXiv 1708.04552).

    The default size is 8 pixels, or a quarter of the shorter side of an image of at most 8 pixels, as 8 are at 32x32.
    """

    name = "cutout"
    size: int | None = _option(None, "be a whole number >= 1", lambda value: value is None or (_is_whole(value) and value >= 1))
    fill: int = _option(0, "be a whole number in 0..255", lambda value: _is_whole(value) and 0 <= value <= 255)

    def misfits(self, shape: Shape) -> list[Problem]:
        return _too_large("cutout.size", self._side(*shape[1:]), shape)

    def options(self, shape: Shape) -> dict[str, Any]:
        return {**super().options(shape), "size": self._side(*shape[1:])}

    def draw(self, draws: Draws, shape: Shape) -> dict[str, NDArray[np.int64]]:
        before = self._side(*shape[1:]) // 2
        return {"top": draws.integers("row", shape[1]) - before, "left": draws.integers("column", shape[2]) - before}

    def _side(self, height: int, width: int) -> int:
        if self.size is not None:
            return self.size
        shorter = min(height, width)
        return _CUTOUT_SIZE if shorter > _CUTOUT_SIZE else max(1, shorter // 4)

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        top, left = parameters["top"], parameters["left"]
        side = self._side(*images.shape[2:])
        inside = _inside(images, top, left, top + side, left + side)
        return images ^ ((images ^ self.fill) & inside)


@dataclass(frozen=True, kw_only=True)
class ColourJitter(Operation):
    """Scales brightness, then contrast about the image's mean grey, then saturation, each by a factor of 1 ± its option.

    Saturation has no effect on images without three channels.
    """

    name = "colour_jitter"
    brightness: float = _option(0.4, "be in [0, 1]", lambda value: _is_number(value) and 0 <= value <= 1)
    contrast: float = _option(0.4, "be in [0, 1]", lambda value: _is_number(value) and 0 <= value <= 1)
    saturation: float = _option(0.4, "be in [0, 1]", lambda value: _is_number(value) and 0 <= value <= 1)

    def draw(self, draws: Draws, shape: Shape) -> dict[str, NDArray[np.int64]]:
        reach = {"brightness": self.brightness, "contrast": self.contrast}
        if shape[0] == 3:
            reach["saturation"] = self.saturation
        return {
            name: np.rint(64 * (1 + width * (2 * draws.uniform(name) - 1))).astype(np.int64)
            for name, width in reach.items()
            if width > 0
        }

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        # Factors are in 1/64, so that factor 2 times pixel 255 fits 16 bits.
        pixels = images.to(torch.int16)
        factors = {name: factor.to(torch.int16).view(-1, 1, 1, 1) for name, factor in parameters.items()}
        if "brightness" in factors:
            pixels.mul_(factors["brightness"]).add_(32).bitwise_right_shift_(6).clamp_(0, 255)
        if "contrast" in factors:
            greys = _grey(pixels)
            count = greys[0].numel()
            mean = ((greys.sum((1, 2, 3), keepdim=True) + count // 2) // count).to(torch.int16)
            _blend_(pixels, mean, factors["contrast"])
        if "saturation" in factors:
            _blend_(pixels, _grey(pixels), factors["saturation"])
        return pixels.to(torch.uint8)


@dataclass(frozen=True, kw_only=True)
class RandomResizedCrop(Operation):
    """Cuts a window with a share `scale` of the area and width/height `ratio`, and stretches it bilinearly to the old size.

    A window that would be longer than the image is cut to the image's length; it is not redrawn.
    """

    name = "random_resized_crop"
    scale: tuple[float, float] = _option(
        (0.08, 1.0), "be [low, high] with 0 < low <= high <= 1", lambda value: _is_range(value, 0, 1)
    )
    ratio: tuple[float, float] = _option(
        (0.75, 4 / 3), "be [low, high] with 0 < low <= high", lambda value: _is_range(value, 0, math.inf)
    )

    def draw(self, draws: Draws, shape: Shape) -> dict[str, NDArray[np.int64]]:
        _, height, width = shape
        area = height * width * (self.scale[0] + (self.scale[1] - self.scale[0]) * draws.uniform("area"))
        ratio = self._ratios()[draws.integers("ratio", _TABLE_SIZE)]
        rows = np.clip(np.rint(np.sqrt(area / ratio)), 1, height).astype(np.int64)
        columns = np.clip(np.rint(np.sqrt(area * ratio)), 1, width).astype(np.int64)
        return {
            "rows": rows,
            "columns": columns,
            "top": (draws.uniform("top") * (height - rows + 1)).astype(np.int64),
            "left": (draws.uniform("left") * (width - columns + 1)).astype(np.int64),
        }

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        stretched = _stretch_rows(images, parameters["top"], parameters["rows"]).transpose(2, 3)
        return _stretch_rows(stretched, parameters["left"], parameters["columns"]).transpose(2, 3).contiguous()

    def move_boxes(self, boxes: Tensor, parameters: Parameters, shape: Shape) -> Tensor:
        left, top, columns, rows = (parameters[name].view(-1, 1).to(boxes.dtype) for name in ("left", "top", "columns", "rows"))
        right, down = shape[2] / columns, shape[1] / rows
        return (boxes - torch.stack((left, top, left, top), -1)) * torch.stack((right, down, right, down), -1)

    def _ratios(self) -> NDArray[np.float64]:
        """Log-uniform quantiles of the ratio, in steps of 2^-16, so that the last bit of exp() does not matter."""
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        steps = (math.exp(low + (high - low) * (place + 0.5) / _TABLE_SIZE) for place in range(_TABLE_SIZE))
        return np.array([max(round(step * 65536), 1) / 65536 for step in steps])


@dataclass(frozen=True, kw_only=True)
class Mixup(Mixing):
    """Averages each sample with a partner; its own weight is drawn from Beta(alpha, alpha) (arXiv 1710.09412)."""

    name = "mixup"
    alpha: float = _option(1.0, "be > 0", lambda value: _is_number(value) and value > 0)

    def draw(self, draws: Draws, shape: Shape) -> dict[str, NDArray[np.int64]]:
        weights = beta_quantiles(self.alpha)[draws.integers("weight", _TABLE_SIZE)]
        return {"partner": draws.permutation("partner"), "weight": weights}

    def mix(self, images: Tensor, partners: Tensor, parameters: Parameters) -> Tensor:
        weight = parameters["weight"].to(torch.int32).view(-1, 1, 1, 1)
        own, other = images.to(torch.int32), partners.to(torch.int32)
        return other.add_(own.sub_(other).mul_(weight).add_(128).bitwise_right_shift_(8)).to(torch.uint8)

    def share(self, parameters: Parameters, shape: Shape) -> Tensor:
        return parameters["weight"].to(torch.float32) / 256


@dataclass(frozen=True, kw_only=True)
class Cutmix(Mixing):
    """Pastes a rectangle of a partner over each sample; its expected area is drawn from Beta(alpha, alpha) (arXiv 1905.04899).

    The label's share is the remaining area after the rectangle was clipped at the border.
    """

    name = "cutmix"
    alpha: float = _option(1.0, "be > 0", lambda value: _is_number(value) and value > 0)

    def draw(self, draws: Draws, shape: Shape) -> dict[str, NDArray[np.int64]]:
        _, height, width = shape
        share = beta_quantiles(self.alpha)[draws.integers("weight", _TABLE_SIZE)]
        edge = np.sqrt((256 - share) / 256)
        parameters = {"partner": draws.permutation("partner")}
        for low, high, length in (("top", "bottom", height), ("left", "right", width)):
            extent = np.floor(edge * length).astype(np.int64)
            start = draws.integers(low, length) - extent // 2
            parameters[low], parameters[high] = np.clip(start, 0, length), np.clip(start + extent, 0, length)
        return parameters

    def mix(self, images: Tensor, partners: Tensor, parameters: Parameters) -> Tensor:
        inside = _inside(images, *(parameters[side] for side in ("top", "left", "bottom", "right")))
        return images ^ ((images ^ partners) & inside)

    def share(self, parameters: Parameters, shape: Shape) -> Tensor:
        pasted = (parameters["bottom"] - parameters["top"]) * (parameters["right"] - parameters["left"])
        # A tensor, since a GPU multiplies by the reciprocal of a number, which rounds differently from the division.
        area = torch.full((), shape[1] * shape[2], dtype=torch.float32, device=pasted.device)
        return 1 - pasted.to(torch.float32) / area


@cache
def beta_quantiles(alpha: float) -> NDArray[np.int64]:
    """Quantiles of Beta(alpha, alpha) at the middles of 4096 equal steps, in 1/256."""
    from scipy.special import betaincinv

    middles = (np.arange(_TABLE_SIZE) + 0.5) / _TABLE_SIZE
    quantiles: NDArray[np.float64] = betaincinv(alpha, alpha, middles)
    return np.rint(256 * quantiles).astype(np.int64)


def _too_large(option: str, value: int, shape: Shape) -> list[Problem]:
    side = min(shape[1:])
    return [] if value < side else [Problem(option, f"must be smaller than the image's {side} pixels", str(value))]


def _inside(images: Tensor, top: Tensor, left: Tensor, bottom: Tensor, right: Tensor) -> Tensor:
    """255 in each sample's rectangle and 0 outside, uint8 [B, 1, H, W]: a bit mask is 3 times faster than torch.where."""
    row = torch.arange(images.shape[2], device=images.device)
    column = torch.arange(images.shape[3], device=images.device)
    rows = (row >= top[:, None]) & (row < bottom[:, None])
    columns = (column >= left[:, None]) & (column < right[:, None])
    return (rows[:, None, :, None] & columns[:, None, None, :]).to(torch.uint8) * 255


def _grey(pixels: Tensor) -> Tensor:
    """int16 [B, 1, H, W] with the weights of ITU-R BT.601 in 1/128; images without three channels are returned unchanged."""
    if pixels.shape[1] != 3:
        return pixels
    red, green, blue = pixels.unbind(1)
    return ((38 * red + 75 * green + 15 * blue + 64) >> 7)[:, None]


def _blend_(pixels: Tensor, other: Tensor, factor: Tensor) -> None:
    """Makes pixels other + factor / 64 * (pixels - other), in place, int16."""
    pixels.sub_(other).mul_(factor).add_(32).bitwise_right_shift_(6).add_(other).clamp_(0, 255)


def _stretch_rows(images: Tensor, start: Tensor, length: Tensor) -> Tensor:
    """Rows start..start+length-1 of uint8 [B, C, H, W] stretched bilinearly to H rows, rounded to uint8."""
    batch, channels, height, width = images.shape
    row = torch.arange(height, device=images.device)
    # The position of a row's middle among the window's rows, in 1/128 of a row: ((row + 0.5) * length / height - 0.5) * 128.
    place = ((2 * row + 1) * length[:, None] * 64 // height - 64).clamp_(min=0)
    above = (place >> 7).minimum(length[:, None] - 1)
    below = (above + 1).minimum(length[:, None] - 1)
    planes = torch.arange(batch * channels, device=images.device).view(batch, channels, 1) * height + start.view(-1, 1, 1)
    lines = images.reshape(-1, width)
    upper, lower = (
        lines.index_select(0, (planes + side[:, None]).view(-1)).view(images.shape).to(torch.int16) for side in (above, below)
    )
    part = (place & 127).to(torch.int16)[:, None, :, None]
    return upper.add_(lower.sub_(upper).mul_(part).add_(64).bitwise_right_shift_(7)).to(torch.uint8)


OPERATIONS: dict[str, type[Operation]] = {
    operation.name: operation for operation in (Crop, Flip, Cutout, ColourJitter, RandomResizedCrop, Mixup, Cutmix)
}
