import dataclasses
from functools import partial

import pytest
import torch
from torch import nn

from stillhouse.distill.maps import (
    Connectors,
    KnownChannels,
    channels_of_teacher,
    make_connector,
    meeting_size,
    paired_maps,
    shrink,
)
from stillhouse.distill.method import MethodError, Unsuitable
from stillhouse.models.architecture import Architecture, UnknownLayer


def architecture(*shapes: tuple[int, ...], before: bool = False) -> Architecture:
    stages = {f"stage{number}": shape for number, shape in enumerate(shapes)}
    preactivations = {f"before{number}": shape for number, shape in enumerate(shapes)} if before else {}
    return Architecture(
        name="net",
        num_classes=10,
        input_shape=(3, 32, 32),
        shapes=preactivations | stages | {"pool": (8,)},
        stages=tuple(stages),
        preactivations=tuple(preactivations),
    )


def test_stages_are_paired_from_the_last_and_listed_from_the_first() -> None:
    teacher, student = architecture((16, 32, 32), (32, 16, 16), (64, 8, 8)), architecture((6, 14, 14), (16, 5, 5))
    assert list(paired_maps(teacher, student).items()) == [("stage0", "stage1"), ("stage1", "stage2")]


def test_named_layers_are_listed_in_the_order_in_which_the_student_runs() -> None:
    maps = architecture((16, 8, 8), (32, 4, 4))
    pairs = paired_maps(maps, maps, teacher_maps="stage0, stage1", student_maps="stage1,stage0")
    assert list(pairs.items()) == [("stage0", "stage1"), ("stage1", "stage0")]


def test_maps_before_the_relu_are_taken_of_networks_that_have_them() -> None:
    with_layers, without = architecture((16, 8, 8), before=True), architecture((16, 8, 8))
    both = partial(paired_maps, teacher_before_relu=True, student_before_relu=True)
    assert both(with_layers, without) == {"stage0": "before0"}
    assert both(without, with_layers) == {"before0": "stage0"}
    assert paired_maps(with_layers, with_layers, teacher_before_relu=True) == {"stage0": "before0"}
    assert paired_maps(with_layers, with_layers, student_before_relu=True) == {"before0": "stage0"}
    assert paired_maps(with_layers, without) == {"stage0": "stage0"}


def test_a_student_that_began_as_its_teacher_has_the_layers_of_the_list_that_is_given() -> None:
    teacher = architecture((16, 8, 8), (32, 4, 4), (64, 2, 2))
    student = dataclasses.replace(architecture((9, 8, 8), (20, 4, 4), (64, 2, 2)), kept_channels={"stage0": tuple(range(9))})
    assert paired_maps(teacher, student, teacher_maps="stage0, stage1") == {"stage0": "stage0", "stage1": "stage1"}
    assert paired_maps(teacher, student, student_maps="stage1") == {"stage1": "stage1"}
    assert paired_maps(teacher, student) == {f"stage{number}": f"stage{number}" for number in range(3)}
    # Other students' layers are counted from the last.
    assert paired_maps(teacher, dataclasses.replace(student, kept_channels=None), teacher_maps="stage0") == {"stage2": "stage0"}
    assert paired_maps(teacher, student, teacher_maps="stage0", student_maps="stage2") == {"stage2": "stage0"}


def test_the_channels_of_a_student_that_began_as_its_teacher_are_known_where_it_is_certain() -> None:
    teacher = architecture((4, 8, 8), (6, 4, 4), (6, 2, 2))
    kept = {"stage0": (1, 3), "stage1": (0, 2)}
    student = dataclasses.replace(architecture((2, 8, 8), (5, 4, 4), (6, 2, 2)), kept_channels=kept)
    assert student.channels_of(teacher, "stage0") == (1, 3)
    assert student.channels_of(teacher, "stage1") is None, "five channels, of which two are known"
    assert student.channels_of(teacher, "stage2") == (0, 1, 2, 3, 4, 5), "none was removed"
    assert dataclasses.replace(student, kept_channels=None).channels_of(teacher, "stage2") is None
    smaller = architecture((2, 4, 4))
    assert dataclasses.replace(smaller, kept_channels=kept).channels_of(teacher, "stage0") is None, "another size of maps"
    with pytest.raises(UnknownLayer):
        student.channels_of(teacher, "stage7")


