from collections.abc import Callable
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.distill.maps import Connectors
from stillhouse.distill.method import MethodError, Setup, Stage, Unsuitable
from stillhouse.methods.fsp import FSP, averaged_flow_matrix, flow_loss, flow_matrix, mean_flow_loss
from stillhouse.models.architecture import Architecture
from stillhouse.testing import ReferenceCase, make_step

Open = Callable[[str], ReferenceCase]
Loss = Callable[[Tensor, Tensor], Tensor]


def architecture(*shapes: tuple[int, ...]) -> Architecture:
    layers = {f"stage{number}": shape for number, shape in enumerate(shapes)}
    return Architecture(name="net", num_classes=10, input_shape=(3, 32, 32), shapes=layers, stages=tuple(layers))


def setup(teacher: Architecture, student: Architecture, epochs: int) -> Setup:
    return Setup(teacher=teacher, student=student, new_student=nn.Identity, num_samples=100, epochs=epochs)


def summed(case: ReferenceCase, loss: Loss, *, flow: Loss = flow_matrix, channels_last: bool = False) -> Tensor:
    def maps(who: str, layer: int) -> Tensor:
        tensor = case[f"in.{who}_feat{layer}"]
        return tensor.permute(0, 3, 1, 2) if channels_last else tensor

    pairs = len(case.numbers("in.s_feat")) - 1
    flows = {who: [flow(maps(who, i), maps(who, i + 1)) for i in range(pairs)] for who in "st"}
    return torch.stack([loss(ours, theirs) for ours, theirs in zip(flows["s"], flows["t"], strict=True)]).sum()


def test_the_loss_equals_the_papers_formula(open_case: Open) -> None:
    case = open_case("fsp-paper-formula")
    loss = case.number("lambda_i") * summed(case, flow_loss)
    case.check(loss)
    case.check_gradients(loss, *(f"s_feat{layer}" for layer in case.numbers("in.s_feat")))


@pytest.mark.parametrize("name", ["fsp-repdistiller", "fsp-kdzoo"])
def test_the_mean_form_equals_published_implementations(open_case: Open, name: str) -> None:
    case = open_case(name)
    loss = summed(case, mean_flow_loss, flow=averaged_flow_matrix)
    case.check(loss)
    case.check_gradients(loss, *(f"s_feat{layer}" for layer in case.numbers("in.s_feat")))


def test_half_the_papers_form_equals_an_implementation_with_that_factor(open_case: Open) -> None:
    case = open_case("fsp-sseung-tf")
    loss = case.number("weight") / 2 * summed(case, flow_loss, channels_last=True)
    case.check(loss)
    case.check_gradients(loss, *(f"s_feat{layer}" for layer in case.numbers("in.s_feat")))


def test_a_flow_is_the_mean_product_of_two_channels_by_hand() -> None:
    first = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    second = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]], [[0.0, 2.0], [0.0, 0.0]]]])
    assert flow_matrix(first, second).tolist() == [[[5 / 4, 4 / 4]]]


def test_the_larger_map_is_max_pooled() -> None:
    first = torch.arange(16.0).reshape(1, 1, 4, 4)
    second = torch.ones(1, 1, 2, 2)
    assert flow_matrix(first, second).item() == flow_matrix(second, first).item() == (5 + 7 + 13 + 15) / 4


def test_in_the_mean_form_the_larger_map_is_average_pooled_at_the_teacher_and_at_the_student() -> None:
    first, second = torch.arange(16.0).reshape(1, 1, 4, 4), torch.ones(1, 1, 2, 2)
    # The means of the four quarters of 0 .. 15 are 2.5, 4.5, 10.5 and 12.5.
    assert averaged_flow_matrix(first, second).item() == averaged_flow_matrix(second, first).item() == 7.5
    maps = architecture((1, 4, 4), (1, 2, 2))
    (kind,) = FSP(form="mean").knowledge(maps, maps).values()
    assert kind.compute(torch.zeros(1, 10), {"stage0": first, "stage1": second}).item() == 7.5
    step = make_step(
        student_logits=torch.zeros(1, 10),
        student_features={"stage0": first, "stage1": second},
        teacher={"flow.0": torch.tensor([[[5.5]]])},
        modules={"connectors": Connectors([nn.Identity(), nn.Identity()])},
        stage=Stage(name="flow", epochs=1),
    )
    assert float(FSP(form="mean", flow_weight=1.0).loss(step)["flow"]) == pytest.approx(4.0)


