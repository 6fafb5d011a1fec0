from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.distill.maps import Connectors
from stillhouse.distill.method import Setup, Unsuitable
from stillhouse.methods.kd_svd import KDSVD, aligned_vectors, basis_functions, basis_loss, leading_vectors, singular_vectors
from stillhouse.models.architecture import Architecture
from stillhouse.testing import ReferenceCase, make_step

Open = Callable[[str], ReferenceCase]


def architecture(*shapes: tuple[int, ...]) -> Architecture:
    layers = {f"stage{number}": shape for number, shape in enumerate(shapes)}
    return Architecture(name="net", num_classes=10, input_shape=(3, 32, 32), shapes=layers, stages=tuple(layers))


def close(gradient: Tensor, reference: Tensor) -> None:
    """Close to the double-precision reference: its single-precision decomposition is exact only to 1e-5."""
    rtol, share = (1e-9, 1e-12) if gradient.dtype == torch.float64 else (2e-5, 1e-5)
    torch.testing.assert_close(gradient, reference.to(gradient.dtype), rtol=rtol, atol=share * float(reference.abs().max()))


def per_sample(students: list[Tensor], teachers: list[Tensor]) -> list[Tensor]:
    """The loss [B] of each pair of successive stages."""
    ours = [basis_functions(*students[stage : stage + 2]) for stage in range(len(students) - 1)]
    theirs = [basis_functions(*teachers[stage : stage + 2]) for stage in range(len(teachers) - 1)]
    return [(left - right).square().sum((1, 2, 3)) for left, right in zip(ours, theirs, strict=True)]


def test_with_the_references_signs_loss_and_gradients_equal_a_published_implementation(open_case: Open) -> None:
    case = open_case("kdsvd-repdistiller")
    suffix = "f64" if case["in.s_feat0"].dtype == torch.float64 else "f32"
    teachers = [case[f"aux.v_t{stage}.{suffix}"].to(case["in.s_feat0"].dtype) for stage in case.numbers("in.s_feat")]
    students = [aligned_vectors(case[f"in.s_feat{stage}"], theirs) for stage, theirs in enumerate(teachers)]
    for stage, (ours, theirs) in enumerate(zip(students, teachers, strict=True)):
        case.check(ours, f"aux.v_s_aligned{stage}")
        made = singular_vectors(case[f"in.t_feat{stage}"], number=1)
        torch.testing.assert_close(made.abs(), theirs.abs(), rtol=2e-5 if suffix == "f32" else 1e-9, atol=1e-6)
    losses = per_sample(students, teachers)
    for pair, loss in enumerate(losses):
        case.check(loss.mean(), f"out.pair{pair}")
    total = torch.stack(losses).sum(0).mean()
    case.check(total)
    for stage in case.numbers("in.s_feat"):
        (gradient,) = torch.autograd.grad(total, case[f"in.s_feat{stage}"], retain_graph=True)
        close(gradient, case[f"grad.s_feat{stage}.f64"])


@pytest.mark.parametrize(("name", "channels_last"), [("kdsvd-repdistiller", False), ("kdsvd-sseung-tf", True)])
def test_with_our_signs_every_sample_has_one_of_the_two_possible_values(
    open_case: Open, name: str, channels_last: bool
) -> None:
    case = open_case(name)

    def maps(who: str, stage: int) -> Tensor:
        features = case[f"in.{who}_feat{stage}"].detach()
        return features.permute(0, 3, 1, 2) if channels_last else features

    teachers = [singular_vectors(maps("t", stage), number=1) for stage in case.numbers("in.s_feat")]
    students = [aligned_vectors(maps("s", stage), theirs) for stage, theirs in enumerate(teachers)]
    for pair, loss in enumerate(per_sample(students, teachers)):
        choices = case[f"aux.pair{pair}_per_sample_sign_choices.f64"].to(loss.dtype)
        nearest = (choices - loss[:, None]).abs().amin(dim=1)
        assert bool((nearest < (1e-9 if loss.dtype == torch.float64 else 1e-5)).all())


def test_the_authors_loss_has_the_recorded_exact_gradient(open_case: Open) -> None:
    case = open_case("kdsvd-sseung-tf")
    maps = {who: [case[f"in.{who}_feat{stage}"].permute(0, 3, 1, 2) for stage in case.numbers("in.s_feat")] for who in "st"}
    suffix = "f64" if maps["s"][0].dtype == torch.float64 else "f32"
    wanted = case[f"out.loss.{suffix}"]
    vectors = [singular_vectors(features, number=1) for features in maps["t"]]
    # The reference's signs are not recorded: of each sample's four relative signs, those that give its value are used.
    totals = []
    for first in (1.0, -1.0):
        for last in (1.0, -1.0):
            teachers = [first * vectors[0], vectors[1], last * vectors[2]]
            students = [aligned_vectors(features, theirs) for features, theirs in zip(maps["s"], teachers, strict=True)]
            totals.append(torch.stack(per_sample(students, teachers)).sum(0))
    options = torch.stack(totals)
    picks, samples = torch.cartesian_prod(*[torch.arange(4)] * options.shape[1]), torch.arange(options.shape[1])
    best = int((options.detach()[picks, samples].sum(1) - wanted).abs().argmin())
    loss = options[picks[best], samples].sum()
    case.check(loss)
    for stage in case.numbers("in.s_feat"):
        (gradient,) = torch.autograd.grad(loss, case[f"in.s_feat{stage}"], retain_graph=True)
        close(gradient, case[f"aux.true_grad.s_feat{stage}.f64"])


