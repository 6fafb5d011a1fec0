import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from stillhouse.distill.maps import shrink
from stillhouse.distill.method import MethodError, Setup, Unsuitable
from stillhouse.knowledge.kinds import feature, reduced
from stillhouse.methods.variational import GaussianRegressor, Variational, variational_loss
from stillhouse.models.architecture import Architecture, UnknownLayer
from stillhouse.testing import MethodTrial, ReferenceCase, make_step

Open = Callable[[str], ReferenceCase]


def architecture(*shapes: tuple[int, ...], pooled: int | None = None) -> Architecture:
    layers = {f"stage{number}": shape for number, shape in enumerate(shapes)}
    every = layers | ({"pool": (pooled,)} if pooled else {})
    name = "pool" if pooled else None
    return Architecture(name="net", num_classes=10, input_shape=(3, 32, 32), shapes=every, stages=tuple(layers), pooled=name)


@pytest.mark.parametrize("name", ["vid-repdistiller", "vid-kdzoo"])
def test_loss_and_gradients_equal_published_implementations(open_case: Open, name: str) -> None:
    case = open_case(name)
    weights = {"mean.0.weight": "w.r0.weight", "mean.2.weight": "w.r2.weight", "mean.4.weight": "w.r4.weight"}
    weights["log_scale"] = "w.log_scale"
    regressor = GaussianRegressor(
        case["in.s_feat"].shape[1],
        case["in.t_feat"].shape[1],
        num_dimensions=3,
        num_hidden=int(case.number("mid")),
        initial_variance=case.number("init_pred_var"),
        epsilon=case.number("eps"),
    ).to(case["in.s_feat"].dtype)
    torch.testing.assert_close(regressor.log_scale.detach().float(), case["aux.initial_log_scale.f32"].float())
    regressor.load_state_dict({ours: case[theirs].detach() for ours, theirs in weights.items()})
    loss = variational_loss(*regressor(case["in.s_feat"]), case["in.t_feat"])
    case.check(loss)
    case.check_gradients(loss, "s_feat")
    gradients = torch.autograd.grad(loss, list(regressor.parameters()))
    for (ours, _), gradient in zip(regressor.named_parameters(), gradients, strict=True):
        case.check(gradient, f"grad.{weights[ours]}")


def test_it_is_the_negative_log_likelihood_of_a_gaussian_without_its_constant() -> None:
    mean, target = torch.randn(3, 4, 2, 2, dtype=torch.float64), torch.randn(3, 4, 2, 2, dtype=torch.float64)
    variance = torch.rand(4, dtype=torch.float64) + 0.5
    log_likelihood = torch.distributions.Normal(mean, variance.sqrt().reshape(4, 1, 1)).log_prob(target)
    expected = -log_likelihood.mean() - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(variational_loss(mean, variance, target), expected)


def test_the_best_variance_is_the_mean_squared_error() -> None:
    residual = torch.randn(50, 3, dtype=torch.float64)
    variance = residual.square().mean(0).requires_grad_()
    (gradient,) = torch.autograd.grad(variational_loss(residual, variance, torch.zeros(50, 3, dtype=torch.float64)), variance)
    torch.testing.assert_close(gradient, torch.zeros(3, dtype=torch.float64))


def test_the_variance_begins_at_its_setting_and_is_trained() -> None:
    regressor = GaussianRegressor(2, 3, 1, initial_variance=5.0, epsilon=1e-5)
    torch.testing.assert_close(regressor.variance, torch.full((3,), 5.0))
    assert "log_scale" in dict(regressor.named_parameters())


def test_maps_are_paired_from_the_last_and_larger_ones_of_the_teacher_are_pooled() -> None:
    teacher, student = architecture((16, 32, 32), (32, 16, 16), (64, 8, 8)), architecture((6, 14, 14), (16, 10, 10))
    method = Variational()
    assert method.pairs(teacher, student) == {"stage1": "stage2", "stage0": "stage1"}
    needed = method.knowledge(teacher, student)
    assert needed["hint.stage1"] == reduced(shrink, "stage2", height=8, width=8)
    assert needed["hint.stage0"] == reduced(shrink, "stage1", height=14, width=14)


def test_a_student_without_maps_learns_from_the_embedding() -> None:
    teacher, student = architecture((16, 32, 32), pooled=64), architecture(pooled=30)
    method = Variational()
    assert method.pairs(teacher, student) == {"pool": "pool"}
    assert method.knowledge(teacher, student) == {"hint.pool": feature("pool")}
    setup = Setup(teacher=teacher, student=student, new_student=nn.Identity, num_samples=10, epochs=1)
    mean, variance = method.modules(setup)["regressor.pool"].module(torch.randn(2, 30))
    assert mean.shape == (2, 64)
    assert variance.shape == (64,)


def test_a_student_with_neither_maps_nor_embedding_does_not_suit() -> None:
    with pytest.raises(Unsuitable):
        Variational().pairs(architecture((16, 8, 8), pooled=64), architecture())


def test_named_layers_are_used_and_wrong_ones_rejected() -> None:
    teacher = architecture((16, 32, 32), (32, 16, 16), pooled=64)
    assert Variational(teacher_maps="stage0", student_maps="stage1").pairs(teacher, teacher) == {"stage1": "stage0"}
    with pytest.raises(UnknownLayer, match="no layer 'stage9'"):
        Variational(teacher_maps="stage9").pairs(teacher, teacher)
    with pytest.raises(MethodError, match="layer 'pool' of net returns"):
        Variational(teacher_maps="pool", student_maps="stage1").pairs(teacher, teacher)


def test_a_weight_of_0_needs_nothing_and_changes_nothing() -> None:
    method, maps = Variational(information_weight=0.0), architecture((16, 8, 8))
    assert method.knowledge(maps, maps) == {}
    assert not method.student_layers(None, maps)
    setup = Setup(teacher=None, student=maps, new_student=nn.Identity, num_samples=10, epochs=1)
    assert method.modules(setup) == {}
    assert list(method.loss(make_step(student_logits=torch.randn(4, 10)))) == ["cross_entropy"]


def test_the_students_larger_map_is_pooled_to_the_hints_size() -> None:
    regressor = GaussianRegressor(2, 3, 3, initial_variance=5.0, epsilon=1e-5)
    guided, hint = torch.randn(4, 2, 8, 8), torch.randn(4, 3, 4, 4)
    step = make_step(
        student_logits=torch.randn(4, 10),
        student_features={"stage1": guided},
        teacher={"hint.stage1": hint},
        modules={"regressor.stage1": regressor},
    )
    expected = 2 * variational_loss(*regressor(nn.functional.avg_pool2d(guided, 2)), hint)
    torch.testing.assert_close(Variational(information_weight=2.0).loss(step)["information"], expected)


def test_it_trains_between_different_architectures() -> None:
    (entry,) = MethodTrial(Variational(), teacher="resnet8", student="mlp", epochs=1).trainer().fit()
    assert math.isfinite(entry["information"])