def test_equal_flows_have_no_loss_and_positions_may_be_permuted_together() -> None:
    first, second = torch.randn(3, 4, 5, 5), torch.randn(3, 6, 5, 5)
    flow = flow_matrix(first, second)
    assert float(flow_loss(flow, flow)) == float(mean_flow_loss(flow, flow)) == 0.0
    torch.testing.assert_close(flow_matrix(first.flip(2), second.flip(2)), flow)


def test_a_batch_of_one_has_a_value() -> None:
    flow = torch.ones(1, 2, 3)
    assert float(flow_loss(torch.zeros(1, 2, 3), flow)) == 6.0


def test_the_knowledge_is_the_matrices_of_successive_stages() -> None:
    teacher = architecture((16, 32, 32), (32, 16, 16), (64, 8, 8))
    needed = FSP().knowledge(teacher, architecture((8, 32, 32), (16, 16, 16), (24, 8, 8)))
    assert [kind.layers for kind in needed.values()] == [("stage0", "stage1"), ("stage1", "stage2")]
    features = {name: torch.randn(2, *shape) for name, shape in teacher.shapes.items()}
    assert needed["flow.1"].compute(torch.zeros(2, 10), features).shape == (2, 32, 64)


def test_equal_numbers_of_channels_need_no_connector() -> None:
    teacher, student = architecture((16, 8, 8), (32, 4, 4)), architecture((16, 8, 8), (20, 4, 4))
    connectors = FSP().modules(setup(teacher, student, 4))["connectors"].module
    assert isinstance(connectors, Connectors)
    assert [type(layer) for layer in connectors] == [nn.Identity, nn.Conv2d]


def test_the_first_stage_ends_at_the_last_map_and_the_second_uses_only_labels() -> None:
    maps = architecture((16, 8, 8), (32, 4, 4))
    flow, classify = FSP().stages(setup(maps, maps, 8))
    assert (flow.epochs, flow.until, flow.comparable, classify.epochs) == (2, "stage1", False, 6)
    features = {"stage0": torch.randn(2, 16, 8, 8), "stage1": torch.randn(2, 32, 4, 4)}
    first = make_step(
        student_logits=None,
        labels=torch.zeros(2, dtype=torch.int64),
        student_features=features,
        teacher={"flow.0": torch.zeros(2, 16, 32)},
        modules={"connectors": Connectors([nn.Identity(), nn.Identity()])},
        stage=flow,
    )
    terms = FSP(flow_weight=0.5).loss(first)
    expected = 0.5 * flow_matrix(*features.values()).square().sum() / 2
    torch.testing.assert_close(terms, {"flow": expected})
    second = make_step(student_logits=torch.randn(2, 10), stage=Stage(name="classify", epochs=1))
    terms = FSP().loss(second)
    torch.testing.assert_close(terms, {"cross_entropy": F.cross_entropy(second.logits, second.labels)})


@pytest.mark.parametrize(("form", "factor"), [("paper", 0.01), ("mean", 1.0)])
def test_the_first_stage_has_a_hundredth_of_the_rate_as_in_the_paper(form: Literal["paper", "mean"], factor: float) -> None:
    maps = architecture((16, 8, 8), (32, 4, 4))
    flow, classify = FSP(form=form).stages(setup(maps, maps, 8))
    assert (flow.rate_factor, classify.rate_factor) == (factor, 1.0)
    assert (flow.gradient_clip, classify.gradient_clip) == (5.0, None)


def test_a_student_with_one_map_does_not_suit() -> None:
    with pytest.raises(Unsuitable, match="needs two feature maps"):
        FSP().knowledge(architecture((16, 8, 8), (32, 4, 4)), architecture((16, 8, 8)))


def test_a_single_epoch_is_too_short() -> None:
    maps = architecture((16, 8, 8), (32, 4, 4))
    with pytest.raises(MethodError, match="each of its 2 stages, has 1"):
        FSP().stages(setup(maps, maps, 1))
