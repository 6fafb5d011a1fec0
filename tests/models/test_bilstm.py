"""The size of a BiLSTM by hand, and its layer compared with torch's bidirectional one."""

import torch
from torch import nn

from stillhouse.models.bilstm import BothWays
from stillhouse.models.registry import build_model
from stillhouse.models.size import measure_size


def test_the_parameters_of_one_and_of_two_layers() -> None:
    one = build_model("bilstm", num_classes=2, input_shape=(40,), vocabulary=1000)
    # Vectors; two directions of 4 gates from 128 inputs and 128 of the state with two biases; two classes from 256 numbers.
    assert measure_size(one, (40,)).parameters == 1000 * 128 + 2 * 4 * 128 * (128 + 128 + 2) + 256 * 2 + 2
    two = build_model("bilstm", num_classes=2, input_shape=(40,), vocabulary=1000, width=0.25, depth=2)
    layers = 2 * 4 * 32 * (32 + 32 + 2) + 2 * 4 * 32 * (64 + 32 + 2)
    assert measure_size(two, (40,)).parameters == 1000 * 32 + layers + 64 * 2 + 2


def test_a_layer_returns_what_torchs_packed_bidirectional_layer_does() -> None:
    torch.manual_seed(0)
    ours, theirs = BothWays(3, 4), nn.LSTM(3, 4, batch_first=True, bidirectional=True)
    for name, weight in ours.forwards.named_parameters():
        theirs.get_parameter(name).data.copy_(weight)
    for name, weight in ours.backwards.named_parameters():
        theirs.get_parameter(f"{name}_reverse").data.copy_(weight)
    lengths = torch.tensor([5, 2, 7])
    mask = torch.arange(7) < lengths.unsqueeze(1)
    vectors = torch.randn(3, 7, 3)
    packed = nn.utils.rnn.pack_padded_sequence(vectors, lengths, batch_first=True, enforce_sorted=False)
    expected, _ = nn.utils.rnn.pad_packed_sequence(theirs(packed)[0], batch_first=True)
    torch.testing.assert_close(ours(vectors, mask), expected)
