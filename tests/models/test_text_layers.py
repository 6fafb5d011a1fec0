"""What models of texts have in common: padding changes nothing, sizes, example inputs, and what they do not read."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from stillhouse.models.architecture import describe
from stillhouse.models.registry import build_model, model_problems, sketch_model, with_data_options
from stillhouse.models.size import measure_size
from stillhouse.models.text_layers import MaskedMax, MaskedMean, TextModel, Words

_MODELS = ("text_cnn", "bilstm", "text_transformer")


def built(name: str, **options: object) -> TextModel:
    torch.manual_seed(0)
    model = build_model(name, num_classes=3, input_shape=(24,), vocabulary=50, width=0.25, **options)
    assert isinstance(model, TextModel)
    return model.eval()


def texts(*lengths: int, to: int) -> Tensor:
    """Random tokens, 0 after each text's length."""
    ids = torch.randint(1, 50, (len(lengths), to), generator=torch.Generator().manual_seed(0))
    return ids * (torch.arange(to) < torch.tensor(lengths).unsqueeze(1))


@pytest.mark.parametrize("name", _MODELS)
def test_padding_changes_nothing(name: str) -> None:
    """Each text alone, without any padding, has the logits that it has in a batch of longer ones."""
    model = built(name)
    lengths = (1, 2, 5, 11, 24)
    ids = texts(*lengths, to=24)
    with torch.no_grad():
        together = model(ids)
        for row, length in enumerate(lengths):
            torch.testing.assert_close(model(ids[row : row + 1, :length])[0], together[row], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", _MODELS)
def test_padding_gets_no_gradient_and_an_empty_text_has_finite_logits(name: str) -> None:
    model = built(name)
    ids = texts(3, 24, 0, to=24)
    logits = model(ids)
    assert bool(logits.isfinite().all())
    logits.sum().backward()
    table = model.get_submodule("words.table").weight
    assert isinstance(table, Tensor)
    assert table.grad is not None
    assert not table.grad[0].any()
    assert all(bool(each.grad.isfinite().all()) for each in model.parameters() if each.grad is not None)


@pytest.mark.parametrize("name", _MODELS)
def test_a_row_of_padding_that_an_operator_changed_has_no_effect(name: str) -> None:
    model = built(name)
    ids = texts(4, 9, to=12)
    before = model(ids)
    with torch.no_grad():
        table = model.get_submodule("words.table").weight
        assert isinstance(table, Tensor)
        table[0] = 7.0
    assert torch.equal(model(ids), before)


@pytest.mark.parametrize(("name", "device"), [*itertools.product(_MODELS, ("cpu", "meta"))])
def test_macs_are_counted_alike_with_and_without_storage(name: str, device: str) -> None:
    """A recurrent layer is one operation on a CPU and many on the meta device."""
    with torch.device(device):
        model = build_model(name, num_classes=2, input_shape=(20,), vocabulary=50)
    expected = {
        # 3, 4, 5 tokens of 128 numbers to 100 filters at 22, 23, 24 places; 300 numbers to 2 classes.
        "text_cnn": 128 * 100 * (3 * 22 + 4 * 23 + 5 * 24) + 300 * 2,
        # 4 gates of 128 numbers from 128 inputs and 128 of the state, in both directions at 20 places.
        "bilstm": 2 * 20 * 4 * 128 * (128 + 128) + 256 * 2,
        # Two blocks: 12 D^2 at each place, and scores and mixtures of 20 by 20 places with D numbers.
        "text_transformer": 2 * (20 * 12 * 128 * 128 + 2 * 20 * 20 * 128) + 128 * 2,
    }
    assert measure_size(model, (20,)).macs == expected[name]


@pytest.mark.parametrize("name", _MODELS)
def test_layers_are_described_for_methods(name: str) -> None:
    described = describe(sketch_model(name, num_classes=3, input_shape=(24,), vocabulary=50), name=name, input_shape=(24,))
    assert described.stages == ()
    assert described.pooled == "pooled"
    assert len(described.shape("pooled")) == 1
    assert described.data_options == {"vocabulary": 50}
    assert all(described.shape(layer) == (24, described.shape(layer)[1]) for layer in described.token_layers)
    assert all(described.shape(layer) == (4, 24, 24) for layer in described.attention_layers)


def test_a_masked_mean_and_maximum_ignore_padding() -> None:
    vectors = torch.tensor([[[1.0, -2.0], [3.0, -4.0], [100.0, 100.0]], [[5.0, 6.0], [7.0, 8.0], [9.0, 10.0]]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert torch.equal(MaskedMean()(vectors, mask), torch.tensor([[2.0, -3.0], [0.0, 0.0]]))
    assert torch.equal(MaskedMax()(vectors, mask), torch.tensor([[3.0, -2.0], [0.0, 0.0]]))
    assert torch.equal(Words(5, 2)(torch.tensor([[0, 1]]))[0, 0], torch.zeros(2))


def refused() -> Iterator[tuple[str, tuple[int, ...], str]]:
    yield "mlp", (24,), "mlp reads images, and the samples of this data set are texts; choose another model"
    yield "resnet20", (24,), "resnet20 reads images, and the samples of this data set are texts; choose another model"
    yield "torchvision:resnet18", (24,), "torchvision:resnet18 reads images, and the samples of this data set are texts"
    yield "text_cnn", (1, 8, 8), "text_cnn reads texts, and the samples of this data set are images; choose another model"
    yield "bilstm", (3, 32, 32), "bilstm reads texts, and the samples of this data set are images; choose another model"


@pytest.mark.parametrize(("name", "shape", "message"), [*refused()])
def test_a_model_of_other_samples_is_refused_in_one_sentence(name: str, shape: tuple[int, ...], message: str) -> None:
    (problem,) = model_problems(name, {}, 10, shape)
    assert message in str(problem)


def test_a_model_takes_what_the_data_set_decides_unless_the_spec_does() -> None:
    assert with_data_options("text_cnn", {"width": 2}, {"vocabulary": 70}) == {"width": 2, "vocabulary": 70}
    assert with_data_options("text_cnn", {"vocabulary": 90}, {"vocabulary": 70}) == {"vocabulary": 90}
    assert with_data_options("mlp", {}, {"vocabulary": 70}) == {}
    (problem,) = model_problems("text_cnn", {"vocabulary": 0}, 2, (8,))
    assert str(problem) == "vocabulary must be a whole number >= 1, got 0"
