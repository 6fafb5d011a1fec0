"""Generated images as small PNG files, for the page."""

import base64
import io

import torch
from PIL import Image
from torch import Tensor

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def as_pixels(images: Tensor) -> Tensor:
    """Pixels from 0 to 255, whole numbers in float32, of images in [-1, 1]: what an 8-bit file holds of them."""
    return images.float().add(1).mul(127.5).round().clamp(0, 255)


def strip(images: Tensor) -> str:
    """Images [n, channels, H, W] in [-1, 1], side by side in one PNG file, in base64."""
    pixels = torch.cat(list(as_pixels(images.cpu())), 2).to(torch.uint8).permute(1, 2, 0).numpy()
    file = io.BytesIO()
    channels = pixels.shape[2]
    Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels, _MODES[channels]).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()
