from collections.abc import Callable
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stillhouse.distill.maps import meeting_size
from stillhouse.distill.method import MethodError, Unsuitable
from stillhouse.methods.nst import NST, gaussian_mmd, linear_mmd, polynomial_mmd, selectivity
from stillhouse.models.architecture import Architecture
from stillhouse.testing import ReferenceCase, make_step

Open = Callable[[str], ReferenceCase]
DISTANCES = [linear_mmd, polynomial_mmd, gaussian_mmd]
KERNELS: list[Literal["linear", "polynomial", "gaussian"]] = ["linear", "polynomial", "gaussian"]


def architecture(*shapes: tuple[int, ...]) -> Architecture:
    layers = {f"stage{number}": shape for number, shape in enumerate(shapes)}
    return Architecture(name="net", num_classes=10, input_shape=(3, 32, 32), shapes=layers, stages=tuple(layers))


def normalised(case: ReferenceCase) -> tuple[Tensor, Tensor]:
    features = [case[f"in.{who}_feat"] for who in "st"]
    height, width = meeting_size(*(maps.shape[1:] for maps in features))
    student, teacher = (selectivity(maps, height=height, width=width) for maps in features)
    return student, teacher


def test_the_polynomial_kernel_equals_a_published_implementation(open_case: Open) -> None:
    case = open_case("nst-repdistiller")
    loss = polynomial_mmd(*normalised(case))
    case.check(loss)
    case.check_gradients(loss, "s_feat")


def test_its_gradient_equals_the_authors_code_which_leaves_the_teachers_term_out_of_the_value(open_case: Open) -> None:
    case = open_case("nst-tusimple-poly")
    student, teacher = normalised(case)
    own = (teacher.flatten(2) @ teacher.flatten(2).transpose(1, 2)).square().mean(dim=(1, 2))
    singles = torch.stack([polynomial_mmd(s, t) for s, t in zip(student.split(1), teacher.split(1), strict=True)])
    case.check(singles - own)
    (gradient,) = torch.autograd.grad(case.number("weight_lambda") * singles.sum(), case["in.s_feat"])
    reference = case[f"grad.s_feat.{'f64' if gradient.dtype == torch.float64 else 'f32'}"]
    # The reference adds 1e-10 under the root of its norms.
    rtol, atol = (1e-7, 0.0) if gradient.dtype == torch.float64 else (2e-5, 1e-6)
    torch.testing.assert_close(gradient, reference, rtol=rtol, atol=atol)


def test_every_kernel_equals_its_formula(open_case: Open) -> None:
    case = open_case("nst-kernels-formula")
    student, teacher = normalised(case)
    linear, polynomial = linear_mmd(student, teacher), polynomial_mmd(student, teacher)
    gaussian = gaussian_mmd(student, teacher, variance=case.number("sigma2"))
    case.check(linear, "out.loss_linear")
    case.check(polynomial, "out.loss_poly")
    case.check(gaussian, "out.loss_gauss")
    case.check(gaussian_mmd(student, teacher), "out.loss_gauss_meansq")
    case.check(linear + polynomial + gaussian)
    case.check_gradients(linear + polynomial + gaussian, "s_feat")


@pytest.mark.parametrize("distance", DISTANCES)
def test_equal_maps_have_no_loss_whatever_the_order_and_scale_of_channels(distance: Callable[..., Tensor]) -> None:
    maps = torch.rand(3, 4, 5, 5, dtype=torch.float64)
    scales = torch.tensor([1.0, 2.0, 5.0, 0.1], dtype=torch.float64).reshape(1, 4, 1, 1)
    ours, theirs = (selectivity(tensor, height=5, width=5) for tensor in (maps, (maps * scales).flip(1)))
    assert float(distance(ours, theirs)) == pytest.approx(0.0, abs=1e-14)


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_discrepancy_is_symmetric_and_not_negative(distance: Callable[..., Tensor]) -> None:
    ours, theirs = (selectivity(torch.randn(3, channels, 5, 5), height=5, width=5) for channels in (4, 6))
    assert float(distance(ours, theirs)) > 0
    torch.testing.assert_close(distance(ours, theirs), distance(theirs, ours))


