from pathlib import Path

import numpy as np
import pytest
import torch

from stillhouse.testing import ReferenceCase


def test_results_and_gradients_are_compared_with_the_recorded_ones(tmp_path: Path) -> None:
    numbers = np.array([1.0, 2.0])
    arrays = {"in.x": numbers, "hp.power": np.array(2.0), "out.loss.f64": np.array(5.0), "grad.x.f64": 2 * numbers}
    np.savez(tmp_path / "case.npz", allow_pickle=False, **arrays)
    case = ReferenceCase(tmp_path / "case.npz", torch.float64)
    loss = case["in.x"].pow(case.number("power")).sum()
    case.check(loss)
    case.check_gradients(loss, "x")
    with pytest.raises(AssertionError):
        case.check(loss * (1 + 1e-8))
    with pytest.raises(AssertionError):
        case.check_gradients(1.001 * loss, "x")
