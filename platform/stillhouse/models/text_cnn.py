"""Convolutional networks for sentences (Kim, arXiv 1408.5882).

Filters over 3, 4 and 5 neighbouring tokens, the largest value of each filter over the text, dropout and one linear layer. At
width 1 a token has 128 numbers and there are 100 filters of each size, as in the paper, whose word vectors have 300. A window
may begin before the text and end after it, so that texts shorter than a filter have windows too.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from stillhouse.models.layers import Shape, scaled
from stillhouse.models.text_layers import VOCABULARY, TextModel, Words, check_texts, is_token

_SIZES = (3, 4, 5)
_EMBEDDING, _FILTERS = 128, 100


class Window(nn.Module):
    """Filters over `size` tokens and their largest values: vectors [B, L, D] and the mask [B, L] to [B, filters]."""

    def __init__(self, num_inputs: int, filters: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.conv = nn.Conv1d(num_inputs, filters, size, padding=size - 1)

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        maps = self.conv(vectors.mT).relu()
        # Window p reads the tokens p - size + 1 to p; after `length + size - 2` it reads padding alone, which must not count.
        ends = mask.sum(1, keepdim=True) + self.size - 1
        inside = torch.arange(maps.shape[2], device=maps.device) < ends
        largest: Tensor = (maps * inside.unsqueeze(1)).amax(2)
        return largest


class Joined(nn.Module):
    """Vectors side by side; a layer of its own, so that the embedding has a name."""

    def forward(self, *parts: Tensor) -> Tensor:
        return torch.cat(parts, dim=1)


class TextCNN(TextModel):
    """See the module."""

    token_layers = ("words",)

    def __init__(
        self, *, num_classes: int, input_shape: Shape, vocabulary: int, embedding: int, filters: int, dropout: float
    ) -> None:
        super().__init__(vocabulary)
        check_texts(input_shape, vocabulary)
        self.words = Words(vocabulary, embedding)
        self.windows = nn.ModuleList(Window(embedding, filters, size) for size in _SIZES)
        self.pooled = Joined()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(filters * len(_SIZES), num_classes)

    def forward(self, ids: Tensor) -> Tensor:
        mask, vectors = is_token(ids), self.words(ids)
        largest = [window(vectors, mask) for window in self.windows]
        logits: Tensor = self.fc(self.dropout(self.pooled(*largest)))
        return logits


def text_cnn(
    *, num_classes: int, input_shape: Shape, width: float = 1.0, dropout: float = 0.5, vocabulary: int = VOCABULARY
) -> TextCNN:
    """A TextCNN; `vocabulary` is the number of tokens, that of the data set in a sweep."""
    return TextCNN(
        num_classes=num_classes,
        input_shape=input_shape,
        vocabulary=vocabulary,
        embedding=scaled(_EMBEDDING, width),
        filters=scaled(_FILTERS, width),
        dropout=dropout,
    )


MODELS: dict[str, Callable[..., nn.Module]] = {"text_cnn": text_cnn}
