"""An export whose outputs differ from the student's is refused."""

import math

import pytest
import torch
from torch import Tensor, nn

from stillhouse.errors import UsageError
from stillhouse.export.agreement import agreement, latency_of
from stillhouse.export.onnx import require_packages
from stillhouse.export.program import make_program

IMAGES = torch.arange(130 * 4, dtype=torch.float32).reshape(130, 1, 2, 2) / 100


class Flat(nn.Module):
    """Pixels as logits."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def test_the_largest_difference_and_the_same_classes_are_counted_over_all_batches() -> None:
    def answer(images: Tensor) -> Tensor:
        logits = images.flatten(1).clone()
        logits[(images == IMAGES[129]).flatten(1).all(dim=1), 0] += 2**-12
        return logits

    found = agreement(Flat(), answer, IMAGES, what="it")
    assert found.largest_difference == pytest.approx(2**-12, rel=0.01)
    assert found.largest_logit == pytest.approx(5.19)
    assert (found.images, found.same_class) == (130, 130)


def test_another_class_is_not_the_same_class() -> None:
    def answer(images: Tensor) -> Tensor:
        return images.flatten(1).flip(1)

    assert agreement(Flat(), answer, torch.full((3, 1, 2, 2), 1.0), what="it").same_class == 3
    with pytest.raises(UsageError, match=r"student\.onnx does not return the student's outputs: logits differ by 0\.03"):
        agreement(Flat(), answer, IMAGES, what="student.onnx")


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_what_is_not_finite_does_not_agree(wrong: float) -> None:
    with pytest.raises(UsageError, match="logits differ by inf"):
        agreement(Flat(), lambda images: images.flatten(1) * wrong, IMAGES, what="it")


def test_a_student_whose_logits_are_not_finite_is_not_exported() -> None:
    images = torch.full((2, 1, 2, 2), math.nan)
    with pytest.raises(UsageError, match="not finite"):
        agreement(Flat(), lambda images: images.flatten(1), images, what="it")


def test_another_number_of_logits_is_named() -> None:
    with pytest.raises(UsageError, match=r"it returns \[1, 2\] where the student returns \[1, 4\]"):
        agreement(Flat(), lambda images: images.flatten(1)[:, :2], IMAGES, what="it")


def test_latency_is_measured_at_batches_of_1_and_64() -> None:
    seen = []

    def answer(images: Tensor) -> Tensor:
        seen.append(len(images))
        return images

    measured = latency_of(answer, (1, 2, 2))
    assert sorted(measured) == [1, 64] == sorted(set(seen))
    assert all(0 < each.p50_ms <= each.p95_ms for each in measured.values())


class Deciding(nn.Module):
    """PlotStyle at its pixels to choose what it computes."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) if images.sum() > 0 else -images.flatten(1)


class OfTwo(nn.Module):
    """Works for two images only."""

    def forward(self, images: Tensor) -> Tensor:
        return images.reshape(2, -1)


@pytest.mark.parametrize("model", [Deciding(), OfTwo()], ids=["pixels", "number"])
def test_a_model_that_decides_by_its_images_is_refused_in_a_sentence(model: nn.Module) -> None:
    with pytest.raises(UsageError, match=f"cannot trace {type(model).__name__}") as caught:
        make_program(model, (1, 2, 2))
    assert "\n" not in str(caught.value)


def test_the_packages_of_the_extra_are_here() -> None:
    require_packages()
