import copy

import pytest
import torch
from torch import Tensor, nn

from stillhouse.models.architecture import UnknownLayer
from stillhouse.models.features import FeatureReader
from stillhouse.models.registry import build_model
from stillhouse.models.size import measure_size
from stillhouse.models.trunk import Trunk

SHAPE = (1, 8, 8)


def build(name: str) -> nn.Module:
    return build_model(name, num_classes=10, input_shape=SHAPE)


@pytest.mark.parametrize(("name", "layer"), [("resnet8", "layer3"), ("lenet", "hidden.relu1"), ("mobilenet_v2", "blocks.1")])
def test_it_returns_the_output_of_the_layer(name: str, layer: str) -> None:
    model = build(name).eval()
    images = torch.randn(3, *SHAPE)
    with FeatureReader(model, [layer]) as reader:
        expected = reader(images)[1][layer]
    torch.testing.assert_close(Trunk(model, layer, SHAPE).eval()(images), expected, rtol=0, atol=0)


def test_the_trunk_shares_the_models_weights_but_not_its_mode() -> None:
    model = build("resnet8").train()
    trunk = Trunk(model, "layer2", SHAPE).eval()
    images = torch.randn(4, *SHAPE)
    before = trunk(images)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(images).square().sum().backward()
    optimizer.step()
    assert not torch.equal(trunk(images), before)
    assert all(module.training for module in model.modules())
    model.load_state_dict(build("resnet8").state_dict())
    with FeatureReader(model.eval(), ["layer2"]) as reader:
        assert torch.equal(trunk(images), reader(images)[1]["layer2"])


def test_parameters_after_the_layer_are_not_counted() -> None:
    model = build("resnet8")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    size = measure_size(Trunk(model, "pool", SHAPE), SHAPE)
    assert size.parameters == parameters - 64 * 10 - 10
    assert size.macs == measure_size(model, SHAPE).macs - 64 * 10
    assert "fc" in dict(model.named_modules())
    assert isinstance(model.get_submodule("fc"), nn.Linear)


def test_it_can_be_copied() -> None:
    trunk = Trunk(build("lenet"), "relu2", SHAPE).eval()
    images = torch.randn(2, *SHAPE)
    assert torch.equal(copy.deepcopy(trunk)(images), trunk(images))


class Functional(nn.Module):
    """Uses weights of a module that it never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Linear(64, 3, bias=False)
        self.middle = nn.Identity()
        self.head = nn.Linear(3, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.middle(nn.functional.linear(images.flatten(1), self.weights.weight)))
        return logits


def test_weights_that_are_used_without_calling_their_module_stay() -> None:
    trunk = Trunk(Functional(), "middle", SHAPE)
    assert trunk(torch.randn(2, *SHAPE)).shape == (2, 3)
    assert [name for name, _ in trunk.named_parameters()] == ["model.weights.weight"]


@pytest.mark.parametrize(
    ("name", "layer"), [("lenet", "pool2"), ("resnet8", "layer2"), ("wrn_16_1", "relu"), ("mlp", "hidden.relu1")]
)
def test_it_can_be_exported(name: str, layer: str) -> None:
    trunk = Trunk(build(name), layer, SHAPE).eval()
    images = torch.randn(5, *SHAPE)
    program = torch.export.export(trunk, (images[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.testing.assert_close(program.module()(images), trunk(images))


class Residual(nn.Module):
    """Uses the output of its middle layer in ways that a plain substitute for a layer would not fit."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 8)
        self.second = nn.Sequential(nn.Linear(8, 5), nn.ReLU())
        self.side = nn.Linear(64, 5)
        self.head = nn.Linear(5, 10)

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        logits: Tensor = self.head(self.second(self.first(flat)) + self.side(flat))
        return logits


def test_substitutes_have_the_shapes_of_the_layers_they_replace() -> None:
    model = Residual()
    trunk = Trunk(model, "first", SHAPE)
    images = torch.randn(3, *SHAPE)
    torch.testing.assert_close(trunk(images), model.first(images.flatten(1)))
    assert [name for name, _ in trunk.named_parameters()] == ["model.first.weight", "model.first.bias"]


def test_an_unknown_layer_is_refused() -> None:
    with pytest.raises(UnknownLayer, match="no layer 'layer9'"):
        Trunk(build("resnet8"), "layer9", SHAPE)
