"""Which BatchNorm is before a layer's ReLU."""

import pytest
from torch import nn

from stillhouse.models.architecture import UnknownLayer, describe
from stillhouse.models.registry import sketch_model


@pytest.mark.parametrize(
    ("model", "norms"),
    [
        ("resnet8", ["layer1.0.bn2", "layer2.0.bn2", "layer3.0.bn2"]),
        ("resnet20", ["layer1.2.bn2", "layer2.2.bn2", "layer3.2.bn2"]),
        ("resnet50", ["layer1.2.bn3", "layer2.3.bn3", "layer3.5.bn3", "layer4.2.bn3"]),
        ("wrn_16_2", ["block2.layer.0.bn1", "block3.layer.0.bn1", "bn1"]),
        ("vgg13", ["block0.4", "block1.4", "block2.4", "block4.4"]),
        ("shufflenet_v1", ["layer1.3.bn3", "layer2.7.bn3", "layer3.3.bn3"]),
        ("mobilenet_v2", ["blocks.1.1.conv.7", "blocks.2.2.conv.7", "blocks.4.2.conv.7", "blocks.6.0.conv.7"]),
        ("lenet", [None, None]),
        ("nin", [None, None, None]),
    ],
)
def test_it_is_the_last_one_of_the_branch_in_every_family(model: str, norms: list[str | None]) -> None:
    shape = (3, 32, 32)
    architecture = describe(sketch_model(model, num_classes=10, input_shape=shape), name=model, input_shape=shape)
    assert [architecture.normalisation(layer) for layer in architecture.preactivations] == norms


def test_one_without_weights_or_of_another_layer_does_not_count() -> None:
    layers = [nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5, affine=False), nn.ReLU()]
    net = nn.Sequential(nn.Sequential(*layers), nn.Flatten(), nn.Linear(320, 2))
    architecture = describe(net, name="net", input_shape=(3, 8, 8))
    assert architecture.batch_norms == ("0.1",)
    assert architecture.normalisation("0.1") == "0.1"
    assert architecture.normalisation("0") is None, "its channels differ"
    with pytest.raises(UnknownLayer):
        architecture.normalisation("9")
