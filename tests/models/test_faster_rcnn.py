import itertools

import pytest
import torch

from stillhouse.errors import UsageError
from stillhouse.models.architecture import describe
from stillhouse.models.blueprint import blueprint
from stillhouse.models.faster_rcnn import Blocks, fasterrcnn
from stillhouse.models.registry import build_model, model_problems

IMAGES = (3, 120, 160)


def _parameters(**options: object) -> int:
    return blueprint("fasterrcnn", options, 3, IMAGES).size.parameters


def test_parameters_by_hand_with_a_narrow_trunk() -> None:
    # resnet8 of width 0.5 on 48 channels, blocks of 4 x 4 pixels: stem 48*8*9 + 2*8, layer1 2 * (8*8*9 + 16),
    # layer2 (8*16*9 + 32) + (16*16*9 + 32) + (8*16 + 32), layer3 (16*32*9 + 64) + (32*32*9 + 64) + (16*32 + 64).
    trunk = 48 * 8 * 9 + 16 + 2 * (8 * 8 * 9 + 16)
    trunk += 8 * 16 * 9 + 32 + 16 * 16 * 9 + 32 + 8 * 16 + 32 + 16 * 32 * 9 + 64 + 32 * 32 * 9 + 64 + 16 * 32 + 64
    # For each stage a 1x1 and a 3x3 convolution to 32 channels without bias, and two BatchNorms.
    pyramid = (8 + 16 + 32) * 32 + 3 * 32 * 32 * 9 + 6 * 64
    proposals = 32 * 32 * 9 + 32 + 32 * 3 + 3 + 32 * 12 + 12
    boxes = 32 * 49 * 64 + 64 + 64 * 64 + 64 + 64 * 4 + 4 + 64 * 16 + 16
    assert _parameters(backbone="resnet8", width=0.5, neck_channels=32, hidden_units=64) == trunk + pyramid + proposals + boxes


def test_parameters_by_hand_with_lenet() -> None:
    # Two convolutions of 5 x 5 without padding: 6 and 16 channels at the strides 4 and 8.
    with pytest.raises(UsageError, match="needs two"):
        build_model("fasterrcnn", num_classes=3, input_shape=(3, 24, 24), backbone="mlp")
    known = describe(build_model("nin", num_classes=2, input_shape=(48, 30, 40)), name="nin", input_shape=(48, 30, 40))
    channels = [known.shape(stage)[0] for stage in known.stages if known.shape(stage)[1] > 1]
    model = build_model("fasterrcnn", num_classes=3, input_shape=IMAGES, backbone="nin", neck_channels=16)
    found = {name: sum(each.numel() for each in part.parameters()) for name, part in model.backbone.named_children()}  # type: ignore[union-attr]
    assert found["fpn"] == sum(channels) * 16 + len(channels) * 16 * 16 * 9 + 2 * len(channels) * 32
    assert found["blocks"] == 0


@pytest.mark.parametrize("backbone", ["resnet20", "vgg8", "wrn_16_1", "mobilenet_v2", "shufflenet_v2", "torchvision:resnet18"])
def test_trunks_that_have_stages_make_maps_of_stride_4_and_more(backbone: str) -> None:
    known = blueprint("fasterrcnn", {"backbone": backbone, "neck_channels": 24}, 3, (3, 128, 192)).architecture
    shapes = [known.shape(stage) for stage in known.stages]
    assert shapes[0] == (24, 32, 48)
    assert all(shape[0] == 24 and shape[1] < before[1] for before, shape in itertools.pairwise(shapes))
    assert len(shapes) >= 2
    assert known.num_classes == 3
    assert known.pooled is None


def test_a_student_of_a_tenth_of_a_million_parameters_exists() -> None:
    assert 80_000 < _parameters(backbone="resnet8", width=0.5, neck_channels=16, hidden_units=64) < 120_000


def test_multiply_accumulates_are_counted_for_every_proposal() -> None:
    few, many = (
        blueprint("fasterrcnn", {"proposals": count, "hidden_units": 64, "neck_channels": 16}, 3, IMAGES).size.macs
        for count in (50, 100)
    )
    # Of the box head: 16 * 49 -> 64 -> 64 -> 4 and 16 numbers.
    assert many - few == 50 * (16 * 49 * 64 + 64 * 64 + 64 * 4 + 64 * 16)


def test_blocks_hold_the_pixels_of_their_place() -> None:
    images = torch.arange(12.0).view(1, 1, 2, 6)
    assert Blocks(2)(images).tolist() == [[[[0, 2, 4]], [[1, 3, 5]], [[6, 8, 10]], [[7, 9, 11]]]]
    assert Blocks(4)(images).shape == (1, 16, 1, 2)


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({"backbone": "mlp"}, IMAGES, "backbone 'mlp' has 0 stages of their own resolution"),
        ({"backbone": "vit"}, (3, 96, 96), "a feature pyramid needs two"),
        ({"backbone": "fasterrcnn"}, IMAGES, "backbone must be a classifier, fasterrcnn is a detector"),
        ({"backbone": "resnet8"}, (3, 12, 160), "images of 12x160 are smaller than the largest stride of resnet8, 16"),
        ({"backbone": "resnot8"}, IMAGES, "no model 'resnot8'"),
        ({"backbone": "torchvision:resnet18", "width": 2}, IMAGES, "is not an option of torchvision:resnet18"),
        ({"neck_channels": 0}, IMAGES, "must be a whole number >= 1"),
        ({"stride": 3}, IMAGES, "must be a power of two"),
    ],
)
def test_what_cannot_be_a_detector_is_named(options: dict[str, object], shape: tuple[int, ...], message: str) -> None:
    problems = model_problems("fasterrcnn", options, 3, shape)
    assert problems
    assert message in " ".join(map(str, problems))


def test_the_same_seed_gives_the_same_weights() -> None:
    built = []
    for _ in range(2):
        torch.manual_seed(3)
        built.append(fasterrcnn(num_classes=2, input_shape=(3, 64, 64)).state_dict())
    assert all(torch.equal(value, built[1][name]) for name, value in built[0].items())
