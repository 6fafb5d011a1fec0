"""The size of a TextCNN by hand, and one of its windows by hand."""

import torch

from stillhouse.models.registry import build_model
from stillhouse.models.size import measure_size
from stillhouse.models.text_cnn import Window


def test_the_parameters_are_those_of_the_paper_with_vectors_of_128_numbers() -> None:
    model = build_model("text_cnn", num_classes=2, input_shape=(40,), vocabulary=1000)
    # Vectors; 100 filters over 3, 4 and 5 tokens with a bias each; two classes from 300 numbers.
    assert measure_size(model, (40,)).parameters == 1000 * 128 + (3 + 4 + 5) * 128 * 100 + 300 + 300 * 2 + 2
    half = build_model("text_cnn", num_classes=2, input_shape=(40,), vocabulary=1000, width=0.5)
    assert measure_size(half, (40,)).parameters == 1000 * 64 + 12 * 64 * 50 + 150 + 150 * 2 + 2


def test_a_window_takes_its_largest_value_over_the_text() -> None:
    """A filter that adds two neighbours: the largest sum of neighbours, where places outside of the text are 0."""
    window = Window(1, 1, 2)
    with torch.no_grad():
        window.conv.weight.fill_(1.0)
        window.conv.bias = torch.nn.Parameter(torch.tensor([0.5]))
    vectors = torch.tensor([[[1.0], [2.0], [4.0], [0.0]], [[-3.0], [0.0], [0.0], [0.0]]])
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    # Sums 1, 3, 6, 4 and the bias; -3 and -3 and the bias, of which the ReLU leaves 0, although padding alone would give 0.5.
    assert window(vectors, mask).flatten().tolist() == [6.5, 0.0]
