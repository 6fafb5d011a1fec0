"""Transformer encoders for texts (Vaswani et al., arXiv 1706.03762), with normalisation before each part (arXiv 2002.04745).

A token's vector is the sum of those of its id and of its place; the embedding is the mean over the tokens. At width 1 a token
has 128 numbers; the perceptrons have four times as many.
"""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from stillhouse.models.layers import Shape, scaled
from stillhouse.models.text_layers import VOCABULARY, MaskedMean, TextModel, Words, check_texts, is_token

_SIZE = 128
_DEVIATION = 0.02
_EPSILON = 1e-6


class Scores(nn.Module):
    """Queries and keys [B, heads, L, D] to the attention before the softmax, [B, heads, L, L]; a layer that methods read."""

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        scores: Tensor = query @ key.mT * query.shape[-1] ** -0.5
        return scores


class Attention(nn.Module):
    """Self-attention of vectors [B, L, D] to the tokens of the mask [B, L]."""

    def __init__(self, size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(size, 3 * size)
        self.scores = Scores()
        self.dropout = nn.Dropout(dropout)
        self.proj = nn.Linear(size, size)

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        batch, length, size = vectors.shape
        split = self.qkv(vectors).reshape(batch, length, 3, self.heads, size // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = split.unbind(0)
        scores = self.scores(query, key)
        # Finite, so that a text without tokens has no NaN.
        scores = scores.masked_fill(~mask[:, None, None], torch.finfo(scores.dtype).min)
        shares = self.dropout(torch.softmax(scores, dim=-1))
        mixed: Tensor = self.proj((shares @ value).transpose(1, 2).reshape(batch, length, size))
        return mixed


class Block(nn.Module):
    """Attention and a perceptron, each on normalised vectors and added to its input."""

    def __init__(self, size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(size, eps=_EPSILON)
        self.attn = Attention(size, heads, dropout)
        self.norm2 = nn.LayerNorm(size, eps=_EPSILON)
        layers = [("fc1", nn.Linear(size, 4 * size)), ("act", nn.GELU()), ("fc2", nn.Linear(4 * size, size))]
        self.mlp = nn.Sequential(OrderedDict[str, nn.Module](layers))
        self.dropout = nn.Dropout(dropout)

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        vectors = vectors + self.dropout(self.attn(self.norm1(vectors), mask))
        result: Tensor = vectors + self.dropout(self.mlp(self.norm2(vectors)))
        return result


class Placed(nn.Module):
    """Vectors [B, L, D] with those of their places added; a layer of its own, since methods read it."""

    def __init__(self, length: int, size: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(length, size))

    def forward(self, vectors: Tensor) -> Tensor:
        return vectors + self.table[: vectors.shape[1]]


class TextTransformer(TextModel):
    """See the module."""

    def __init__(
        self,
        *,
        num_classes: int,
        input_shape: Shape,
        vocabulary: int,
        size: int,
        depth: int,
        heads: int,
        dropout: float,
    ) -> None:
        super().__init__(vocabulary)
        check_texts(input_shape, vocabulary)
        self.words = Words(vocabulary, size)
        self.places = Placed(input_shape[0], size)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(size, heads, dropout) for _ in range(depth))
        self.token_layers = ("places", *(f"blocks.{number}" for number in range(depth)))
        self.attention_layers = tuple(f"blocks.{number}.attn.scores" for number in range(depth))
        self.norm = nn.LayerNorm(size, eps=_EPSILON)
        self.pooled = MaskedMean()
        self.head = nn.Linear(size, num_classes)
        self._initialise()

    def _initialise(self) -> None:
        """Truncated normal weights of deviation 0.02 and biases of 0, as in BERT (arXiv 1810.04805)."""
        linear = [module for module in self.modules() if isinstance(module, nn.Linear)]
        for weight in (self.words.table.weight, self.places.table, *(module.weight for module in linear)):
            nn.init.trunc_normal_(weight, std=_DEVIATION)
        with torch.no_grad():
            self.words.table.weight[0] = 0
        for module in linear:
            nn.init.zeros_(module.bias)

    def forward(self, ids: Tensor) -> Tensor:
        mask = is_token(ids)
        vectors = self.dropout(self.places(self.words(ids)))
        for block in self.blocks:
            vectors = block(vectors, mask)
        logits: Tensor = self.head(self.dropout(self.pooled(self.norm(vectors), mask)))
        return logits


def text_transformer(
    *,
    num_classes: int,
    input_shape: Shape,
    width: float = 1.0,
    depth: int = 2,
    heads: int = 4,
    dropout: float = 0.1,
    vocabulary: int = VOCABULARY,
) -> TextTransformer:
    """An encoder of `depth` blocks; `vocabulary` is the number of tokens, that of the data set in a sweep.

    A token has 128 numbers times `width`, rounded to a multiple of `heads`.
    """
    return TextTransformer(
        num_classes=num_classes,
        input_shape=input_shape,
        vocabulary=vocabulary,
        size=scaled(_SIZE, width, multiple=heads),
        depth=depth,
        heads=heads,
        dropout=dropout,
    )


MODELS: dict[str, Callable[..., nn.Module]] = {"text_transformer": text_transformer}
