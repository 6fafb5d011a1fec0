"""The size of a text transformer by hand, and its attention compared with torch's."""

import torch
import torch.nn.functional as F

from stillhouse.models.registry import build_model, model_problems
from stillhouse.models.size import measure_size
from stillhouse.models.text_transformer import Attention


def test_the_parameters_follow_from_width_and_depth() -> None:
    size, length, vocabulary, depth = 128, 40, 1000, 2
    # A block: queries, keys, values and their projection, a perceptron of four times the width, and two normalisations.
    block = 3 * size * size + 3 * size + size * size + size + 8 * size * size + 5 * size + 4 * size
    expected = vocabulary * size + length * size + depth * block + 2 * size + 2 * size + 2
    model = build_model("text_transformer", num_classes=2, input_shape=(length,), vocabulary=vocabulary)
    assert measure_size(model, (length,)).parameters == expected


def test_the_width_is_a_multiple_of_the_heads() -> None:
    model = build_model("text_transformer", num_classes=2, input_shape=(8,), vocabulary=20, width=0.1, heads=3)
    assert model.get_submodule("head").in_features == 12
    (problem,) = model_problems("text_transformer", {"depth": 0}, 2, (8,))
    assert str(problem) == "depth must be a whole number from 1 to 1000, got 0"


def test_attention_reads_tokens_alone_as_torchs_does() -> None:
    torch.manual_seed(0)
    attention = Attention(8, 2, 0.0).eval()
    vectors, mask = torch.randn(2, 5, 8), torch.arange(5) < torch.tensor([[5], [3]])
    query, key, value = (part.unflatten(2, (2, 4)).transpose(1, 2) for part in attention.qkv(vectors).chunk(3, dim=2))
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None])
    expected = attention.proj(mixed.transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(vectors, mask), expected)
