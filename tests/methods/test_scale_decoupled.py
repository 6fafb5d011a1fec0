import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stillhouse.distill.method import MethodError, Unsuitable
from stillhouse.methods.decoupled import Decoupled
from stillhouse.methods.normalized_kd import normalized_others_loss, soft_target_loss
from stillhouse.methods.scale_decoupled import (
    ClassMap,
    ScaleDecoupled,
    cell_losses,
    class_cells,
    class_map,
    conflict_factors,
)
from stillhouse.models.architecture import Architecture
from stillhouse.models.blueprint import blueprint
from stillhouse.models.features import FeatureReader
from stillhouse.models.registry import build_model, model_names
from stillhouse.testing import MethodTrial, make_step


def net(height: int = 4, width: int = 4) -> Architecture:
    shapes = {"map": (3, height, width), "pool": (3,), "fc": (5,)}
    return Architecture(name="net", num_classes=5, input_shape=(1, 8, 8), shapes=shapes, stages=("map",), pooled="pool")


def test_the_logits_of_cells_by_hand() -> None:
    # One channel of 2 x 2 pixels and two classes: W = (1, -2), b = (0, 1).
    maps = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])
    cells = class_cells(maps, torch.tensor([[1.0], [-2.0]]), torch.tensor([0.0, 1.0]), grids="1,2")
    assert cells.tolist() == [[[3.0, -5.0], [1.0, -1.0], [2.0, -3.0], [3.0, -5.0], [6.0, -11.0]]]


@pytest.mark.parametrize("side", [2, 4])
def test_the_mean_of_a_grids_cells_is_the_whole(side: int) -> None:
    maps, weight, bias = torch.randn(3, 6, 8, 8).double(), torch.randn(5, 6).double(), torch.randn(5).double()
    cells = class_cells(maps, weight, bias, grids=str(side))
    assert cells.shape == (3, side * side, 5)
    torch.testing.assert_close(cells.mean(1), F.linear(maps.mean((2, 3)), weight, bias))


def test_cells_that_conflict_with_the_whole_weigh_double() -> None:
    # Answers of the teacher: sample 0 has label 1, right on the whole; sample 1 has label 0, wrong on the whole.
    answers = torch.tensor([[1, 1, 0, 1], [2, 0, 1, 2]])
    factors = conflict_factors(F.one_hot(answers, 3).float(), torch.tensor([1, 0]), 2.0)
    assert factors.tolist() == [[1, 1, 2, 1], [1, 2, 1, 1]]


def test_the_loss_of_a_step_by_hand() -> None:
    """Two classes, where only the sample's own class counts: KL of (p, 1 - p)."""
    student, teacher = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.75, 0.25]]).log()
    wrong = torch.tensor([[[0.25, 0.75]]]).log()
    step = make_step(
        student_logits=student,
        student_features={"map": torch.zeros(1, 1, 1, 1)},
        teacher={"logits": teacher, "cells": wrong},
        student=nn.Sequential(),
        modules={"class_map": _Constant(student.unsqueeze(1))},
    )
    terms = ScaleDecoupled(temperature=1.0, target_weight=3.0, warmup_fraction=0.0).loss(step)
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    # The whole with factor 1 and the wrong cell with factor 2; both divergences are the same.
    assert float(terms["target_class"]) == pytest.approx(3 * (1 + 2) / 2 * divergence)
    assert float(terms["other_classes"]) == pytest.approx(0.0, abs=1e-7)


class _Constant(nn.Module):
    def __init__(self, cells: torch.Tensor) -> None:
        super().__init__()
        self.cells = cells

    def forward(self, student: nn.Module, maps: torch.Tensor) -> torch.Tensor:
        return self.cells


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_on_the_whole_image_alone_it_is_decoupled(temperature: float) -> None:
    student, teacher, labels = torch.randn(6, 10), torch.randn(6, 10), torch.arange(6)
    step = make_step(student_logits=student, labels=labels, teacher={"logits": teacher}, progress=0.05)
    ours = ScaleDecoupled(grids=(1,), temperature=temperature).loss(step)
    for name, expected in Decoupled(temperature=temperature).loss(step).items():
        torch.testing.assert_close(ours[name], expected)
    assert set(ScaleDecoupled(grids=(1,)).knowledge(net(), net())) == {"logits"}
    assert ScaleDecoupled(grids=(1,)).student_layers(net(), net()) == []