@pytest.mark.parametrize("shape", [(7, 4, 5), (20, 3, 3)])
def test_vectors_and_gradients_are_those_of_a_full_decomposition(shape: tuple[int, int, int]) -> None:
    maps = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    ours, values = leading_vectors(maps, 3)
    _, singular, rows = torch.linalg.svd(maps.flatten(2).transpose(1, 2), full_matrices=False)
    theirs = rows.transpose(1, 2)[:, :, :3]
    torch.testing.assert_close(values, singular[:, :3])
    # A function that does not depend on signs: projections on the vectors, each with its own weight.
    weights = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    target = torch.randn(2, shape[0], shape[0], dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def projected(vectors: Tensor) -> Tensor:
        return ((vectors * weights) @ vectors.transpose(1, 2) * target).sum()

    torch.testing.assert_close(projected(ours), projected(theirs))
    gradients = [torch.autograd.grad(projected(vectors), maps)[0] for vectors in (ours, theirs)]
    torch.testing.assert_close(*gradients)


def test_the_vector_of_a_map_of_rank_one_by_hand() -> None:
    # Channels 3 and -4 times one pattern: V = (3, -4) / 5, turned so that its largest entry is positive
    pattern = torch.tensor([[1.0, 2.0], [0.5, -1.0]])
    maps = torch.stack([3 * pattern, -4 * pattern])[None]
    torch.testing.assert_close(singular_vectors(maps, number=1), torch.tensor([[[-0.6], [0.8]]]))


@pytest.mark.parametrize("shape", [(4, 3, 3), (12, 2, 2)])
def test_dead_maps_and_dead_channels_have_finite_values_and_gradients(shape: tuple[int, int, int]) -> None:
    maps = torch.randn(3, *shape)
    maps[0] = 0.0
    maps[1, 1:] = 0.0
    maps[2, :, 1:] = maps[2, :, :1]
    maps.requires_grad_()
    teacher = singular_vectors(torch.randn(3, *shape), number=2)
    ours = aligned_vectors(maps, teacher)
    (gradient,) = torch.autograd.grad(basis_loss(basis_functions(ours, ours.flip(1)), basis_functions(teacher, teacher)), maps)
    assert bool(ours.isfinite().all())
    assert bool(gradient.isfinite().all())


def test_a_student_like_its_teacher_has_no_loss_whatever_its_scale_and_positions() -> None:
    features = {name: torch.randn(3, 6, 4, 4) for name in ("stage0", "stage1")}
    method = KDSVD(vectors=2)
    net = architecture((6, 4, 4), (6, 4, 4))
    teacher = {name: kind.compute(torch.zeros(3, 10), features) for name, kind in method.knowledge(net, net).items()}
    step = make_step(
        student_logits=torch.zeros(3, 10),
        student_features={name: -3 * maps.flip(2) for name, maps in features.items()},
        teacher=teacher,
        modules={"connectors": Connectors([nn.Identity(), nn.Identity()])},
    )
    assert float(method.loss(step)["singular_vectors"]) == pytest.approx(0.0, abs=1e-9)


def test_every_map_of_the_teacher_has_the_same_number_of_vectors() -> None:
    teacher, student = architecture((16, 8, 8), (32, 1, 2)), architecture((6, 8, 8), (32, 4, 4))
    needed = KDSVD(vectors=4).knowledge(teacher, student)
    made = [
        needed[f"vectors.stage{n}"].compute(torch.zeros(2, 10), {f"stage{n}": torch.randn(2, *teacher.shape(f"stage{n}"))})
        for n in (0, 1)
    ]
    assert [tuple(vectors.shape) for vectors in made] == [(2, 16, 2), (2, 32, 2)]
    setup = Setup(teacher=teacher, student=student, new_student=nn.Identity, num_samples=10, epochs=2)
    connectors = KDSVD().modules(setup)["connectors"].module
    assert [type(layer) for layer in connectors.children()] == [nn.Conv2d, nn.Identity]


def test_with_weight_0_nothing_is_needed_and_only_the_labels_are_used() -> None:
    maps = architecture((16, 8, 8), (16, 4, 4))
    assert KDSVD(svd_weight=0).knowledge(maps, maps) == {}
    step = make_step(student_logits=torch.randn(2, 10))
    torch.testing.assert_close(KDSVD(svd_weight=0).loss(step), {"cross_entropy": F.cross_entropy(step.logits, step.labels)})


def test_a_student_with_one_map_does_not_suit() -> None:
    with pytest.raises(Unsuitable, match="needs two feature maps"):
        KDSVD().knowledge(architecture((16, 8, 8), (16, 4, 4)), architecture((16, 8, 8)))
