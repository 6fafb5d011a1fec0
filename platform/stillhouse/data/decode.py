"""Decodes images, in the same way for image folders and packs, so that both give the same bits."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stillhouse.errors import UsageError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_PROBE_SIZE = 16


def decode_image(source: str | Path | bytes, *, size: int | None, grey: bool, where: str) -> NDArray[np.uint8]:
    """The pixels of one image, uint8 [C, H, W]; with `size`, the middle square is cut out and resized.

    Args:
        source: a file, or its bytes.
        where: the image's name in errors.

    Raises:
        UsageError: the image is damaged, or has more than 8 bits per channel.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
            if opened.mode.startswith(("I", "F")):
                raise UsageError(f"{where} has more than 8 bits per channel; convert it")
            image = opened.convert("L" if grey else "RGB")
            if size is not None and image.size != (size, size):
                image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
            pixels = np.asarray(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        # PIL raises different errors for damaged files of different formats.
        raise UsageError(f"{where} is not a readable image; repair or remove it") from error
    return pixels[None] if grey else pixels.transpose(2, 0, 1)


def probe_image(encoded: bytes, *, where: str) -> tuple[int, int]:
    """Width and height of an image whose every byte can be decoded; a JPEG is decoded at an eighth of its size.

    Raises:
        UsageError: as for `decode_image`.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded)) as opened:
            if opened.mode.startswith(("I", "F")):
                raise UsageError(f"{where} has more than 8 bits per channel; convert it")
            width, height = opened.size
            opened.draft("RGB", (_PROBE_SIZE, _PROBE_SIZE))
            opened.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UsageError(f"{where} is not a readable image; repair or remove it") from error
    return width, height


def decoder_identity() -> dict[str, str | None]:
    """What determines the pixels besides the bytes: the versions of the decoding libraries."""
    import PIL
    from PIL import features

    return {"pillow": PIL.__version__, "jpeg": features.version("jpg"), "turbo": features.version("libjpeg_turbo")}
