import math
from collections.abc import Callable
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stillhouse.distill.maps import meeting_size
from stillhouse.distill.method import MethodError, Unsuitable
from stillhouse.methods.attention_transfer import (
    AttentionTransfer,
    attention_distance,
    attention_map,
    pooled_attention_map,
    squared_attention_distance,
)
from stillhouse.models.architecture import Architecture
from stillhouse.testing import ReferenceCase, make_step

Open = Callable[[str], ReferenceCase]


def architecture(*shapes: tuple[int, ...]) -> Architecture:
    layers = {f"stage{number}": shape for number, shape in enumerate(shapes)}
    return Architecture(name="net", num_classes=10, input_shape=(3, 32, 32), shapes=layers, stages=tuple(layers))


def maps_of(case: ReferenceCase, layer: int | str = "") -> list[Tensor]:
    """The attention maps of the student and of the teacher in a case, at the smaller of their sizes."""
    features = [case[f"in.{who}_feat{layer}"] for who in "st"]
    height, width = meeting_size(*(maps.shape[1:] for maps in features))
    power = case.number("p")
    return [pooled_attention_map(maps, power=power, pooling="sum", height=height, width=width) for maps in features]


@pytest.mark.parametrize("name", ["at-zagoruyko", "at-repdistiller-p4"])
def test_the_code_form_equals_published_implementations(open_case: Open, name: str) -> None:
    case = open_case(name)
    loss = squared_attention_distance(*maps_of(case))
    case.check(loss)
    case.check_gradients(loss, "s_feat")


def test_the_code_form_of_several_layers_equals_a_published_implementation(open_case: Open) -> None:
    case = open_case("at-repdistiller")
    losses, layers = [], case.numbers("in.s_feat")
    for layer in layers:
        losses.append(squared_attention_distance(*maps_of(case, layer)))
        case.check(losses[-1], f"out.layer{layer}")
    case.check_gradients(torch.stack(losses).sum(), *(f"s_feat{layer}" for layer in layers))


@pytest.mark.parametrize("form", ["paper", "code"])
def test_the_weight_is_shared_by_the_elements_of_a_map_and_layers_add_up(form: Literal["paper", "code"]) -> None:
    generator = torch.Generator().manual_seed(0)
    features = {name: torch.randn(3, 4, 8, 8, generator=generator) for name in ("a", "b", "teacher")}
    maps = {name: attention_map(tensor, power=2, pooling="sum") for name, tensor in features.items()}
    distances = torch.stack([(maps[name] - maps["teacher"]).flatten(1).norm(dim=1) for name in ("a", "b")])
    # beta = 1000 / (64 elements x 3 samples): beta / 2 times the sum of norms, or beta times the sum of squares
    expected = 1000 / (64 * 3) * (distances.sum() / 2 if form == "paper" else distances.square().sum())
    step = make_step(
        student_logits=torch.zeros(3, 10),
        student_features={"a": features["a"], "b": features["b"]},
        teacher={"attention.a": maps["teacher"], "attention.b": maps["teacher"]},
    )
    torch.testing.assert_close(AttentionTransfer(form=form).loss(step)["attention"], expected)


def test_the_papers_form_equals_a_published_implementation(open_case: Open) -> None:
    case = open_case("at-torchdistill-paper")
    loss = attention_distance(*maps_of(case))
    case.check(loss)
    case.check_gradients(loss, "s_feat")


@pytest.mark.parametrize(
    ("name", "power", "pooling"), [("sum1", 1, "sum"), ("sum2", 2, "sum"), ("sum4", 4, "sum"), ("max2", 2, "max")]
)
def test_every_map_equals_the_papers_formula(open_case: Open, name: str, power: float, pooling: str) -> None:
    case = open_case("at-maps-formula")
    student, teacher = (attention_map(case[f"in.{who}_feat"], power=power, pooling=pooling) for who in "st")
    suffix = "f64" if student.dtype == torch.float64 else "f32"
    raw = case[f"aux.map_{name}.{suffix}"].to(student.dtype)
    torch.testing.assert_close(student.detach(), raw / raw.flatten(1).norm(dim=1)[:, None, None])
    case.check(len(student) * attention_distance(student, teacher), f"out.loss_{name}")


def test_the_gradient_of_all_maps_together_equals_the_papers_formula(open_case: Open) -> None:
    case = open_case("at-maps-formula")
    loss = torch.zeros((), dtype=case["in.s_feat"].dtype)
    for power, pooling in ((1, "sum"), (2, "sum"), (4, "sum"), (2, "max")):
        student, teacher = (attention_map(case[f"in.{who}_feat"], power=power, pooling=pooling) for who in "st")
        loss = loss + len(student) * attention_distance(student, teacher)
    case.check(loss)
    case.check_gradients(loss, "s_feat")


def test_a_map_has_length_one_whatever_the_scale_of_the_features() -> None:
    features = torch.randn(3, 5, 4, 6)
    attention = attention_map(features, power=2, pooling="sum")
    torch.testing.assert_close(attention.flatten(1).norm(dim=1), torch.ones(3))
    torch.testing.assert_close(attention_map(100 * features, power=2, pooling="sum"), attention)


def test_the_order_of_channels_and_their_signs_do_not_matter() -> None:
    features = torch.randn(3, 5, 4, 6)
    attention = attention_map(features, power=1, pooling="sum")
    torch.testing.assert_close(attention_map(-features.flip(1), power=1, pooling="sum"), attention)