def test_maps_of_one_pixel_are_left_out() -> None:
    assert paired_maps(architecture((16, 8, 8), (32, 1, 1)), architecture((6, 4, 4))) == {"stage0": "stage0"}
    with pytest.raises(Unsuitable, match="student net has none"):
        paired_maps(architecture((16, 8, 8)), architecture((6, 1, 1)))


def test_what_cannot_be_paired_is_refused_with_a_reason() -> None:
    maps = architecture((16, 8, 8), (32, 4, 4))
    with pytest.raises(MethodError, match="teacher net has none; use a convolutional teacher"):
        paired_maps(architecture(), maps)
    with pytest.raises(MethodError, match="layer 'pool' of net returns"):
        paired_maps(maps, maps, teacher_maps="pool")
    pairs = paired_maps(maps, maps, teacher_maps="stage0, pool", student_maps="stage0, pool", embeddings=True)
    assert pairs == {"stage0": "stage0", "pool": "pool"}
    with pytest.raises(UnknownLayer, match="no layer 'stage7'"):
        paired_maps(maps, maps, student_maps="stage7")
    with pytest.raises(MethodError, match="as many layers as teacher_maps, got 2 and 1"):
        paired_maps(maps, maps, teacher_maps="stage1", student_maps="stage0, stage1")


@pytest.mark.parametrize("size", [(4, 4), (2, 4), (3, 5), (8, 8)])
def test_shrinking_keeps_the_mean_of_even_parts_and_a_constant_everywhere(size: tuple[int, int]) -> None:
    maps = torch.rand(2, 3, 8, 8)
    assert shrink(maps, *size).shape == (2, 3, *size)
    torch.testing.assert_close(shrink(torch.full((1, 1, 8, 8), 2.5), *size), torch.full((1, 1, *size), 2.5))
    if 8 % size[0] == 8 % size[1] == 0:
        torch.testing.assert_close(shrink(maps, *size).mean(dim=(2, 3)), maps.mean(dim=(2, 3)))


def test_maps_meet_at_the_smaller_side_in_each_direction() -> None:
    assert meeting_size((6, 8, 4), (16, 5, 7)) == (5, 4)


def test_connectors_are_applied_in_order() -> None:
    connectors = Connectors([make_connector(3, 7), nn.Identity()])
    first, second = connectors([torch.randn(2, 3, 4, 4), torch.randn(2, 5, 2, 2)])
    assert (first.shape, second.shape) == ((2, 7, 4, 4), (2, 5, 2, 2))
    torch.testing.assert_close(first.mean(dim=(0, 2, 3)), torch.zeros(7), rtol=0, atol=1e-5)


def test_known_channels_are_chosen_from_the_teachers_and_nothing_is_trained() -> None:
    connectors = Connectors([KnownChannels([2, 0]), nn.Conv2d(3, 5, 1)])
    ours, theirs = torch.randn(2, 2, 4, 4), torch.randn(2, 3, 4, 4)
    assert connectors([ours, theirs])[0] is ours
    chosen, whole = channels_of_teacher(connectors, [theirs, theirs])
    assert torch.equal(chosen, torch.stack([theirs[:, 2], theirs[:, 0]], dim=1))
    assert whole is theirs
    matrix = torch.arange(9.0).reshape(1, 3, 3)
    assert channels_of_teacher(connectors[:1], [matrix], 1, 2)[0].tolist() == [[[8.0, 6.0], [2.0, 0.0]]]
    assert not list(connectors[0].parameters())
