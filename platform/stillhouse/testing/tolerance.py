"""How far two results that should be equal may differ on a device."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tolerance:
    """Limits on the difference of two tensors, as shares of the largest absolute value of the expected one.

    Attributes:
        repeated: of one computation that is run twice, such as a training and its resumed copy; 0 compares bit for bit.
        regrouped: of one computation whose sums are added in another order, such as a batch in parts.
        per_sample: of a sample's row that is computed in another batch.
    """

    repeated: float
    regrouped: float
    per_sample: float

    def assert_repeated(self, value: Tensor, expected: Tensor, what: str) -> None:
        """Raises an AssertionError that names `what` if the tensors differ by more than `repeated`; NaN never passes."""
        assert value.shape == expected.shape, f"{what} is {tuple(value.shape)} instead of {tuple(expected.shape)}"
        if torch.equal(value, expected):
            return
        largest = float(expected.to("cpu", torch.float64).abs().max())
        difference = float((value.to("cpu", torch.float64) - expected.to("cpu", torch.float64)).abs().max())
        allowed = self.repeated * largest
        assert difference <= allowed, f"{what} differs by up to {difference:.3g}, allowed are {allowed:.3g}"


ON_CPU = Tolerance(repeated=0.0, regrouped=1e-3, per_sample=1e-4)
"""Equal operations on equal shapes give equal bits; sums of float32 in another order differ by rounding."""
ON_GPU = Tolerance(repeated=1e-2, regrouped=2e-2, per_sample=1e-2)
"""Atomic additions of backward passes add in any order, and 16 steps of training multiply the difference. Convolutions round
their inputs to TF32, whose relative precision is 2^-11 = 5e-4 per product."""


def tolerance_on(device: str) -> Tolerance:
    """The tolerances for results of the device."""
    return ON_CPU if torch.device(device).type == "cpu" else ON_GPU
