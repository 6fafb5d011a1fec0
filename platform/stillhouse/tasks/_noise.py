"""The noise that generators read: a function of its source, the view and the sample's index alone.

z_j = sqrt(-2 log(1 - u)) cos(2 pi v),   u, v = hash of (source, view; index, j)         (Box and Muller, 1958)
"""

import numpy as np
import torch
from torch import Tensor

from stillhouse.data.hashing import derive_key, integers, uniform

Source = tuple[str | int, ...]


def normal_noise(source: Source, indices: Tensor, size: int) -> Tensor:
    """Standard normal float32 [B, size] on the device of `indices`, computed on the CPU: the same bits on every device.

    Args:
        source: words and numbers; others give independent noise.
        indices: int64 [B].
    """
    counters = indices.cpu().numpy()[:, None] * size + np.arange(size)
    radii = np.sqrt(-2.0 * np.log1p(-uniform(derive_key("noise", "radius", *source), counters)))
    angles = 2.0 * np.pi * uniform(derive_key("noise", "angle", *source), counters)
    return torch.from_numpy((radii * np.cos(angles)).astype(np.float32)).to(indices.device)


def drawn_classes(source: Source, indices: Tensor, num_classes: int) -> Tensor:
    """One class for each sample, each with the same probability: weights float32 [B, num_classes], 1 for the class drawn."""
    drawn = integers(derive_key("noise", "class", *source), indices.cpu().numpy(), num_classes)
    return torch.nn.functional.one_hot(torch.from_numpy(drawn), num_classes).to(torch.float32).to(indices.device)
