from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stillhouse.distill.maps import shrink
from stillhouse.distill.method import MethodError, Setup, Stage, Unsuitable
from stillhouse.knowledge.kinds import reduced
from stillhouse.methods.factor_transfer import (
    FactorTransfer,
    Paraphraser,
    factor_loss,
    make_translator,
    reconstruction_loss,
)
from stillhouse.models.architecture import Architecture, UnknownLayer
from stillhouse.testing import MethodTrial, ReferenceCase, make_step

Open = Callable[[str], ReferenceCase]


def architecture(*shapes: tuple[int, ...]) -> Architecture:
    layers = {f"stage{number}": shape for number, shape in enumerate(shapes)}
    return Architecture(name="net", num_classes=10, input_shape=(3, 32, 32), shapes=layers, stages=tuple(layers))


def setup(teacher: Architecture, student: Architecture, epochs: int) -> Setup:
    return Setup(teacher=teacher, student=student, new_student=nn.Identity, num_samples=100, epochs=epochs)


def channels(case: ReferenceCase, prefix: str) -> tuple[int, int]:
    """Channels before the first and after the last of the case's three convolutions."""
    return case[f"{prefix}0.weight"].shape[1], case[f"{prefix}2.weight"].shape[0]


def load(stack: nn.Module, case: ReferenceCase, prefix: str) -> nn.Module:
    """Three convolutions with the case's weights; they are the layers with even numbers."""
    names = {f"{2 * number}.{kind}": f"{prefix}{number}.{kind}" for number in range(3) for kind in ("weight", "bias")}
    stack.to(case["in.t_feat"].dtype).load_state_dict({ours: case[theirs].detach() for ours, theirs in names.items()})
    return stack


def check_weights(case: ReferenceCase, loss: torch.Tensor, stack: nn.Module, prefix: str) -> None:
    gradients = torch.autograd.grad(loss, list(stack.parameters()), retain_graph=True)
    for (name, _), gradient in zip(stack.named_parameters(), gradients, strict=True):
        number, kind = name.split(".")
        case.check(gradient, f"grad.{prefix}{int(number) // 2}.{kind}")


def test_the_transfer_equals_the_authors_code(open_case: Open) -> None:
    case = open_case("ft-official")
    translator = load(make_translator(*channels(case, "w.trans.conv")), case, "w.trans.conv")
    encoder = load(Paraphraser(*channels(case, "w.para.conv")).encoder, case, "w.para.conv")
    student_factor = translator(case["in.s_feat"])
    distance = factor_loss(student_factor, encoder(case["in.t_feat"]).detach())
    case.check(distance, "out.kdzoo_no_beta")
    loss = case.number("beta") * distance
    case.check(loss)
    case.check_gradients(loss, "s_feat")
    check_weights(case, loss, translator, "w.trans.conv")


def test_the_paraphraser_equals_the_authors_code(open_case: Open) -> None:
    case = open_case("ft-official-paraphraser-reconstruction")
    paraphraser = Paraphraser(*channels(case, "w.para.conv")).to(case["in.t_feat"].dtype)
    load(paraphraser.encoder, case, "w.para.conv")
    load(paraphraser.decoder, case, "w.para.deconv")
    reconstructed = paraphraser(case["in.t_feat"])
    case.check(reconstructed, "aux.rec")
    case.check(reconstruction_loss(reconstructed, case["in.t_feat"]), "aux.mse")
    loss = reconstruction_loss(reconstructed, case["in.t_feat"], "absolute")
    case.check(loss)
    check_weights(case, loss, paraphraser.encoder, "w.para.conv")
    check_weights(case, loss, paraphraser.decoder, "w.para.deconv")


def test_both_norms_equal_a_published_implementation(open_case: Open) -> None:
    case = open_case("ft-torchdistill")
    loss = factor_loss(case["in.s_feat"], case["in.t_feat"])
    case.check(loss)
    case.check_gradients(loss, "s_feat")
    case.check(factor_loss(case["in.s_feat"], case["in.t_feat"], 2), "out.loss_p2")


@pytest.mark.parametrize("norm", [1, 2])
def test_factors_that_differ_by_a_positive_scale_have_no_loss(norm: int) -> None:
    factor = torch.randn(3, 4, 2, 2, dtype=torch.float64)
    assert float(factor_loss(3 * factor, factor, norm)) == pytest.approx(0.0, abs=1e-12)


def test_opposite_and_orthogonal_factors_by_hand() -> None:
    right, up = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 2.0]]]])
    assert float(factor_loss(right, -right, 2)) == pytest.approx(2.0)
    assert float(factor_loss(right, up, 2)) == pytest.approx(2**0.5)
    assert float(factor_loss(right, up, 1)) == pytest.approx(1.0)


