from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stillhouse.distill.method import MethodError, Setup, Stage, Step, Unsuitable
from stillhouse.methods.fitnets import FitNets, hint_loss, make_regressor, softened_cross_entropy
from stillhouse.models.architecture import Architecture, UnknownLayer
from stillhouse.testing import CHECKS, MethodTrial, ReferenceCase, make_step

Open = Callable[[str], ReferenceCase]


def architecture(*shapes: tuple[int, ...], pooled: int | None = None) -> Architecture:
    layers = {f"stage{number}": shape for number, shape in enumerate(shapes)}
    every = layers | ({"pool": (pooled,)} if pooled else {})
    name = "pool" if pooled else None
    return Architecture(name="net", num_classes=10, input_shape=(3, 32, 32), shapes=every, stages=tuple(layers), pooled=name)


def setup(teacher: Architecture, student: Architecture, epochs: int) -> Setup:
    return Setup(teacher=teacher, student=student, new_student=nn.Identity, num_samples=100, epochs=epochs)


def test_the_hint_loss_equals_the_official_formula(open_case: Open) -> None:
    case = open_case("fitnet-official-formula")
    loss = hint_loss(case["in.s_feat"], case["in.t_feat"])
    case.check(loss)
    case.check_gradients(loss, "s_feat")


def test_summed_over_positions_it_equals_equation_3(open_case: Open) -> None:
    case = open_case("fitnet-official-formula")
    case.check(hint_loss(case["in.s_feat"], case["in.t_feat"], "sum"), "aux.paper_half_sq_norm_batchmean")


def test_a_mean_over_all_elements_is_the_same_up_to_its_scale(open_case: Open) -> None:
    case = open_case("fitnet-repdistiller-mse")
    hint = case["in.t_feat"]
    loss = hint_loss(case["in.s_feat"], hint) * 2 / hint.shape[1]
    case.check(loss)
    case.check_gradients(loss, "s_feat")


def test_the_softened_cross_entropy_equals_a_published_implementation(open_case: Open) -> None:
    case = open_case("kd-passalis")
    loss = softened_cross_entropy(case["in.s_logits"], case["in.t_logits"], case.number("T"))
    case.check(loss)
    case.check_gradients(loss, "s_logits")


def test_the_second_stage_begins_as_the_official_formula(open_case: Open) -> None:
    case = open_case("kd-fitnets-KDCost")
    method = FitNets(temperature=case.number("T"), kd_weight=case.number("lambda_teach"))
    step = make_step(
        student_logits=case["in.s_logits"],
        labels=case["in.labels"],
        teacher={"logits": case["in.t_logits"]},
        stage=Stage(name="distill", epochs=3),
    )
    loss = torch.stack(list(method.loss(step).values())).sum()
    case.check(loss)
    case.check_gradients(loss, "s_logits")


def test_the_soft_weight_falls_linearly_over_the_second_stage() -> None:
    student, teacher = torch.randn(4, 10), torch.randn(4, 10)
    soft = softened_cross_entropy(student, teacher, 3.0)
    for progress, weight in ((0.0, 4.0), (0.5, 2.5), (0.75, 1.75)):
        step = make_step(
            student_logits=student,
            teacher={"logits": teacher},
            stage=Stage(name="distill", epochs=4),
            progress=0.9,
            stage_progress=progress,
        )
        torch.testing.assert_close(FitNets().loss(step)["soft_cross_entropy"], weight * soft)


def test_a_predicted_hint_has_no_loss() -> None:
    hint = torch.randn(3, 4, 5, 5)
    assert float(hint_loss(hint, hint)) == 0.0


def test_the_hint_loss_of_vectors_by_hand() -> None:
    # 1/2 (1 + 4) and 1/2 (9 + 0), mean 3.5
    hint, regressed = torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.zeros(2, 2)
    assert float(hint_loss(regressed, hint)) == float(hint_loss(regressed, hint, "sum")) == 3.5


@pytest.mark.parametrize(
    ("guided", "hint", "kind", "kernel"),
    [
        ((5, 8, 8), (7, 8, 8), nn.Conv2d, (1, 1)),
        ((5, 8, 8), (7, 4, 4), nn.Conv2d, (5, 5)),
        ((5, 8, 6), (7, 4, 6), nn.Conv2d, (5, 1)),
        ((5, 4, 4), (7, 8, 8), nn.ConvTranspose2d, (5, 5)),
    ],
)
def test_a_regressor_maps_to_the_size_of_the_hint(
    guided: tuple[int, ...], hint: tuple[int, ...], kind: type[nn.Module], kernel: tuple[int, int]
) -> None:
    regressor = make_regressor(guided, hint)
    assert isinstance(regressor, kind)
    assert regressor.kernel_size == kernel
    assert regressor(torch.randn(2, *guided)).shape == (2, *hint)


def test_a_regressor_between_vectors_is_fully_connected() -> None:
    assert isinstance(make_regressor((30,), (64,)), nn.Linear)
    assert make_regressor((30,), (64,))(torch.randn(2, 30)).shape == (2, 64)


@pytest.mark.parametrize(("guided", "hint"), [((30,), (16, 8, 8)), ((16, 8, 8), (30,)), ((16, 8, 4), (16, 4, 8))])
def test_layers_without_a_possible_regressor_do_not_suit(guided: tuple[int, ...], hint: tuple[int, ...]) -> None:
    with pytest.raises(Unsuitable):
        make_regressor(guided, hint)


def test_by_default_the_teachers_middle_stage_guides_the_stage_nearest_in_size() -> None:
    teacher = architecture((16, 32, 32), (32, 16, 16), (64, 8, 8))
    assert FitNets().layers(teacher, architecture((8, 32, 32), (16, 16, 16), (32, 8, 8))) == ("stage1", "stage1")
    assert FitNets().layers(teacher, architecture((6, 14, 14), (16, 5, 5))) == ("stage1", "stage0")