def test_two_channels_without_overlap_by_hand() -> None:
    left, right = torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2)
    left[..., 0] = right[..., 1] = 3.0
    ours, theirs = (selectivity(maps, height=1, width=2) for maps in (left, right))
    # |(1, 0) - (0, 1)|^2, and 1 + 1 - 2 * 0 for any polynomial
    assert float(linear_mmd(ours, theirs)) == float(polynomial_mmd(ours, theirs)) == 2.0


def test_dead_channels_have_finite_gradients() -> None:
    features = torch.zeros(2, 3, 4, 4, requires_grad=True)
    teacher = selectivity(torch.zeros(2, 5, 4, 4), height=4, width=4)
    for distance in DISTANCES:
        loss = distance(selectivity(features, height=4, width=4), teacher)
        assert bool(torch.autograd.grad(loss, features)[0].isfinite().all())


@pytest.mark.parametrize("kernel", KERNELS)
def test_reduced_knowledge_gives_the_loss_of_the_whole_maps(
    kernel: Literal["linear", "polynomial", "gaussian"],
) -> None:
    teacher, student = architecture((6, 8, 8)), architecture((4, 4, 4))
    theirs, ours = torch.randn(1, 6, 8, 8), torch.randn(1, 4, 4, 4)
    method = NST(kernel=kernel, nst_weight=10.0, form="paper")
    (kind,) = method.knowledge(teacher, student).values()
    reduced = kind.compute(torch.zeros(1, 10), {"stage0": theirs})
    assert reduced.shape == (1, 1 if kernel == "linear" else 6, 4, 4)
    step = make_step(
        student_logits=torch.zeros(1, 10), student_features={"stage0": ours}, teacher={"selectivity.stage0": reduced}
    )
    whole = [selectivity(maps, height=4, width=4) for maps in (ours, F.avg_pool2d(theirs, 2))]
    expected = 5.0 * DISTANCES[KERNELS.index(kernel)](*whole)
    torch.testing.assert_close(method.loss(step)["selectivity"], expected)
    twice = NST(kernel=kernel, nst_weight=10.0, form="code").loss(step)["selectivity"]
    torch.testing.assert_close(twice, 2 * expected)


def test_maps_before_the_relu_are_compared_unless_those_after_it_are_chosen() -> None:
    shapes = {"before0": (16, 8, 8), "stage0": (16, 8, 8)}
    net = Architecture(
        name="net", num_classes=10, input_shape=(3, 32, 32), shapes=shapes, stages=("stage0",), preactivations=("before0",)
    )
    assert NST().pairs(net, net) == {"before0": "before0"}
    assert NST(maps="after_relu").pairs(net, net) == {"stage0": "stage0"}


def test_the_last_maps_are_paired_by_default_and_others_by_name() -> None:
    teacher, student = architecture((16, 8, 8), (32, 4, 4)), architecture((8, 8, 8), (12, 4, 4))
    assert NST().pairs(teacher, student) == {"stage1": "stage1"}
    assert NST(student_maps="stage0, stage1").pairs(teacher, student) == {"stage0": "stage0", "stage1": "stage1"}
    assert NST(teacher_maps="stage0").pairs(teacher, student) == {"stage1": "stage0"}


def test_with_weight_0_nothing_is_needed_and_only_the_labels_are_used() -> None:
    maps = architecture((16, 8, 8))
    assert NST(nst_weight=0).knowledge(maps, maps) == {}
    assert not NST(nst_weight=0).student_layers(None, maps)
    step = make_step(student_logits=torch.randn(2, 10))
    torch.testing.assert_close(NST(nst_weight=0).loss(step), {"cross_entropy": F.cross_entropy(step.logits, step.labels)})


def test_a_student_without_maps_does_not_suit() -> None:
    with pytest.raises(Unsuitable, match="needs feature maps, student net has none"):
        NST().knowledge(architecture((16, 8, 8)), architecture())


def test_a_teacher_without_maps_is_rejected() -> None:
    with pytest.raises(MethodError, match="teacher net has none; use a convolutional teacher"):
        NST().knowledge(architecture(), architecture((16, 8, 8)))