def test_a_factor_of_zeros_has_a_value() -> None:
    assert float(factor_loss(torch.zeros(2, 3, 2, 2), torch.zeros(2, 3, 2, 2))) == 0.0


def test_the_last_maps_are_compared_at_the_smaller_size() -> None:
    teacher, student = architecture((16, 16, 16), (32, 8, 8)), architecture((6, 14, 14), (16, 5, 5))
    assert FactorTransfer().pairs(teacher, student) == {"stage1": "stage1"}
    assert FactorTransfer().knowledge(teacher, student) == {"map": reduced(shrink, "stage1", height=5, width=5)}
    helpers = FactorTransfer(code_ratio=0.25).modules(setup(teacher, student, 4))
    factor = helpers["paraphraser"].module.get_submodule("encoder")(torch.randn(2, 32, 5, 5))
    assert factor.shape == helpers["translator"].module(torch.randn(2, 16, 5, 5)).shape == (2, 8, 5, 5)


def test_named_layers_are_used_and_wrong_ones_rejected() -> None:
    maps = architecture((16, 16, 16), (32, 8, 8))
    assert FactorTransfer(teacher_maps="stage0", student_maps="stage1").pairs(maps, maps) == {"stage1": "stage0"}
    with pytest.raises(MethodError, match="one layer of each network, got 'stage0, stage1'"):
        FactorTransfer(teacher_maps="stage0, stage1").pairs(maps, maps)
    with pytest.raises(UnknownLayer, match="no layer 'stage9'"):
        FactorTransfer(teacher_maps="stage9").pairs(maps, maps)
    with pytest.raises(Unsuitable):
        FactorTransfer().pairs(maps, architecture())


def test_the_paraphraser_is_trained_first_without_the_student() -> None:
    maps = architecture((16, 16, 16), (32, 8, 8))
    first, second = FactorTransfer(paraphraser_fraction=0.2).stages(setup(maps, maps, 10))
    assert (first.name, first.epochs, first.until, first.comparable) == ("paraphraser", 2, "stage0", False)
    assert (second.name, second.epochs, second.until, second.comparable) == ("transfer", 8, None, True)
    with pytest.raises(MethodError, match="each of its 2 stages, has 1"):
        FactorTransfer().stages(setup(maps, maps, 1))


def test_the_loss_of_the_second_stage_uses_the_frozen_factor() -> None:
    paraphraser, translator = Paraphraser(6, 3), make_translator(4, 3)
    guided, hint = torch.randn(5, 4, 8, 8), torch.randn(5, 6, 4, 4)
    step = make_step(
        student_logits=torch.randn(5, 10),
        student_features={"stage1": guided},
        teacher={"map": hint},
        modules={"paraphraser": paraphraser, "translator": translator},
        stage=Stage(name="transfer", epochs=1),
    )
    terms = FactorTransfer(factor_weight=3.0).loss(step)
    expected = 3 * factor_loss(translator(F.avg_pool2d(guided, 2)), paraphraser.encoder(hint))
    torch.testing.assert_close(terms["factor"], expected)
    terms["factor"].backward()
    assert all(weight.grad is None for weight in paraphraser.parameters())
    assert all(weight.grad is not None for weight in translator.parameters())


def test_each_stage_trains_its_own_networks() -> None:
    trainer = MethodTrial(FactorTransfer(paraphraser_fraction=0.5), epochs=2).trainer()
    networks = {"student": trainer.student, **trainer._modules}

    def snapshot() -> dict[str, torch.Tensor]:
        return {name: nn.utils.parameters_to_vector(network.parameters()).detach() for name, network in networks.items()}

    begin = snapshot()
    (first, between) = trainer.run_epoch(), snapshot()
    (second, end) = trainer.run_epoch(), snapshot()
    assert {name for name in networks if not torch.equal(begin[name], between[name])} == {"paraphraser"}
    assert {name for name in networks if not torch.equal(between[name], end[name])} == {"student", "translator"}
    assert first.keys() >= {"reconstruction"}
    assert second.keys() >= {"cross_entropy", "factor"}


def test_a_weight_of_0_needs_nothing_and_changes_nothing() -> None:
    method, maps = FactorTransfer(factor_weight=0.0), architecture((16, 8, 8))
    assert method.knowledge(maps, maps) == {}
    assert not method.student_layers(None, maps)
    assert method.modules(setup(maps, maps, 1)) == {}
    assert len(method.stages(setup(maps, maps, 1))) == 1
    assert list(method.loss(make_step(student_logits=torch.randn(4, 10)))) == ["cross_entropy"]
