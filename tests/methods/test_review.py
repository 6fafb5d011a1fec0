from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.distill.method import MethodError, Setup, Unsuitable
from stillhouse.methods.review import Fusion, Review, Reviewer, hierarchical_context_loss
from stillhouse.models.architecture import Architecture, describe
from stillhouse.models.features import FeatureReader
from stillhouse.models.registry import build_model
from stillhouse.testing import ReferenceCase, make_step

Open = Callable[[str], ReferenceCase]


def architecture(*shapes: tuple[int, ...], pooled: int | None = None) -> Architecture:
    layers = {f"stage{number}": shape for number, shape in enumerate(shapes)}
    every = layers | ({"pool": (pooled,)} if pooled else {})
    name = "pool" if pooled else None
    return Architecture(name="net", num_classes=10, input_shape=(3, 32, 32), shapes=every, stages=tuple(layers), pooled=name)


def test_the_hierarchical_context_loss_equals_the_authors_code(open_case: Open) -> None:
    case = open_case("reviewkd-hcl")
    levels = []
    levels_of_case = case.numbers("in.s_feat")
    for level in levels_of_case:
        levels.append(hierarchical_context_loss(case[f"in.s_feat{level}"], case[f"in.t_feat{level}"]))
        case.check(levels[-1], f"out.level{level}")
    loss = torch.stack(levels).sum()
    case.check(loss)
    case.check_gradients(loss, *(f"s_feat{level}" for level in levels_of_case))


def test_the_whole_review_equals_the_authors_code(open_case: Open) -> None:
    case = open_case("reviewkd-full")
    students, teachers = ([case[f"in.{who}_feat{stage}"] for stage in case.numbers("in.s_feat")] for who in "st")
    reviewer = Reviewer([(ours.shape[1:], theirs.shape[1:]) for ours, theirs in zip(students, teachers, strict=True)])
    reviewer.to(students[0].dtype)
    # The reference counts its fusions from the deepest.
    sources = {
        name: f"w.abf{len(students) - 1 - int(name.split('.')[1])}.{name.split('.', 2)[2]}"
        for name, _ in reviewer.named_parameters()
    }
    weights = {name: case[source] for name, source in sources.items()}
    sizes = [tuple(maps.shape[2:]) for maps in teachers]
    reviews: list[Tensor] = torch.func.functional_call(reviewer, weights, (students, sizes))
    for stage, review in enumerate(reviews):
        case.check(review, f"aux.result{stage}")
    losses = [hierarchical_context_loss(review, maps) for review, maps in zip(reviews, teachers, strict=True)]
    loss = torch.stack(losses).sum()
    case.check(loss)
    case.check_gradients(loss, *(f"s_feat{stage}" for stage in case.numbers("in.s_feat")))
    gradients = torch.autograd.grad(loss, list(weights.values()))
    for source, gradient in zip(sources.values(), gradients, strict=True):
        case.check(gradient, f"grad.{source}")


def test_equal_maps_have_no_loss_and_a_constant_difference_its_square() -> None:
    maps = torch.randn(2, 3, 8, 8)
    assert float(hierarchical_context_loss(maps, maps)) == 0.0
    for size in (8, 4, 3, 1):
        small = maps[:, :, :size, :size]
        assert float(hierarchical_context_loss(small + 3.0, small)) == pytest.approx(9.0, rel=1e-5)


def test_a_difference_with_mean_0_has_a_loss_at_full_size_only() -> None:
    student = torch.tensor([1.0, -1.0]).repeat(4).expand(1, 1, 8, 8)
    assert float(hierarchical_context_loss(student, torch.zeros(1, 1, 8, 8))) == pytest.approx(1 / (1 + 1 / 2 + 1 / 4 + 1 / 8))


def test_reviews_have_the_teachers_shapes_between_different_architectures() -> None:
    shapes = [((6, 28, 28), (32, 16, 16)), ((16, 10, 10), (64, 8, 8)), ((84,), (64,))]
    reviewer = Reviewer(shapes)
    features = [torch.randn(2, 6, 28, 28), torch.randn(2, 16, 10, 10), torch.randn(2, 84, 1, 1)]
    reviews = reviewer(features, [(16, 16), (8, 8), (1, 1)])
    assert [tuple(review.shape) for review in reviews] == [(2, 32, 16, 16), (2, 64, 8, 8), (2, 64, 1, 1)]


