"""Test images with boxes, as small PNG files for the page."""

import base64
import io
from collections import Counter
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor

SHOWN = 4
"""Test images in a picture."""
SURE = 0.5
"""Detections of a lower score are not drawn."""
_HEIGHT = 160
_GAP = 4
_COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
"""Of Okabe and Ito, which people with any colour vision tell apart; classes repeat them."""


def picture(images: Tensor, boxes: Sequence[Tensor]) -> str:
    """Images side by side with boxes in the colour of their class, as one PNG file in base64.

    Args:
        images: uint8 [n, 3, H, W].
        boxes: of each image, [m, 5]: (x1, y1, x2, y2, class).
    """
    scale = max(1, round(_HEIGHT / images.shape[2]))
    height, width = images.shape[2] * scale, images.shape[3] * scale
    sheet = Image.new("RGB", (len(images) * (width + _GAP) - _GAP, height), "white")
    for place, (pixels, own) in enumerate(zip(images, boxes, strict=True)):
        image = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((width, height), Image.Resampling.NEAREST)
        pen = ImageDraw.Draw(image)
        for x1, y1, x2, y2, label in own.tolist():
            corners = [scale * x1, scale * y1, max(scale * x2 - 1, scale * x1), max(scale * y2 - 1, scale * y1)]
            pen.rectangle(corners, outline=_COLOURS[int(label) % len(_COLOURS)], width=2)
        sheet.paste(image, (place * (width + _GAP), 0))
    file = io.BytesIO()
    sheet.quantize(128).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def surely(found: Tensor) -> list[Tensor]:
    """The detections [N, K, 6] that are drawn, as boxes of each image [m, 5]."""
    return [each[each[:, 4] >= SURE][:, [0, 1, 2, 3, 5]] for each in found]


def real(targets: Tensor) -> list[Tensor]:
    """The true boxes of each image [m, 5], of targets [N, M, 5]."""
    return [each[each[:, 4] >= 0] for each in targets]


def words(maker: str, boxes: Sequence[Tensor], names: Sequence[str]) -> str:
    """What a reader who cannot see the picture should know: how many boxes of which class are in it."""
    counts = Counter(torch.cat([each[:, 4] for each in boxes]).long().tolist())
    listed = ", ".join(f"{count} {names[label] if label < len(names) else label}" for label, count in sorted(counts.items()))
    return f"{len(boxes)} test images with {maker}: {listed or 'none'}"
