"""The shipped families against published numbers: parameters, MACs, map shapes, names of weights."""

import pytest

from stillhouse.models.architecture import describe
from stillhouse.models.registry import model_options, sketch_model
from stillhouse.models.size import measure_size

# Parameters and MACs of RepDistiller's models (commit b84f547), 100 classes on 3x32x32.
PUBLISHED = {
    "resnet8": (83892, 12507392),
    "resnet14": (181108, 26663168),
    "resnet20": (278324, 40818944),
    "resnet32": (472756, 69130496),
    "resnet44": (667188, 97442048),
    "resnet56": (861620, 125753600),
    "resnet110": (1736564, 253155584),
    "resnet8x4": (1233540, 177071104),
    "resnet32x4": (7433860, 1083040768),
    "resnet50": (23705252, 1298014208),
    "wrn_16_1": (180916, 26663168),
    "wrn_16_2": (703284, 101118464),
    "wrn_40_1": (569780, 83286272),
    "wrn_40_2": (2255156, 327610880),
    "vgg8": (3965028, 96192512),
    "vgg11": (9277284, 209438720),
    "vgg13": (9462180, 284936192),
    "vgg16": (14774436, 398182400),
    "vgg19": (20086692, 511428608),
    "shufflenet_v1": (949258, 38691456),
    "shufflenet_v2": (1355528, 44504448),
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_parameters_and_macs_are_the_published_ones(model: str) -> None:
    size = measure_size(sketch_model(model, num_classes=100, input_shape=(3, 32, 32)), (3, 32, 32))
    assert (size.parameters, size.macs) == PUBLISHED[model]
    assert size.trainable_parameters == size.parameters


def test_mobilenet_v2_at_half_width_is_the_published_one() -> None:
    size = measure_size(sketch_model("mobilenet_v2", num_classes=100, input_shape=(3, 32, 32), width=0.5), (3, 32, 32))
    assert (size.parameters, size.macs) == (812836, 6523648)


@pytest.mark.parametrize(
    ("model", "num_classes", "input_shape", "parameters"),
    [
        # Weights and biases of LeNet-5's layers with full connections: 156 + 2416 + 48120 + 10164 + 850.
        ("lenet", 10, (1, 32, 32), 61706),
        ("lenet", 10, (1, 28, 28), 61706),
        # The LeNet that ships with Caffe: 520 + 25050 + 400500 + 5010.
        ("noisy_lenet", 10, (1, 28, 28), 431080),
        # 784*800+800 + 800*800+800 + 800*10+10.
        ("mlp_800_800", 10, (1, 28, 28), 1276810),
        # 75*64+64 + 1600*128+128 + 8192*1024+1024 + 1024*10+10.
        ("modified_lenet", 10, (3, 32, 32), 8609674),
        # 9*64+64 + 576*128+128 + 6272*1024+1024 + 1024*10+10.
        ("cnn", 10, (1, 28, 28), 6508298),
        # As published for Network in Network on CIFAR-10.
        ("nin", 10, (3, 32, 32), 966986),
    ],
)
def test_the_noisy_teachers_models_have_the_parameters_of_their_layers(
    model: str, num_classes: int, input_shape: tuple[int, int, int], parameters: int
) -> None:
    sketch = sketch_model(model, num_classes=num_classes, input_shape=input_shape)
    assert sum(parameter.numel() for parameter in sketch.parameters()) == parameters


@pytest.mark.parametrize(
    ("model", "width", "stages", "pooled"),
    [
        # Map shapes as published with the counts above, one per resolution.
        ("resnet20", 1.0, [(16, 32, 32), (32, 16, 16), (64, 8, 8)], (64,)),
        ("resnet32x4", 1.0, [(64, 32, 32), (128, 16, 16), (256, 8, 8)], (256,)),
        ("resnet50", 1.0, [(256, 32, 32), (512, 16, 16), (1024, 8, 8), (2048, 4, 4)], (2048,)),
        ("wrn_40_2", 1.0, [(32, 32, 32), (64, 16, 16), (128, 8, 8)], (128,)),
        ("vgg13", 1.0, [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)], (512,)),
        ("mobilenet_v2", 0.5, [(12, 16, 16), (16, 8, 8), (48, 4, 4), (160, 2, 2)], (1280,)),
        ("shufflenet_v1", 1.0, [(240, 16, 16), (480, 8, 8), (960, 4, 4)], (960,)),
        ("shufflenet_v2", 1.0, [(116, 16, 16), (232, 8, 8), (464, 4, 4)], (1024,)),
    ],
)
def test_stages_are_the_published_maps(
    model: str, width: float, stages: list[tuple[int, ...]], pooled: tuple[int, ...]
) -> None:
    sketch = sketch_model(model, num_classes=100, input_shape=(3, 32, 32), width=width)
    architecture = describe(sketch, name=model, input_shape=(3, 32, 32))
    assert [architecture.shape(stage) for stage in architecture.stages] == stages
    assert architecture.pooled is not None
    assert architecture.shape(architecture.pooled) == pooled


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("resnet8", ["conv1.weight", "layer2.0.downsample.1.running_mean", "layer3.0.conv2.weight", "fc.bias"]),
        ("resnet50", ["layer1.0.shortcut.0.weight", "layer4.2.conv3.weight", "linear.weight"]),
        ("wrn_16_1", ["block2.layer.0.convShortcut.weight", "block3.layer.1.bn2.weight", "bn1.weight", "fc.weight"]),
        ("vgg11", ["block0.0.weight", "block2.3.bias", "block4.4.running_var", "classifier.weight"]),
        ("mobilenet_v2", ["conv1.0.weight", "blocks.1.0.conv.3.weight", "conv2.1.bias", "classifier.0.weight"]),
        ("shufflenet_v1", ["layer1.0.conv3.weight", "layer3.3.bn3.bias", "linear.weight"]),
        ("shufflenet_v2", ["layer1.0.conv5.weight", "layer2.7.conv3.weight", "conv2.weight", "bn2.bias"]),
    ],
)
def test_weights_have_the_names_of_published_checkpoints(model: str, names: list[str]) -> None:
    state = sketch_model(model, num_classes=100, input_shape=(3, 32, 32)).state_dict()
    assert [name for name in names if name not in state] == []


@pytest.mark.parametrize(("width", "channels"), [(0.5, 48), (1.0, 116), (1.5, 176), (2.0, 244)])
def test_shufflenet_v2_has_the_papers_channels_at_its_widths(width: float, channels: int) -> None:
    sketch = sketch_model("shufflenet_v2", num_classes=10, input_shape=(3, 32, 32), width=width)
    architecture = describe(sketch, name="shufflenet_v2", input_shape=(3, 32, 32))
    assert architecture.shape("layer1")[0] == channels


@pytest.mark.parametrize(
    "model",
    [
        "resnet8",
        "wrn_16_1",
        "vgg8",
        "mobilenet_v2",
        "shufflenet_v1",
        "shufflenet_v2",
        "nin",
        "lenet",
        "vit",
        "ghostnet",
        "ghost_resnet8",
        "ghost_vgg8",
    ],
)
def test_parameters_grow_with_width(model: str) -> None:
    assert model_options(model)["width"] == 1.0
    counts = [
        sum(parameter.numel() for parameter in sketch.parameters())
        for sketch in (
            sketch_model(model, num_classes=10, input_shape=(3, 32, 32), width=width) for width in (0.01, 0.25, 0.5, 1, 2)
        )
    ]
    assert counts == sorted(set(counts))
