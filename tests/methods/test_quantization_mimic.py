"""Quantization Mimic against the paper's formula, and hand values of its quantization."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from stillhouse.methods.quantization_mimic import QuantizationMimic, mimic_loss, quantized
from stillhouse.testing import MethodTrial, ReferenceCase

Open = Callable[[str], ReferenceCase]


def test_loss_and_gradients_are_those_of_the_formula(open_case: Open) -> None:
    case = open_case("quantization-mimic-formula")
    mapped = F.conv2d(case["in.s_feat"], case["w.r.weight"], case["w.r.bias"])
    step = case.number("step")
    case.check(quantized(mapped, step), "aux.Q_s")
    case.check(quantized(case["in.t_feat"], step), "aux.Q_t")
    loss = mimic_loss(mapped, case["in.t_feat"], step)
    case.check(loss)
    case.check_gradients(loss, "s_feat")
    for name in ("weight", "bias"):
        (gradient,) = torch.autograd.grad(loss, case[f"w.r.{name}"], retain_graph=True)
        case.check(gradient, f"grad.w.r.{name}")


@pytest.mark.parametrize(
    ("value", "nearest"),
    # Ties go down: 0.25 lies between 0 and 0.5, and 0.75 between 0.5 and 1.
    [(0.0, 0.0), (0.25, 0.0), (0.2500001, 0.5), (0.6, 0.5), (0.75, 0.5), (0.76, 1.0), (-3.0, 0.0), (7.1, 7.0)],
)
def test_values_become_the_nearest_multiple_of_the_step(value: float, nearest: float) -> None:
    assert float(quantized(torch.tensor(value), 0.5)) == nearest


def test_equal_maps_have_no_loss_and_the_mean_is_the_sum_over_the_elements() -> None:
    maps = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    other = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    assert float(mimic_loss(maps, maps, 0.1)) == 0
    torch.testing.assert_close(mimic_loss(other, maps, 0.1, "mean") * 60, mimic_loss(other, maps, 0.1))


def test_one_sealed_view_serves_every_step() -> None:
    kinds = [MethodTrial(QuantizationMimic(quantization_step=step)).knowledge() for step in (0.1, 1.0)]
    assert kinds[0] == kinds[1]


def test_a_weight_of_zero_needs_no_teacher() -> None:
    trial = MethodTrial(QuantizationMimic(mimic_weight=0.0))
    assert trial.knowledge() == {}
    assert "mimic" not in trial.trainer().run_epoch()
