import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.distill.maps import Connectors, make_connector
from stillhouse.distill.method import MethodError, Unsuitable
from stillhouse.distill.sources import compute_knowledge
from stillhouse.methods.overhaul import Overhaul, batch_norm_margin, data_margin, margin_relu, partial_l2
from stillhouse.models.architecture import Architecture, describe
from stillhouse.models.features import FeatureReader
from stillhouse.models.registry import build_model
from stillhouse.testing import ReferenceCase, make_step

Open = Callable[[str], ReferenceCase]


def architecture(*shapes: tuple[int, ...]) -> Architecture:
    layers = {f"stage{number}": shape for number, shape in enumerate(shapes)}
    return Architecture(name="net", num_classes=10, input_shape=(3, 32, 32), shapes=layers, stages=tuple(layers))


def connected(case: ReferenceCase, features: Tensor, names: tuple[str, str, str]) -> Tensor:
    """The student's map after a connector with the case's weights."""
    weights = dict(zip(("0.weight", "1.weight", "1.bias"), (case[f"w.{name}"] for name in names), strict=True))
    connector = make_connector(features.shape[1], len(weights["1.bias"])).to(features.dtype)
    output: Tensor = torch.func.functional_call(connector, weights, (features,))
    return output


def layerwise(case: ReferenceCase) -> list[Tensor]:
    losses = []
    for layer in case.numbers("in.s_feat"):
        ours = connected(case, case[f"in.s_feat{layer}"], (f"c{layer}.weight", f"cbn{layer}.weight", f"cbn{layer}.bias"))
        losses.append(partial_l2(ours, torch.maximum(case[f"in.t_feat{layer}"], case[f"w.margin{layer}"])))
    return losses


def test_margins_are_those_of_the_authors_code_with_every_branch(open_case: Open) -> None:
    case = open_case("ofd-margin")
    margin = batch_norm_margin(case["w.bn.weight"], case["w.bn.bias"])
    reference = case["out.margin_f64.f64"].to(margin.dtype)
    torch.testing.assert_close(margin, reference, rtol=1e-9 if margin.dtype == torch.float64 else 2e-5, atol=1e-6)
    case.check(margin.sum())


def test_loss_and_connectors_equal_the_authors_code(open_case: Open) -> None:
    case = open_case("ofd-official")
    losses = layerwise(case)
    for layer, loss in enumerate(losses):
        case.check(len(case["in.t_feat0"]) * loss, f"out.layer{layer}_raw_sum")
    total = torch.stack([loss / 2 ** (len(losses) - 1 - layer) for layer, loss in enumerate(losses)]).sum()
    case.check(0.001 * total, "out.cifar_scaled")
    raw = len(case["in.t_feat0"]) * total
    case.check(raw)
    case.check_gradients(raw, *(f"s_feat{layer}" for layer in range(len(losses))))
    names = ("c0.weight", "cbn1.weight", "cbn2.bias")
    gradients = torch.autograd.grad(raw, [case[f"w.{name}"] for name in names])
    for name, gradient in zip(names, gradients, strict=True):
        case.check(gradient, f"grad.w.{name}")


def test_loss_and_connectors_equal_another_published_implementation(open_case: Open) -> None:
    case = open_case("ofd-mdistiller")
    losses = layerwise(case)
    total = torch.stack([loss / 2 ** (len(losses) - 1 - layer) for layer, loss in enumerate(losses)]).sum()
    case.check(total)
    case.check_gradients(total, *(f"s_feat{layer}" for layer in range(len(losses))))


def test_margins_from_data_equal_an_implementation_that_takes_the_mean(open_case: Open) -> None:
    case = open_case("ofd-kdzoo")
    ours, teacher = connected(case, case["in.s_feat"], ("c.weight", "bn.weight", "bn.bias")), case["in.t_feat"]
    case.check(data_margin(teacher), "aux.margin")
    loss = partial_l2(ours, torch.maximum(teacher, data_margin(teacher))) / teacher[0].numel()
    case.check(loss)
    case.check_gradients(loss, "s_feat")


def test_the_margin_is_the_mean_of_the_negative_half_of_a_normal_distribution() -> None:
    # E[x | x < 0] of N(0, 1) is -sqrt(2 / pi)
    margin = batch_norm_margin(torch.tensor([1.0, -2.0, 0.0]), torch.zeros(3))
    torch.testing.assert_close(margin, torch.tensor([-1.0, -2.0, 0.0]) * math.sqrt(2 / math.pi))
    samples = 0.5 + 2 * torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    expected = float(samples[samples < 0].mean())
    assert float(batch_norm_margin(torch.tensor([2.0]), torch.tensor([0.5]))) == pytest.approx(expected, rel=0.02)


