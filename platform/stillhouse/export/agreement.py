"""Whether an exported form returns the same outputs as the student, and how fast it is."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stillhouse.errors import UsageError
from stillhouse.models.layers import Shape
from stillhouse.models.size import Latency, measure_latency

Answer = Callable[[Tensor], Tensor]
"""Logits [B, classes] for images [B, C, H, W]."""

BATCH_SIZES = (1, 64)
# float32 has 7 digits; in a deep network, kernels that add in another order lose one or two of them.
_TOLERANCE = 1e-4
_BUDGET_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Two networks on the same images.

    Attributes:
        largest_difference: of any two logits.
        largest_logit: of the student, by magnitude; the difference is judged against it.
        same_class: samples with the same largest output in both.
    """

    images: int
    largest_difference: float
    largest_logit: float
    same_class: int

    def joined(self, other: "Agreement") -> "Agreement":
        """Both comparisons as one."""
        return Agreement(
            images=self.images + other.images,
            largest_difference=max(self.largest_difference, other.largest_difference),
            largest_logit=max(self.largest_logit, other.largest_logit),
            same_class=self.same_class + other.same_class,
        )


def agreement(student: nn.Module, answer: Answer, images: Tensor, *, what: str, tolerance: float = _TOLERANCE) -> Agreement:
    """Compares both on `images` [N, ...]: the first image alone, the others in batches.

    Args:
        what: the file, for errors.
        tolerance: of the largest output's magnitude.

    Raises:
        UsageError: the outputs differ by more than rounding, or the student's are not finite.
    """
    difference, logit, same = 0.0, 0.0, 0
    for batch in _batches(images):
        with torch.no_grad():
            expected = student(batch)
        got = answer(batch)
        if got.shape != expected.shape:
            raise UsageError(f"{what} returns {list(got.shape)} where the student returns {list(expected.shape)}")
        difference = max(difference, _largest(got - expected))
        logit = max(logit, _largest(expected))
        same += int((got.flatten(1).argmax(1) == expected.flatten(1).argmax(1)).sum())
    if not math.isfinite(logit):
        raise UsageError("the student's logits are not finite on images of the data set; choose another trial")
    if not difference <= tolerance * max(1.0, logit):
        raise UsageError(
            f"{what} does not return the student's outputs: logits differ by {difference:.3g}; "
            "does its forward pass depend on more than the image?"
        )
    return Agreement(images=len(images), largest_difference=difference, largest_logit=logit, same_class=same)


def latency_of(answer: Answer, input_shape: Shape, like: nn.Module | None = None) -> dict[int, Latency]:
    """The latency on the CPU, at the batch sizes of the card.

    Args:
        like: the network that was exported, which knows what it reads; without it, images as float32.
    """
    return measure_latency(Answering(answer, like), input_shape, batch_sizes=BATCH_SIZES, budget_s=_BUDGET_S)


class Answering(nn.Module):
    """A module around an exported form: latency is measured of modules, and a loaded program refuses `eval()`.

    Args:
        like: the network that was exported; the module reads what it reads (`example_input`).
    """

    def __init__(self, answer: Answer, like: nn.Module | None = None) -> None:
        super().__init__()
        self._answer = answer
        for name in ("input_dtype", "example_input"):
            if (value := getattr(like, name, None)) is not None:
                setattr(self, name, value)

    def forward(self, images: Tensor) -> Tensor:
        return self._answer(images)


def _batches(images: Tensor) -> Iterator[Tensor]:
    yield images[:1]
    for start in range(1, len(images), BATCH_SIZES[-1]):
        yield images[start : start + BATCH_SIZES[-1]]


def _largest(values: Tensor) -> float:
    """The largest magnitude; NaN counts as infinite, which a maximum would hide."""
    return float(values.abs().nan_to_num(nan=math.inf).max())
