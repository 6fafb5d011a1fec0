from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stillhouse.distill.maps import Connectors
from stillhouse.distill.method import MethodError, Setup, Unsuitable
from stillhouse.methods.inter_channel import InterChannel, channel_correlation, correlation_loss
from stillhouse.models.architecture import Architecture, UnknownLayer
from stillhouse.testing import ReferenceCase, make_step

Open = Callable[[str], ReferenceCase]


def architecture(*shapes: tuple[int, ...]) -> Architecture:
    layers = {f"stage{number}": shape for number, shape in enumerate(shapes)} | {"pool": (8,)}
    return Architecture(name="net", num_classes=10, input_shape=(3, 32, 32), shapes=layers, stages=tuple(layers)[:-1])


def test_the_loss_over_the_batch_equals_a_published_implementation(open_case: Open) -> None:
    case = open_case("ickd-torchdistill")
    student, teacher = (channel_correlation(case[f"in.{who}_feat"]) for who in "st")
    # It divides by the batch size twice.
    loss = correlation_loss(student, teacher) / len(student)
    case.check(loss)
    case.check_gradients(loss, "s_feat")


def test_a_correlation_by_hand() -> None:
    maps = torch.tensor([[3.0, 4.0], [0.0, 0.0], [4.0, -3.0]]).reshape(1, 3, 1, 2)
    assert channel_correlation(maps).tolist() == [[[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]]


def test_equal_correlations_have_no_loss_and_opposite_ones_a_loss_of_4() -> None:
    correlation = channel_correlation(torch.randn(3, 4, 5, 5))
    assert float(correlation_loss(correlation, correlation)) == 0.0
    assert float(correlation_loss(-correlation, correlation)) == pytest.approx(4.0)


def test_neither_the_scale_nor_the_order_of_positions_matters() -> None:
    maps = torch.randn(3, 4, 5, 5)
    torch.testing.assert_close(channel_correlation(7 * maps.flip(2)), channel_correlation(maps))


def test_dead_channels_have_finite_gradients() -> None:
    maps = torch.zeros(2, 3, 4, 4, requires_grad=True)
    loss = correlation_loss(channel_correlation(maps), channel_correlation(torch.randn(2, 3, 4, 4)))
    assert bool(torch.autograd.grad(loss, maps)[0].isfinite().all())


def test_the_knowledge_is_the_smaller_of_matrix_and_map_and_both_give_the_same_loss() -> None:
    student = architecture((6, 8, 8))
    (small,) = InterChannel().knowledge(architecture((16, 8, 8)), student).items()
    (large,) = InterChannel().knowledge(architecture((16, 2, 2)), student).items()
    assert (small[0], large[0]) == ("correlation.stage0", "map.stage0")
    theirs, ours = torch.randn(2, 16, 8, 8), torch.randn(2, 16, 4, 4)
    made = small[1].compute(torch.zeros(2, 10), {"stage0": theirs})
    assert made.shape == (2, 16, 16)
    terms = [
        InterChannel(correlation_weight=3.0).loss(
            make_step(
                student_logits=torch.zeros(2, 10),
                student_features={"stage0": ours},
                teacher=teacher,
                modules={"connectors": Connectors([nn.Identity()])},
            )
        )
        for teacher in ({"correlation.stage0": made}, {"map.stage0": theirs})
    ]
    expected = 3.0 * correlation_loss(channel_correlation(ours), channel_correlation(theirs))
    for term in terms:
        torch.testing.assert_close(term["correlation"], expected)


def test_the_connector_has_the_teachers_number_of_channels() -> None:
    setup = Setup(
        teacher=architecture((8, 8, 8), (16, 4, 4)),
        student=architecture((6, 8, 8), (12, 2, 2)),
        new_student=nn.Identity,
        num_samples=10,
        epochs=2,
    )
    connectors = InterChannel().modules(setup)["connectors"].module
    (maps,) = connectors([torch.randn(2, 12, 2, 2)])
    assert maps.shape == (2, 16, 2, 2)


def test_named_layers_must_be_maps_and_as_many_on_both_sides() -> None:
    teacher = student = architecture((16, 8, 8), (32, 4, 4))
    assert InterChannel(teacher_maps="stage0", student_maps="stage1").pairs(teacher, student) == {"stage1": "stage0"}
    with pytest.raises(UnknownLayer, match="no layer 'stage9'"):
        InterChannel(teacher_maps="stage9").pairs(teacher, student)
    with pytest.raises(MethodError, match="layer 'pool' of net returns"):
        InterChannel(student_maps="pool").pairs(teacher, student)
    with pytest.raises(MethodError, match="student_maps must name as many layers as teacher_maps, got 1 and 2"):
        InterChannel(teacher_maps="stage0, stage1", student_maps="stage1").pairs(teacher, student)


def test_with_weight_0_nothing_is_needed_and_only_the_labels_are_used() -> None:
    maps = architecture((16, 8, 8))
    assert InterChannel(correlation_weight=0).knowledge(maps, maps) == {}
    step = make_step(student_logits=torch.randn(2, 10))
    terms = InterChannel(correlation_weight=0).loss(step)
    torch.testing.assert_close(terms, {"cross_entropy": F.cross_entropy(step.logits, step.labels)})


def test_a_student_without_maps_does_not_suit() -> None:
    with pytest.raises(Unsuitable, match="needs feature maps"):
        InterChannel().knowledge(architecture((16, 8, 8)), architecture())


def test_a_dead_channel_has_a_correlation_of_zero_and_a_small_gradient() -> None:
    maps = torch.rand(2, 3, 4, 4)
    maps[:, 1] = 0
    maps.requires_grad_()
    correlation = channel_correlation(maps)
    assert float(correlation[:, 1].detach().abs().max()) == 0
    (gradient,) = torch.autograd.grad(correlation_loss(correlation, channel_correlation(torch.rand(2, 3, 4, 4))), maps)
    assert float(gradient.abs().max()) < 10