def test_features_of_zeros_have_finite_gradients() -> None:
    features = torch.zeros(2, 3, 4, 4, requires_grad=True)
    teacher = attention_map(torch.randn(2, 3, 4, 4), power=2, pooling="sum")
    (gradient,) = torch.autograd.grad(attention_distance(attention_map(features, power=2, pooling="sum"), teacher), features)
    assert bool(gradient.isfinite().all())


def test_equal_maps_have_no_loss_and_maps_without_overlap_the_largest() -> None:
    left, right = torch.zeros(1, 2, 2), torch.zeros(1, 2, 2)
    left[0, 0, 0] = right[0, 1, 1] = 1.0
    assert float(attention_distance(left, left)) == 0.0
    assert float(attention_distance(left, right)) == pytest.approx(math.sqrt(2))
    assert float(squared_attention_distance(left, right)) == pytest.approx(2 / 4)


def test_features_are_averaged_down_before_their_powers_are_taken() -> None:
    features = torch.zeros(1, 1, 2, 4)
    features[0, 0, :, :2] = torch.tensor([[3.0, 1.0], [3.0, 1.0]])
    features[0, 0, :, 2:] = torch.tensor([[-2.0, 2.0], [1.0, 1.0]])
    # The means of the halves are 2 and 1/2; their squares 4 and 1/4 are in the ratio 16 to 1.
    pooled = pooled_attention_map(features, power=2, pooling="sum", height=1, width=2)
    torch.testing.assert_close(pooled, torch.tensor([[[16.0, 1.0]]]) / math.sqrt(16**2 + 1))


@pytest.mark.parametrize(("student_size", "teacher_size"), [(4, 8), (8, 4), (4, 4)])
def test_maps_of_different_sizes_are_compared_at_the_smaller_size(student_size: int, teacher_size: int) -> None:
    of_teacher, of_student = (torch.zeros(1, 1, size, size) for size in (teacher_size, student_size))
    of_teacher[0, 0, 0, 0] = of_student[0, 0, -1, -1] = 1.0
    teacher, student = (architecture((1, size, size)) for size in (teacher_size, student_size))
    (kind,) = AttentionTransfer().knowledge(teacher, student).values()
    attention = kind.compute(torch.zeros(1, 10), {"stage0": of_teacher})
    assert attention.shape == (1, 4, 4)
    step = make_step(
        student_logits=torch.zeros(1, 10), student_features={"stage0": of_student}, teacher={"attention.stage0": attention}
    )
    # beta / 2 times sqrt(2) for maps without overlap; 16 elements are weighted as 49
    assert float(AttentionTransfer().loss(step)["attention"]) == pytest.approx(1000 / 49 / 2 * math.sqrt(2))


def test_with_weight_0_only_the_labels_are_used() -> None:
    step = make_step(
        student_logits=torch.randn(2, 10),
        student_features={"a": torch.randn(2, 3, 4, 4)},
        teacher={"attention.a": attention_map(torch.randn(2, 5, 4, 4), power=2, pooling="sum")},
    )
    terms = AttentionTransfer(attention_weight=0.0).loss(step)
    assert list(terms) == ["cross_entropy"]
    torch.testing.assert_close(terms["cross_entropy"], F.cross_entropy(step.logits, step.labels))


def test_stages_are_paired_from_the_last_backwards() -> None:
    teacher = architecture((16, 32, 32), (16, 32, 32), (32, 16, 16), (64, 8, 8))
    student = architecture((6, 14, 14), (16, 5, 5))
    assert AttentionTransfer().pairs(teacher, student) == {"stage1": "stage3", "stage0": "stage2"}


def test_layers_may_be_named() -> None:
    maps = architecture((16, 32, 32), (16, 16, 16), (32, 8, 8))
    method = AttentionTransfer(teacher_maps="stage0, stage2", student_maps="stage1, stage2")
    assert {name: kind.layers for name, kind in method.knowledge(maps, maps).items()} == {
        "attention.stage1": ("stage0",),
        "attention.stage2": ("stage2",),
    }
    assert method.student_layers(maps, maps) == ["stage1", "stage2"]


def test_attention_maps_are_computed_at_the_teacher() -> None:
    teacher, student = architecture((64, 8, 8)), architecture((16, 8, 8))
    needed = AttentionTransfer(power=4.0).knowledge(teacher, student)
    assert list(needed) == ["attention.stage0"]
    features = torch.randn(2, 64, 8, 8)
    made = needed["attention.stage0"].compute(torch.zeros(2, 10), {"stage0": features})
    assert made.shape == (2, 8, 8)
    torch.testing.assert_close(made, attention_map(features, power=4.0, pooling="sum"))


def test_soft_targets_are_needed_only_if_they_have_a_weight() -> None:
    maps = architecture((16, 8, 8))
    assert "logits" not in AttentionTransfer().knowledge(maps, maps)
    assert "logits" in AttentionTransfer(kd_weight=0.5).knowledge(maps, maps)


def test_a_student_without_maps_does_not_suit() -> None:
    with pytest.raises(Unsuitable, match="needs feature maps, student net has none"):
        AttentionTransfer().knowledge(architecture((16, 8, 8)), architecture())


def test_maps_of_one_pixel_are_not_used() -> None:
    with pytest.raises(Unsuitable, match="needs feature maps"):
        AttentionTransfer().knowledge(architecture((16, 8, 8)), architecture((16, 1, 1)))


def test_a_teacher_without_maps_is_rejected() -> None:
    with pytest.raises(MethodError, match="teacher net has none; use a convolutional teacher"):
        AttentionTransfer().knowledge(architecture(), architecture((16, 8, 8)))
