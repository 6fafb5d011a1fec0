"""Decodes images, in the same way for image folders and packs, so that both give the same bits.

An image is turned upright by its EXIF orientation, then its transparent parts are laid on a ground of one colour, then it is
converted, cropped and resized. Images without an orientation and without transparency only take the last step.
"""

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.errors import UsageError

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_PROBE_SIZE = 16

Ground = tuple[int, int, int]
"""The colour on which transparent images are laid: red, green and blue in 0..255."""
WHITE: Ground = (255, 255, 255)
_NAMED_GROUNDS = {"white": WHITE, "black": (0, 0, 0)}

# Exif 2.32, section 4.6.4, tag 0x0112: the methods of PIL.Image.Transpose that turn an image of this orientation upright.
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
_TURNED = (5, 6, 7, 8)


@dataclass(frozen=True, kw_only=True)
class ImageTraits:
    """What is known of an image without keeping its pixels.

    Attributes:
        width: of the upright image; `height` likewise.
        rotated: whether its orientation changes its pixels.
        transparent: whether a pixel is not opaque, so that the ground is visible.
    """

    width: int
    height: int
    rotated: bool
    transparent: bool


def parse_ground(value: Any) -> Ground | None:
    """The colour that `value` names: "white", "black", a grey value, or [red, green, blue]; None if it names none."""
    if isinstance(value, str):
        return _NAMED_GROUNDS.get(value)
    levels = list(value) if isinstance(value, list | tuple) else [value] * 3
    whole = all(isinstance(level, int) and not isinstance(level, bool) and 0 <= level <= 255 for level in levels)
    return (levels[0], levels[1], levels[2]) if whole and len(levels) == 3 else None


def decode_image(
    source: str | Path | bytes, *, size: int | None, grey: bool, where: str, ground: Ground = WHITE
) -> tuple[NDArray[np.uint8], bool]:
    """The pixels of one image, uint8 [C, H, W], and whether the ground is visible in it.

    Args:
        source: a file, or its bytes.
        size: height and width; the middle square is cut out and resized. None leaves the image's own.
        where: the image's name in errors.

    Raises:
        UsageError: the image is damaged, or has more than 8 bits per channel.
    """
    from PIL import Image, ImageOps

    with _opened(source, where) as opened:
        image, transparent = _opaque(_upright(opened), ground)
        image = image.convert("L" if grey else "RGB")
        if size is not None and image.size != (size, size):
            image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
        pixels = np.asarray(image)
    return (pixels[None] if grey else pixels.transpose(2, 0, 1)), transparent


def probe_image(encoded: bytes, *, where: str) -> ImageTraits:
    """The traits of an image whose every byte can be decoded; a JPEG is decoded at an eighth of its size.

    Raises:
        UsageError: as for `decode_image`.
    """
    with _opened(encoded, where) as opened:
        size = opened.size
        reduced = opened.draft("RGB", (_PROBE_SIZE, _PROBE_SIZE))
        opened.load()
        return _traits(opened, opened.size if reduced is None else size)


def scan_image(encoded: bytes, *, where: str) -> ImageTraits:
    """The traits of an image that was probed before, without decoding its pixels where the format allows it.

    Raises:
        UsageError: as for `decode_image`.
    """
    with _opened(encoded, where) as opened:
        return _traits(opened, opened.size)


def decoder_identity() -> dict[str, str | None]:
    """What determines the pixels besides the bytes: the versions of the decoding libraries."""
    import PIL
    from PIL import features

    return {"pillow": PIL.__version__, "jpeg": features.version("jpg"), "turbo": features.version("libjpeg_turbo")}


@contextmanager
def _opened(source: str | Path | bytes, where: str) -> Iterator["Image.Image"]:
    """The image, opened; errors of its file are raised as `UsageError`."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
            if opened.mode.startswith(("I", "F")):
                raise UsageError(f"{where} has more than 8 bits per channel; convert it")
            yield opened
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        # PIL raises different errors for damaged files of different formats.
        raise UsageError(f"{where} is not a readable image; repair or remove it") from error


def _traits(image: "Image.Image", size: tuple[int, int]) -> ImageTraits:
    orientation = _orientation(image)
    width, height = reversed(size) if orientation in _TURNED else size
    rotated = orientation in _UPRIGHT
    return ImageTraits(width=width, height=height, rotated=rotated, transparent=_is_transparent(image))


def _upright(image: "Image.Image") -> "Image.Image":
    from PIL import Image

    method = _UPRIGHT.get(_orientation(image))
    return image if method is None else image.transpose(Image.Transpose[method])


def _orientation(image: "Image.Image") -> int:
    """The orientation by EXIF, 1 to 8; 1, upright, without any or with a damaged one."""
    if image.format == "TIFF":
        return 1  # Pillow has turned it upright when its pixels are loaded
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except (OSError, ValueError, SyntaxError, KeyError, TypeError, struct.error):
        # The pixels of an image are good although its EXIF block is damaged.
        return 1
    return orientation if isinstance(orientation, int) and orientation in _UPRIGHT else 1


def _opaque(image: "Image.Image", ground: Ground) -> tuple["Image.Image", bool]:
    """The image laid on `ground`, and whether that is visible; an opaque image is returned as it is."""
    from PIL import Image

    if not _is_transparent(image):
        return image, False
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, (*ground, 255)), layer), True


def _is_transparent(image: "Image.Image") -> bool:
    """Whether a pixel is not opaque, by an alpha channel, a palette with alpha, or a transparent colour."""
    if not image.has_transparency_data:
        return False
    least, _ = image.convert("RGBA").getchannel("A").getextrema()
    return isinstance(least, int | float) and least < 255