def test_the_normalized_base_has_the_terms_of_nkd() -> None:
    student, teacher, labels = torch.randn(6, 10).double(), torch.randn(6, 10).double(), torch.arange(6)
    own, others = cell_losses(student, teacher, labels, 2.0, "normalized")
    torch.testing.assert_close(own.mean(), soft_target_loss(student, teacher, labels))
    torch.testing.assert_close(others.mean(), normalized_others_loss(student, teacher, labels, 2.0))


def test_the_class_map_uses_the_students_classifier_and_trains_it() -> None:
    student = nn.Sequential()
    student.add_module("fc", nn.Linear(3, 5))
    maps = torch.randn(2, 3, 4, 4)
    cells = ClassMap("fc", "2")(student, maps)
    fc = student.get_submodule("fc")
    torch.testing.assert_close(cells[:, 0], fc(maps[:, :, :2, :2].mean((2, 3))))
    cells.sum().backward()
    assert fc.get_parameter("weight").grad is not None


def test_what_is_needed_and_which_grids_fit() -> None:
    needed = ScaleDecoupled().knowledge(net(8, 8), net(4, 4))
    assert set(needed) == {"logits", "cells"}
    assert needed["cells"].layers == ("map",)
    assert needed["cells"].weights == ("fc.weight", "fc.bias")
    assert dict(needed["cells"].options) == {"grids": "2,4"}
    assert dict(ScaleDecoupled().knowledge(net(8, 8), net(3, 4))["cells"].options) == {"grids": "2"}
    with pytest.raises(
        Unsuitable, match=r"needs last maps of at least 2 x 2 pixels for grids \[1, 2, 4\], student net has 1 x 2"
    ):
        ScaleDecoupled().knowledge(net(8, 8), net(1, 2))
    assert ScaleDecoupled(target_weight=0, others_weight=0).knowledge(net(), net()) == {}
    with pytest.raises(ValueError, match=r"grids must list numbers of cells >= 1, none twice, got \[0\]"):
        ScaleDecoupled(grids=(0,))


SHIPPED = [(name, {"width": 0.25}) for name in model_names()]


@pytest.mark.parametrize(("model", "options"), [*SHIPPED, ("torchvision:resnet18", {})])
def test_cells_of_shipped_models_are_parts_of_their_logits_or_the_model_is_unsuitable(model: str, options: Any) -> None:
    """The property that makes the logits of a cell meaningful, on the network itself."""
    shape = (3, 64, 64)
    architecture = blueprint(model, options, 10, shape).architecture
    try:
        layer, classifier = class_map(architecture)
    except Unsuitable as error:
        assert "another end" in str(error)  # noqa: PT017
        return
    network = build_model(model, num_classes=10, input_shape=shape, **options).eval()
    with FeatureReader(network, [layer]) as reader, torch.no_grad():
        logits, outputs = reader(torch.randn(2, *shape))
        fc = network.get_submodule(classifier)
        whole = class_cells(outputs[layer], fc.get_parameter("weight"), fc.get_parameter("bias"), grids="1")
    assert logits is not None
    torch.testing.assert_close(whole[:, 0], logits, rtol=1e-4, atol=1e-4)


def test_networks_of_other_shapes_are_named() -> None:
    lenet = MethodTrial(ScaleDecoupled()).student_architecture
    with pytest.raises(
        Unsuitable, match="needs a linear layer on the mean over positions of the last map, student lenet has another end"
    ):
        ScaleDecoupled().knowledge(net(), lenet)
    with pytest.raises(MethodError, match="teacher lenet has another end"):
        ScaleDecoupled().knowledge(lenet, net())


def test_it_trains_and_its_terms_are_logged() -> None:
    curve = MethodTrial(ScaleDecoupled(base="normalized", others_weight=1.5, temperature=1.0), student="resnet8", epochs=2)
    entry = curve.trainer().fit()[-1]
    assert entry["target_class"] > 0
    assert entry["other_classes"] > 0