def test_the_deepest_stage_reaches_every_review_and_the_shallowest_only_its_own() -> None:
    reviewer = Reviewer([((4, 8, 8), (5, 8, 8)), ((6, 4, 4), (7, 4, 4))]).double().eval()
    shallow = torch.randn(2, 4, 8, 8, dtype=torch.float64, requires_grad=True)
    deep = torch.randn(2, 6, 4, 4, dtype=torch.float64, requires_grad=True)
    first, second = reviewer([shallow, deep], [(8, 8), (4, 4)])
    assert bool(torch.autograd.grad(first.square().sum(), deep, retain_graph=True)[0].abs().sum() > 0)
    (gradient,) = torch.autograd.grad(second.square().sum(), shallow, allow_unused=True)
    assert gradient is None


def test_embeddings_take_part_also_with_named_layers_unless_they_are_switched_off() -> None:
    teacher, student = architecture((16, 8, 8), (32, 4, 4), pooled=32), architecture((6, 8, 8), pooled=20)
    assert Review().pairs(teacher, student) == {"stage0": "stage1", "pool": "pool"}
    assert Review(teacher_maps="stage0").pairs(teacher, student) == {"stage0": "stage0", "pool": "pool"}
    named = Review(teacher_maps="stage0, pool", student_maps="stage0, pool", embedding=False)
    assert named.pairs(teacher, student) == {"stage0": "stage0", "pool": "pool"}
    assert Review(embedding=False).pairs(teacher, student) == {"stage0": "stage1"}
    assert list(Review().knowledge(teacher, student)) == ["features.stage0", "features.pool"]


def test_targets_are_the_teachers_maps_before_the_relu_and_the_students_maps_are_those_after_it() -> None:
    net = build_model("resnet8", num_classes=10, input_shape=(3, 32, 32)).eval()
    described = describe(net, name="resnet8", input_shape=(3, 32, 32))
    stages, before = list(described.stages), list(described.preactivations)
    pairs = Review(embedding=False).pairs(described, described)
    assert (list(pairs), list(pairs.values())) == (stages, before)
    assert list(Review(embedding=False, teacher_form="after_relu").pairs(described, described).values()) == stages
    with torch.no_grad(), FeatureReader(net, [*stages, *before]) as read:
        _, maps = read(torch.randn(2, 3, 32, 32))
    for ours, theirs in pairs.items():
        assert float(maps[theirs].min()) < 0
        torch.testing.assert_close(maps[theirs].relu(), maps[ours])


def test_convolutions_start_with_gain_1_and_the_gate_as_torch_does() -> None:
    torch.manual_seed(0)
    fusion = Fusion(64, 256, 128, deepest=False)
    assert fusion.att_conv is not None
    for layer, gain in ((fusion.conv1[0], 1.0), (fusion.conv2[0], 1.0), (fusion.att_conv[0], 1 / 3**0.5)):
        # uniform in +-bound, bound = gain sqrt(3 / fan_in), so the standard deviation is gain / sqrt(fan_in)
        weight, fan_in = layer.weight.detach(), layer.weight[0].numel()
        assert float(weight.abs().max()) <= gain * (3 / fan_in) ** 0.5
        assert float(weight.std()) == pytest.approx(gain / fan_in**0.5, rel=0.05)
    assert bool(fusion.att_conv[0].bias.any())


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.0), (0.125, 0.5), (0.25, 1.0), (0.9, 1.0)])
def test_the_weight_rises_during_the_warm_up(progress: float, share: float) -> None:
    teacher, student = architecture((5, 4, 4)), architecture((3, 4, 4))
    setup = Setup(teacher=teacher, student=student, new_student=nn.Identity, num_samples=10, epochs=2)
    method = Review(warmup_fraction=0.25, review_weight=2.0)
    reviewer, features, target = method.modules(setup)["reviewer"].module, torch.randn(4, 3, 4, 4), torch.randn(4, 5, 4, 4)
    step = make_step(
        student_logits=torch.zeros(4, 10),
        student_features={"stage0": features},
        teacher={"features.stage0": target},
        modules={"reviewer": reviewer},
        progress=progress,
    )
    expected = 2.0 * share * hierarchical_context_loss(reviewer([features], [(4, 4)])[0], target)
    torch.testing.assert_close(method.loss(step)["review"], expected)


def test_with_weight_0_nothing_is_needed_and_only_the_labels_are_used() -> None:
    maps = architecture((16, 8, 8))
    assert Review(review_weight=0).knowledge(maps, maps) == {}
    step = make_step(student_logits=torch.randn(2, 10))
    torch.testing.assert_close(Review(review_weight=0).loss(step), {"cross_entropy": F.cross_entropy(step.logits, step.labels)})


def test_networks_without_maps_do_not_suit() -> None:
    with pytest.raises(Unsuitable, match="student net has none"):
        Review().knowledge(architecture((16, 8, 8)), architecture(pooled=8))
    with pytest.raises(MethodError, match="teacher net has none"):
        Review().knowledge(architecture(pooled=8), architecture((16, 8, 8)))
