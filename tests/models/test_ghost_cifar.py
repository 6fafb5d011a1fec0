"""Ghost-ResNet and Ghost-VGG against the counts of the paper and of their layers."""

import pytest
from torch import nn

from stillhouse.models.architecture import describe
from stillhouse.models.ghost import GhostModule
from stillhouse.models.registry import sketch_model
from stillhouse.models.size import ModelSize, measure_size

SHAPE = (3, 32, 32)


def size_of(model: str, **options: int) -> ModelSize:
    return measure_size(sketch_model(model, num_classes=10, input_shape=SHAPE, **options), SHAPE)


def ghost(num_inputs: int, num_outputs: int, kernel: int = 3, ratio: int = 2, dw_size: int = 3) -> tuple[int, int]:
    """Weights and MACs per pixel of one module: equation 3, with two numbers of BatchNorm for each map."""
    primary = -(-num_outputs // ratio)
    convolutions = num_inputs * primary * kernel**2 + primary * (ratio - 1) * dw_size**2
    return convolutions + 2 * primary * ratio, convolutions


def test_ghost_vgg16_has_the_papers_macs() -> None:
    # Table 5: 158 M FLOPs, which are multiply-accumulates, against 313 M of VGG-16. The paper's network pools before its last
    # block, whose maps are then 2x2 and not 4x4; its 7.7 M weights have a second linear layer of 512 x 512.
    size = size_of("ghost_vgg16")
    assert round((size.macs - 3 * ghost(512, 512)[1] * (16 - 4)) / 1e6) == 158
    assert round((size.parameters + 512 * 512 + 512) / 1e6, 1) == 7.7


def test_ghost_resnet56_has_half_the_weights_and_macs() -> None:
    # Table 6: 0.43 M weights and 63 M FLOPs against 0.85 M and 125 M.
    ghosts, plain = size_of("ghost_resnet56"), size_of("resnet56")
    assert ghosts.parameters / plain.parameters == pytest.approx(0.43 / 0.85, abs=0.02)
    assert ghosts.macs / plain.macs == pytest.approx(63 / 125, abs=0.02)


@pytest.mark.parametrize(("kernel", "ratio", "dw_size"), [(3, 2, 3), (1, 2, 3), (3, 4, 5), (3, 1, 3)])
def test_ghost_resnet8_has_the_counts_of_its_layers(kernel: int, ratio: int, dw_size: int) -> None:
    modules = [(16, 16, 32), (16, 16, 32), (16, 32, 16), (32, 32, 16), (32, 64, 8), (64, 64, 8)]
    counts = [ghost(num_inputs, num_outputs, kernel, ratio, dw_size) for num_inputs, num_outputs, _ in modules]
    shortcuts, stem, classifier = 16 * 32 + 64 + 32 * 64 + 128, 3 * 16 * 9 + 32, 64 * 10 + 10
    size = size_of("ghost_resnet8", primary_kernel=kernel, ratio=ratio, dw_size=dw_size)
    assert size.parameters == sum(weights for weights, _ in counts) + shortcuts + stem + classifier
    macs = sum(count * side**2 for (_, count), (_, _, side) in zip(counts, modules, strict=True))
    assert size.macs == macs + 16 * 32 * 16**2 + 32 * 64 * 8**2 + 3 * 16 * 9 * 32**2 + 640


@pytest.mark.parametrize(
    ("model", "stages"),
    [
        ("ghost_resnet20", [(16, 32, 32), (32, 16, 16), (64, 8, 8)]),
        ("ghost_vgg13", [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]),
    ],
)
def test_stages_are_those_of_the_network_without_ghosts(model: str, stages: list[tuple[int, ...]]) -> None:
    architecture = describe(sketch_model(model, num_classes=10, input_shape=SHAPE), name=model, input_shape=SHAPE)
    assert [architecture.shape(stage) for stage in architecture.stages] == stages
    plain = model.removeprefix("ghost_")
    assert describe(sketch_model(plain, num_classes=10, input_shape=SHAPE), name=plain, input_shape=SHAPE).stages == (
        architecture.stages
    )


@pytest.mark.parametrize(("model", "modules"), [("ghost_resnet20", 18), ("ghost_vgg16", 12)])
def test_every_convolution_but_the_first_is_a_ghost_module(model: str, modules: int) -> None:
    sketch = sketch_model(model, num_classes=10, input_shape=SHAPE)
    assert sum(isinstance(module, GhostModule) for module in sketch.modules()) == modules
    convolutions = [name for name, module in sketch.named_modules() if isinstance(module, nn.Conv2d)]
    outside = [name for name in convolutions if "primary_conv" not in name and "cheap_operation" not in name]
    assert [name for name in outside if "downsample" not in name] == [convolutions[0]]
