"""Text classification: one class for each text, judged by top-1 accuracy. Cross-entropy is its loss, as for images.

A sample is a row of token ids, 0 after the end of the text. Models read a batch only as far as its longest text, rounded up to
a multiple of 16, and return the same numbers for a text whatever the padding after it, up to rounding.
"""

from typing import ClassVar

import torch
from torch import Tensor

from stillhouse.data.images import ImageData, Images
from stillhouse.data.views import Views
from stillhouse.tasks.classification import Classification

_MULTIPLE = 16


def trimmed(ids: Tensor) -> Tensor:
    """Token ids [B, L] without the places after the longest text, as int64 [B, L'].

    L' is a multiple of 16, or L if that is smaller.
    """
    used = (ids != 0).any(0).nonzero()
    longest = int(used[-1]) + 1 if len(used) else 1
    return ids[:, : -(-longest // _MULTIPLE) * _MULTIPLE].to(torch.int64)


class TextClassification(Classification):
    """Which of C classes a text belongs to. Models read int64 [B, L] and return logits [B, C]; targets are int64 [B]."""

    default: ClassVar[bool] = False
    mixes: ClassVar[bool] = False
    differentiable: ClassVar[bool] = False
    any_length: ClassVar[bool] = True
    input_name: ClassVar[str] = "ids"

    def example_input(self, data: ImageData, count: int = 1, device: str | torch.device = "cpu") -> Tensor:
        """Texts of full length, int64 [count, L]."""
        return torch.ones(count, *data.input_shape, dtype=torch.int64, device=device)

    def inputs(self, data: ImageData, views: Views, images: Images, indices: Tensor, view: int) -> Tensor:
        """The texts at the places `indices` of `images` int32 [N, L], as `trimmed` gives them."""
        return trimmed(views.augment(images, indices, view))

    def evaluation_inputs(self, data: ImageData, images: Tensor, indices: Tensor) -> Tensor:
        return trimmed(images)
