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


def test_the_numbers_of_arrays_are_read_from_the_case(tmp_path: Path) -> None:
    names = ["in.s_feat0", "in.s_feat2", "in.s_feat10", "in.s_features", "grad.s_feat1.f64"]
    np.savez(tmp_path / "case.npz", allow_pickle=False, **dict.fromkeys(names, np.zeros(1)))
    case = ReferenceCase(tmp_path / "case.npz", torch.float64)
    assert case.numbers("in.s_feat") == [0, 2, 10]
    assert case.numbers("in.t_feat") == []
    assert case.has("in.s_feat2")
    assert not case.has("in.s_feat1")
