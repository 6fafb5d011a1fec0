"""Building blocks of models that read texts. B batch, L length of the longest text, D numbers for each token.

A text is a row of token ids [B, L]; 0 is padding, which follows the text. Models of texts return the same numbers for a text
whatever the padding after it, up to rounding.
"""

import torch
from torch import Tensor, nn

PADDING = 0
VOCABULARY = 8000
"""The number of tokens where no data set says another one."""


class TextModel(nn.Module):
    """Base class of models that read token ids, int64 [B, L], and return logits [B, C].

    Attributes:
        data_options: what another model for the same texts must be built with, too.
        token_layers: layers that return one vector for each token, [B, L, D], shallow to deep; the first one is the embedding.
        attention_layers: layers that return the attention of each token to each token before the softmax, [B, heads, L, L],
            shallow to deep, one for each of `token_layers` but the first; empty in models without attention.
        any_length: whether the model can be traced for texts of any length.
    """

    input_dtype = torch.int64
    stage_layers: tuple[str, ...] = ()
    preactivation_layers: tuple[str, ...] = ()
    pooled_layer = "pooled"
    token_layers: tuple[str, ...] = ()
    attention_layers: tuple[str, ...] = ()
    any_length = True

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.data_options = {"vocabulary": vocabulary}


def check_texts(input_shape: tuple[int, ...], vocabulary: int) -> None:
    """Checks that samples are texts of a known number of tokens.

    Raises:
        ValueError: they are something else.
    """
    if len(input_shape) != 1:
        raise ValueError(f"it reads texts, samples (length,); these have the shape {tuple(input_shape)}")
    if vocabulary < 2:
        raise ValueError(f"vocabulary must be at least 2, the padding and one token, got {vocabulary}")


def is_token(ids: Tensor) -> Tensor:
    """Which places of [B, L] hold a token: bool [B, L]."""
    return ids != PADDING


class Words(nn.Module):
    """Token ids [B, L] as vectors [B, L, D]; padding has the vector 0."""

    def __init__(self, vocabulary: int, size: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, size, padding_idx=PADDING)

    def forward(self, ids: Tensor) -> Tensor:
        vectors: Tensor = self.table(ids)
        # The row of padding is 0 as long as nothing but training changes it; an operator may.
        return vectors * is_token(ids).unsqueeze(2)


class MaskedMean(nn.Module):
    """The mean over the tokens: [B, L, D] and the mask [B, L] to [B, D]; 0 for a text without tokens."""

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        weights = mask.unsqueeze(2).to(vectors.dtype)
        return (vectors * weights).sum(1) / weights.sum(1).clamp(min=1)


class MaskedMax(nn.Module):
    """The largest value over the tokens: [B, L, D] and the mask [B, L] to [B, D]; 0 for a text without tokens."""

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        lowest = torch.finfo(vectors.dtype).min
        largest = vectors.masked_fill(~mask.unsqueeze(2), lowest).amax(1)
        return torch.where(mask.any(1, keepdim=True), largest, torch.zeros_like(largest))
