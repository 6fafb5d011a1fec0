"""Top-k logits against NumPy in double precision: what is exact is exact, what is unbiased is unbiased."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from stillhouse.data.hashing import uniform
from stillhouse.knowledge import feature, logits
from stillhouse.knowledge.kinds import Knowledge
from stillhouse.knowledge.top_k import TopK


def softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(values - values.max(-1, keepdims=True))
    answer: NDArray[np.float64] = powers / powers.sum(-1, keepdims=True)
    return answer


def some_logits(rows: int, classes: int, seed: int = 0) -> Tensor:
    return 4 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))


def draws(rows: int, count: int, key: int = 5) -> Tensor:
    return torch.from_numpy(uniform(key, np.arange(rows * count).reshape(rows, count)))


def stored_of(kind: Knowledge, values: Tensor, key: int = 5) -> Tensor:
    return kind.compute(values, {}, (), draws(len(values), kind.draws, key) if kind.draws else None)


def back(kind: Knowledge, values: Tensor, key: int = 5) -> NDArray[np.float64]:
    restored: NDArray[np.float64] = kind.restore(stored_of(kind, values, key)).double().numpy()
    return restored


def test_by_hand() -> None:
    """exp of the logits: 8, 4, 1, 1, 2 and 16 more ones make a tail of 20 after the two largest."""
    values = torch.tensor([[8.0, 4.0, 1.0, 1.0, 2.0, *[1.0] * 16]]).log()
    kind = TopK(2).of(logits(), 21)
    stored = stored_of(kind, values)
    assert stored.shape == (1, 5)
    assert torch.allclose(stored[0, :3].exp(), torch.tensor([8.0, 4.0, 20.0]))
    assert stored[0, 3:].tolist() == [0, 1]
    # 20 over 19 classes.
    assert np.allclose(np.exp(back(kind, values)), [[8, 4, *[20 / 19] * 19]], rtol=1e-6)


@given(classes=st.integers(24, 60), k=st.integers(1, 5), count=st.integers(0, 5), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_the_largest_logits_and_the_mass_of_the_tail_are_exact(classes: int, k: int, count: int, seed: int) -> None:
    values = some_logits(7, classes, seed)
    restored = back(TopK(k, count).of(logits(), classes), values)
    for row, given_row in zip(restored, values.double().numpy(), strict=True):
        largest = np.argsort(-given_row)[:k]
        assert np.array_equal(row[largest], given_row[largest]), "the logits themselves, bit for bit"
        assert np.allclose(softmax(row)[largest], softmax(given_row)[largest], rtol=1e-4)
        assert np.isclose(np.delete(softmax(row), largest).sum(), np.delete(softmax(given_row), largest).sum(), rtol=1e-4)
        assert np.isfinite(row).all()


def test_the_mass_of_an_even_tail_at_another_temperature_is_wrong_in_the_direction_that_is_documented() -> None:
    values = some_logits(20, 40)
    restored, truth = back(TopK(4).of(logits(), 40), values), values.double().numpy()
    largest = np.argsort(-truth, axis=1)[:, :4]
    for temperature, overstated in ((4.0, True), (0.5, False)):
        tails = [1 - np.take_along_axis(softmax(z / temperature), largest, 1).sum(1) for z in (restored, truth)]
        assert ((tails[0] > tails[1]) == overstated).all()


@pytest.mark.parametrize("count", [1, 4])
def test_a_drawn_tail_is_right_on_average(count: int) -> None:
    """The mean over n independent draws of one sample; each class's frequency is binomial with n·count trials."""
    n, classes, k = 40_000, 30, 3
    one = some_logits(1, classes)
    kind = TopK(k, count).of(logits(), classes)
    mean = softmax(back(kind, one.expand(n, classes))).mean(0)
    truth = softmax(one.double().numpy())[0]
    tail = np.sort(truth)[: classes - k].sum()
    share = truth / tail
    deviation = tail * np.sqrt(np.clip(share * (1 - share), 0, None) / (n * count))
    in_tail = np.argsort(truth)[: classes - k]
    assert (np.abs(mean - truth)[in_tail] < 5 * deviation[in_tail] + 1e-7).all()
    assert mean.sum() == pytest.approx(1)


def test_an_even_tail_is_not_right_on_average_so_that_the_test_above_means_something() -> None:
    one = some_logits(1, 30)
    error = np.abs(softmax(back(TopK(3).of(logits(), 30), one)) - softmax(one.double().numpy()))[0]
    in_tail = np.argsort(one[0].numpy())[:27]
    assert error[in_tail].max() > 0.1 * softmax(one.double().numpy())[0][in_tail].max()


def test_a_class_of_the_head_is_never_drawn_whatever_the_draw() -> None:
    values = torch.tensor([[5.0, 0.0, -200.0, 1.0, -200.0, *[-200.0] * 20]])
    kind = TopK(1, 4).of(logits(), 25)
    for number in (0.0, 0.25, 0.75, 1 - 2**-53):
        stored = kind.compute(values, {}, (), torch.full((1, 4), number, dtype=torch.float64))
        assert set(stored[0, 3:].tolist()) <= {1.0, 3.0}


@pytest.mark.parametrize("classes", [2048, 2049, 21_841])
@pytest.mark.parametrize("count", [0, 6])
def test_classes_survive_half_precision_however_many_there_are(classes: int, count: int) -> None:
    values = some_logits(5, classes)
    kind = TopK(8, count).of(logits(), classes)
    restored = kind.restore(stored_of(kind, values).half())
    assert restored.dtype == torch.float32
    assert restored.shape == (5, classes)
    largest, places = values.topk(8)
    assert torch.equal(restored.gather(1, places), largest.half().float())
    whole = kind.restore(stored_of(kind, values))
    assert torch.allclose(restored, whole, atol=0.02), "every class where it was, its logit rounded"


@pytest.mark.parametrize(("k", "count", "classes"), [(10, 0, 10), (16, 0, 10), (5, 0, 10), (3, 4, 11)])
def test_full_logits_are_stored_if_they_are_no_larger(k: int, count: int, classes: int) -> None:
    assert TopK(k, count).of(logits(), classes) == logits()


def test_other_kinds_stay_unchanged() -> None:
    assert TopK(2).of(feature("layer1"), 1000) == feature("layer1")


def test_every_form_has_its_own_identity() -> None:
    forms = [logits(), *(TopK(k, count).of(logits(), 100) for k, count in ((2, 0), (3, 0), (2, 1), (2, 2)))]
    assert len({str(form.identity()) for form in forms}) == len(forms)


@pytest.mark.parametrize(("k", "count"), [(0, 0), (-1, 0), (3, -1)])
def test_numbers_that_make_no_sense_are_refused(k: int, count: int) -> None:
    with pytest.raises(ValueError, match="k >= 1 and draws >= 0"):
        TopK(k, count)