def test_a_student_without_maps_takes_its_hint_from_the_teachers_embedding() -> None:
    teacher, student = architecture((16, 32, 32), pooled=64), architecture(pooled=30)
    assert FitNets().layers(teacher, student) == ("pool", "pool")
    assert isinstance(FitNets().modules(setup(teacher, student, 4))["regressor"].module, nn.Linear)


def test_a_student_with_neither_maps_nor_embedding_does_not_suit() -> None:
    with pytest.raises(Unsuitable, match="set guided_layer"):
        FitNets().layers(architecture((16, 32, 32), pooled=64), architecture())


def test_named_layers_are_used_and_unknown_ones_are_rejected() -> None:
    teacher = student = architecture((16, 32, 32), (32, 16, 16), (64, 8, 8))
    assert FitNets(hint_layer="stage2", guided_layer="stage0").layers(teacher, student) == ("stage2", "stage0")
    with pytest.raises(UnknownLayer, match="no layer 'stage9'"):
        FitNets(hint_layer="stage9").layers(teacher, student)


def test_the_first_stage_ends_at_the_guided_layer_and_is_not_compared() -> None:
    maps = architecture((16, 32, 32), (32, 16, 16), (64, 8, 8))
    hint, distill = FitNets(hint_fraction=0.3).stages(setup(maps, maps, 10))
    assert (hint.name, hint.epochs, hint.until, hint.comparable) == ("hint", 3, "stage1", False)
    assert (distill.name, distill.epochs, distill.until, distill.comparable) == ("distill", 7, None, True)


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_every_stage_has_an_epoch(fraction: float) -> None:
    maps = architecture((16, 32, 32), (32, 16, 16))
    assert [stage.epochs for stage in FitNets(hint_fraction=fraction).stages(setup(maps, maps, 2))] == [1, 1]


def test_a_single_epoch_is_too_short() -> None:
    maps = architecture((16, 32, 32))
    with pytest.raises(MethodError, match="each of its 2 stages, has 1"):
        FitNets().stages(setup(maps, maps, 1))


def test_the_hint_stage_uses_only_the_regressed_features() -> None:
    regressor = make_regressor((2, 4, 4), (3, 4, 4))
    guided, hint = torch.randn(5, 2, 4, 4), torch.randn(5, 3, 4, 4)
    step = make_step(
        student_logits=None,
        labels=torch.zeros(5, dtype=torch.int64),
        student_features={"stage1": guided},
        teacher={"hint": hint, "logits": torch.randn(5, 10)},
        modules={"regressor": regressor},
        stage=Stage(name="hint", epochs=1, until="stage1"),
    )
    terms = FitNets(hint_weight=2.0).loss(step)
    assert list(terms) == ["hint"]
    expected = 2.0 * 0.5 * F.mse_loss(regressor(guided), hint) * 3
    torch.testing.assert_close(terms["hint"], expected)


def test_each_stage_goes_from_its_beginning_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, float]] = []
    loss = FitNets.loss

    def note(self: FitNets, step: Step) -> dict[str, torch.Tensor]:
        seen.append((step.stage.name, step.stage_progress))
        terms: dict[str, torch.Tensor] = loss(self, step)
        return terms

    monkeypatch.setattr(FitNets, "loss", note)
    MethodTrial(FitNets(hint_fraction=0.5), epochs=4).trainer().fit()
    eighths = [number / 8 for number in range(8)]
    assert seen == [(stage, progress) for stage in ("hint", "distill") for progress in eighths]


def test_in_one_stage_labels_and_the_mean_squared_error_of_the_hint_are_learnt_together() -> None:
    """The loss of the CRD benchmark: cross-entropy, and 100 times torch's mean squared error."""
    method = FitNets(num_stages=1, hint_weight=100.0)
    maps = architecture((4, 16, 16), (6, 8, 8), (8, 4, 4))
    (stage,) = method.stages(setup(maps, maps, 5))
    assert (stage.epochs, stage.until, stage.comparable) == (5, None, True)
    assert [*method.knowledge(maps, maps)] == ["hint"]
    regressor = method.modules(setup(maps, maps, 5))["regressor"]
    assert [type(layer) for layer in regressor.module.children()] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert regressor.training == {}, "the trial's recipe trains it with the student"
    guided, hint = torch.randn(5, 6, 8, 8), torch.randn(5, 6, 8, 8)
    step = make_step(
        student_logits=torch.randn(5, 10),
        student_features={"stage1": guided},
        teacher={"hint": hint},
        modules={"regressor": regressor.module},
        stage=stage,
    )
    terms = method.loss(step)
    squares = (regressor.module(guided) - hint).square()
    torch.testing.assert_close(terms["hint"], 100 * squares.sum() / (5 * 6 * 8 * 8))
    torch.testing.assert_close(terms["cross_entropy"], F.cross_entropy(step.logits, step.labels))
    assert len(terms) == 2


def test_in_one_stage_without_a_hint_the_labels_remain() -> None:
    step = make_step(student_logits=torch.randn(5, 10), stage=Stage(name="distill", epochs=1))
    assert [*FitNets(num_stages=1, hint_weight=0.0).loss(step)] == ["cross_entropy"]


@pytest.mark.parametrize("check", ["losses_and_gradients_are_finite", "a_resumed_training_ends_with_the_same_weights"])
def test_one_stage_trains_like_any_method(check: str) -> None:
    CHECKS[check](MethodTrial(FitNets(num_stages=1, hint_weight=100.0)))