def test_partial_l2_by_hand() -> None:
    student = torch.tensor([3.0, 0.0, -2.0, 0.0]).reshape(1, 4, 1, 1)
    target = torch.tensor([1.0, 2.0, -1.0, -1.0]).reshape(1, 4, 1, 1)
    # (3-1)^2, (0-2)^2, nothing for -2 below -1, (0+1)^2
    assert float(partial_l2(student, target)) == 4 + 4 + 0 + 1


def test_equal_targets_have_no_loss() -> None:
    target = torch.randn(3, 4, 5, 5)
    assert float(partial_l2(target, target)) == 0.0
    assert float(partial_l2(torch.where(target > 0, target, target - 1), target)) == 0.0


@pytest.mark.parametrize(
    ("model", "norm"), [("resnet8", "layer1.0.bn2"), ("vgg8", "block0.1"), ("wrn_16_1", "block2.layer.0.bn1")]
)
def test_the_teachers_targets_use_the_batch_norm_before_its_relu(model: str, norm: str) -> None:
    net = build_model(model, num_classes=10, input_shape=(3, 16, 16)).eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.startswith(norm):
                parameter.uniform_(-1, 1)
    teacher = describe(net, name=model, input_shape=(3, 16, 16))
    first = f"target.{teacher.preactivations[0]}"
    needed = Overhaul().knowledge(teacher, teacher)
    assert needed[first].weights == (f"{norm}.weight", f"{norm}.bias")
    with FeatureReader(net, teacher.preactivations) as reader:
        images = torch.randn(2, 3, 16, 16)
        made = compute_knowledge(reader, needed, images)
        _, maps = reader(images)
    margin = batch_norm_margin(net.get_parameter(f"{norm}.weight"), net.get_parameter(f"{norm}.bias"))[:, None, None]
    torch.testing.assert_close(made[first], torch.maximum(maps[teacher.preactivations[0]], margin))


def test_a_teacher_without_batch_norm_is_rejected_or_has_margins_from_data() -> None:
    maps = architecture((16, 8, 8))
    with pytest.raises(MethodError, match=r"needs a BatchNorm right before layer 'stage0' of teacher net.*set margins to data"):
        Overhaul().knowledge(maps, maps)
    (kind,) = Overhaul(margins="data").knowledge(maps, architecture((6, 4, 4))).values()
    features = torch.randn(2, 16, 8, 8)
    torch.testing.assert_close(kind.compute(torch.zeros(2, 10), {"stage0": features}), F.avg_pool2d(features, 2))


def test_deeper_layers_have_more_weight_and_the_weight_is_applied() -> None:
    student = {f"stage{layer}": torch.randn(2, 3, 4, 4) for layer in range(2)}
    target = torch.randn(2, 3, 4, 4)
    step = make_step(
        student_logits=torch.zeros(2, 10),
        student_features=student,
        teacher={"target.stage0": target, "target.stage1": target},
        modules={"connectors": Connectors([nn.Identity(), nn.Identity()])},
    )
    expected = 0.01 * (partial_l2(student["stage0"], target) / 2 + partial_l2(student["stage1"], target))
    torch.testing.assert_close(Overhaul(feature_weight=0.01).loss(step)["features"], expected)


def test_maps_are_averaged_before_the_margin_is_applied() -> None:
    maps, gamma, beta = torch.randn(2, 3, 4, 4), torch.ones(3), torch.zeros(3)
    expected = F.avg_pool2d(maps, 2).clamp_min(-math.sqrt(2 / math.pi))
    torch.testing.assert_close(margin_relu(maps, gamma, beta, height=2, width=2), expected)


def test_with_weight_0_nothing_is_needed_and_only_the_labels_are_used() -> None:
    maps = architecture((16, 8, 8))
    assert Overhaul(feature_weight=0).knowledge(maps, maps) == {}
    assert not Overhaul(feature_weight=0).student_layers(None, maps)
    step = make_step(student_logits=torch.randn(2, 10))
    assert list(Overhaul(feature_weight=0).loss(step)) == ["cross_entropy"]


def test_a_student_without_maps_does_not_suit() -> None:
    with pytest.raises(Unsuitable, match="needs feature maps"):
        Overhaul().knowledge(architecture((16, 8, 8)), architecture())
