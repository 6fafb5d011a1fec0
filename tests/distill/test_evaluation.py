"""Evaluation: the task's metric of a model on a split, whatever batches and workers it is divided among."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.data.images import ImageData, Split
from stillhouse.distill.ddp import Workers
from stillhouse.distill.evaluation import can_degrade, evaluate
from stillhouse.tasks.classification import Classification


class Constant(nn.Module):
    """Says the same class of every image, and that training is on by another one."""

    def __init__(self, answer: int) -> None:
        super().__init__()
        self.answer = answer
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        answer = (self.answer + 1) % 10 if self.training else self.answer
        return F.one_hot(torch.full((len(images),), answer), 10).float() + 0 * self.unused


@pytest.mark.parametrize("answer", [0, 3])
def test_accuracy_is_the_share_of_right_answers_in_evaluation_mode(digits: ImageData, answer: int) -> None:
    model = Constant(answer).train()
    right = int((digits.validation.labels == answer).sum())
    assert 0 < right < 40
    assert evaluate(model, digits, digits.validation, "cpu") == right / 40
    assert model.training


def test_accuracy_does_not_depend_on_how_the_split_is_cut(digits: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    whole = evaluate(model, digits, digits.validation, "cpu")
    monkeypatch.setattr("stillhouse.distill.evaluation._BATCH", 7)
    assert evaluate(model, digits, digits.validation, "cpu") == whole


def test_a_share_is_every_second_batch(digits: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers see each sample once: what they gather are the states of disjoint shares."""
    monkeypatch.setattr("stillhouse.distill.evaluation._BATCH", 7)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    class OthersSawNothing(Workers):
        def gather(self, values: Tensor) -> list[Tensor]:
            return [values, torch.zeros_like(values)]

    shares = [evaluate(model, digits, digits.validation, "cpu", workers=OthersSawNothing(rank, 2)) for rank in range(2)]
    sizes = [sum(len(part) for part in np.array_split(np.arange(40), range(7, 40, 7))[rank::2]) for rank in range(2)]
    assert sum(sizes) == 40
    whole = evaluate(model, digits, digits.validation, "cpu")
    assert whole * 40 == pytest.approx(sum(share * size for share, size in zip(shares, sizes, strict=True)))


class FromNoise(Classification):
    """A task whose models do not read the images."""

    def evaluation_inputs(self, data: ImageData, images: Tensor, indices: Tensor) -> Tensor:
        return indices.float().view(-1, 1).expand(-1, 4)


def test_only_images_that_models_read_can_be_degraded(digits: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    assert can_degrade(digits)
    tokens = Split(torch.zeros(4, 8, dtype=torch.int64), torch.zeros(4, dtype=torch.int64))
    assert not can_degrade(dataclasses.replace(digits, validation=tokens))
    monkeypatch.setattr("stillhouse.distill.evaluation.of", lambda _data: FromNoise())
    assert not can_degrade(digits)
