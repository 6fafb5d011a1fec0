"""Bidirectional LSTMs for texts (Graves and Schmidhuber 2005; Hochreiter and Schmidhuber 1997).

Each layer reads the text forwards and backwards; the embedding is the largest value of each number over the text. At width 1 a
token has 128 numbers, and each direction of each layer too.

The backward direction reads the text turned around within its own length, so that padding comes last in both directions and
changes nothing. There is no packing, which has to wait for a GPU to know the lengths.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from stillhouse.models.layers import Shape, scaled
from stillhouse.models.text_layers import VOCABULARY, MaskedMax, TextModel, Words, check_texts, is_token

_SIZE = 128


class BothWays(nn.Module):
    """One layer: vectors [B, L, D] and the mask [B, L] to [B, L, 2 H], 0 at padding."""

    def __init__(self, num_inputs: int, size: int) -> None:
        super().__init__()
        self.forwards = nn.LSTM(num_inputs, size, batch_first=True)
        self.backwards = nn.LSTM(num_inputs, size, batch_first=True)

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        lengths = mask.sum(1, keepdim=True)
        places = torch.arange(vectors.shape[1], device=vectors.device)
        turned = torch.where(places < lengths, lengths - 1 - places, places)
        ahead, _ = self.forwards(vectors)
        behind, _ = self.backwards(_taken(vectors, turned))
        return torch.cat([ahead, _taken(behind, turned)], dim=2) * mask.unsqueeze(2)


def _taken(vectors: Tensor, places: Tensor) -> Tensor:
    """The vectors [B, L, D] at `places` [B, L]."""
    return vectors.gather(1, places.unsqueeze(2).expand_as(vectors))


class BiLSTM(TextModel):
    """See the module."""

    any_length = False

    def __init__(
        self,
        *,
        num_classes: int,
        input_shape: Shape,
        vocabulary: int,
        embedding: int,
        size: int,
        depth: int,
        dropout: float,
    ) -> None:
        super().__init__(vocabulary)
        check_texts(input_shape, vocabulary)
        self.words = Words(vocabulary, embedding)
        self.layers = nn.ModuleList(BothWays(2 * size if number else embedding, size) for number in range(depth))
        self.token_layers = ("words", *(f"layers.{number}" for number in range(depth)))
        self.pooled = MaskedMax()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(2 * size, num_classes)

    def forward(self, ids: Tensor) -> Tensor:
        mask, vectors = is_token(ids), self.words(ids)
        for layer in self.layers:
            vectors = layer(self.dropout(vectors), mask)
        logits: Tensor = self.fc(self.dropout(self.pooled(vectors, mask)))
        return logits


def bilstm(
    *,
    num_classes: int,
    input_shape: Shape,
    width: float = 1.0,
    depth: int = 1,
    dropout: float = 0.3,
    vocabulary: int = VOCABULARY,
) -> BiLSTM:
    """`depth` bidirectional layers; `vocabulary` is the number of tokens, that of the data set in a sweep."""
    return BiLSTM(
        num_classes=num_classes,
        input_shape=input_shape,
        vocabulary=vocabulary,
        embedding=scaled(_SIZE, width),
        size=scaled(_SIZE, width),
        depth=depth,
        dropout=dropout,
    )


MODELS: dict[str, Callable[..., nn.Module]] = {"bilstm": bilstm}
