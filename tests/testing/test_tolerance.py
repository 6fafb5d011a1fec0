"""How far results may differ on a CPU and on a GPU."""

import pytest
import torch

from stillhouse.testing.tolerance import ON_CPU, ON_GPU, tolerance_on


def test_a_cpu_repeats_a_computation_bit_for_bit() -> None:
    assert tolerance_on("cpu").repeated == 0
    with pytest.raises(AssertionError, match=r"the weight differs by up to 1\.19e-07, allowed are 0"):
        ON_CPU.assert_repeated(torch.tensor([1 + 2**-23, 0.0]), torch.tensor([1.0, 0.0]), "the weight")


def test_a_gpu_may_differ_by_a_share_of_the_largest_value() -> None:
    expected = torch.tensor([-200.0, 0.0])
    tolerance_on("cuda:1").assert_repeated(torch.tensor([-200.0, 1.99]), expected, "the weight")
    with pytest.raises(AssertionError, match=r"the weight differs by up to 2\.01, allowed are 2$"):
        tolerance_on("cuda").assert_repeated(torch.tensor([-200.0, 2.01]), expected, "the weight")


@pytest.mark.parametrize("wrong", [[float("nan"), 0.0], [1.0]], ids=["not a number", "another shape"])
def test_neither_nan_nor_another_shape_passes_on_any_device(wrong: list[float]) -> None:
    for tolerance in (ON_CPU, ON_GPU):
        with pytest.raises(AssertionError, match="the weight"):
            tolerance.assert_repeated(torch.tensor(wrong), torch.tensor([1.0, 0.0]), "the weight")
