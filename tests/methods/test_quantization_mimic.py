"""Quantization Mimic against the paper's formula, and hand values of its quantization."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from stillhouse.methods.quantization_mimic import QuantizationMimic, mimic_loss, quantized, relation_loss
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


def test_relations_are_compared_as_the_formula_says() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64) for _ in range(2))

    def gram(maps: torch.Tensor) -> torch.Tensor:
        # Written out: which of 0, 0.3, 0.6, ... is nearest, then the products of all pairs of maps, in rows of length 1.
        values = torch.arange(0, 6, 0.3, dtype=torch.float64)
        nearest = values[(maps.flatten(2).unsqueeze(-1) - values).abs().argmin(dim=-1)]
        products = torch.stack([torch.stack([(a * b).sum(-1) for b in nearest.unbind(1)], 1) for a in nearest.unbind(1)], 1)
        return products / products.square().sum(-1, keepdim=True).sqrt()

    expected = sum(float((gram(ours)[n, k] - gram(theirs)[n, k]).square().sum()) for n in range(2) for k in range(3)) / 6
    assert float(relation_loss(ours, theirs, 0.3)) == pytest.approx(expected, rel=1e-12)
    assert float(relation_loss(ours, ours, 0.3)) == 0


def test_relations_do_not_depend_on_the_size_of_values_or_the_order_of_positions() -> None:
    ours, theirs = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4, 5)
    loss = relation_loss(ours, theirs, 0.125)
    torch.testing.assert_close(relation_loss(4 * ours, 4 * theirs, 0.5), loss)
    turned = relation_loss(ours.flip(2, 3), theirs.flip(2, 3), 0.125)
    torch.testing.assert_close(turned, loss)


def test_the_gradient_of_relations_passes_the_quantization_unchanged() -> None:
    ours, theirs = torch.rand(2, 3, 4, 5, dtype=torch.float64).requires_grad_(), torch.rand(2, 3, 4, 5, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(relation_loss(ours, theirs, 0.1), ours)
    on_grid = quantized(ours, 0.1).detach().requires_grad_()
    (expected,) = torch.autograd.grad(relation_loss(on_grid, theirs, 0.1), on_grid)
    torch.testing.assert_close(gradient, expected)


def test_relations_are_a_term_of_their_own_and_need_no_other_knowledge() -> None:
    trial = MethodTrial(QuantizationMimic(relation_weight=2.0), student="resnet8")
    assert trial.knowledge() == MethodTrial(QuantizationMimic(), student="resnet8").knowledge()
    entry = trial.trainer().run_epoch()
    assert {"mimic", "relations"} <= entry.keys() | entry.get("losses", {}).keys()
    alone = MethodTrial(QuantizationMimic(mimic_weight=0.0, relation_weight=1.0), student="resnet8").trainer().run_epoch()
    assert "mimic" not in alone.keys() | alone.get("losses", {}).keys()
