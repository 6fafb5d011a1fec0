"""Torchvision's models by name."""

import pytest
import torch
from torch import nn

from stillhouse.models.architecture import describe
from stillhouse.models.features import FeatureReader
from stillhouse.models.registry import build_model, model_problems, sketch_model
from stillhouse.models.size import measure_size


def test_resnet18_has_its_published_size() -> None:
    # torchvision's model card: 11,689,512 parameters, 1.814 GMACs at 224x224.
    size = measure_size(sketch_model("torchvision:resnet18", num_classes=1000, input_shape=(3, 224, 224)), (3, 224, 224))
    assert size.parameters == 11_689_512
    assert round(size.macs / 1e9, 3) == 1.814


def test_a_bare_name_means_torchvision_unless_a_shipped_model_has_it() -> None:
    bare = sketch_model("resnet18", num_classes=10, input_shape=(3, 32, 32))
    assert type(bare).__module__.startswith("torchvision")
    shipped = sketch_model("resnet50", num_classes=10, input_shape=(3, 32, 32))
    assert type(shipped).__module__.startswith("stillhouse")


@pytest.mark.parametrize(
    "model", ["resnet18", "mobilenet_v3_small", "efficientnet_b0", "regnet_y_400mf", "torchvision:shufflenet_v2_x0_5"]
)
def test_models_of_torchvision_accept_grey_images(model: str) -> None:
    assert model_problems(model, {}, 10, (1, 28, 28)) == []


@pytest.mark.parametrize("model", ["googlenet", "inception_v3", "vit_b_16", "alexnet"])
def test_models_that_require_large_images_resize_small_ones(model: str) -> None:
    side = 299 if model == "inception_v3" else 224
    assert model_problems(model, {"resize": side}, 10, (1, 8, 8)) == []


def test_nothing_works_in_place() -> None:
    sketch = sketch_model("resnet18", num_classes=10, input_shape=(3, 32, 32))
    assert [name for name, module in sketch.named_modules() if getattr(module, "inplace", False)] == []


def test_the_embedding_of_a_resnet_has_a_layer_name() -> None:
    torch.manual_seed(0)
    net = build_model("resnet18", num_classes=10, input_shape=(3, 32, 32)).eval()
    architecture = describe(net, name="resnet18", input_shape=(3, 32, 32))
    assert architecture.pooled == "avgpool"
    assert architecture.shape("avgpool") == (512,)
    with FeatureReader(net, ["avgpool"]) as read:
        logits, features = read(torch.randn(2, 3, 32, 32))
    assert isinstance(net.fc, nn.Linear)
    torch.testing.assert_close(net.fc(features["avgpool"]), logits)


@pytest.mark.parametrize(
    ("model", "maps"),
    [
        # Channels at strides 4 to 32: Swin-T (arXiv 2103.14030), ConvNeXt-T (2201.03545), MaxViT-T (2204.01697).
        ("swin_t", [(96, 56, 56), (192, 28, 28), (384, 14, 14), (768, 7, 7)]),
        ("convnext_tiny", [(96, 56, 56), (192, 28, 28), (384, 14, 14), (768, 7, 7)]),
        ("maxvit_t", [(64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)]),
        ("vit_b_16", [(768, 14, 14)] * 3),
    ],
)
def test_stages_of_models_with_attention_are_maps(model: str, maps: list[tuple[int, int, int]]) -> None:
    architecture = describe(
        sketch_model(f"torchvision:{model}", num_classes=10, input_shape=(3, 224, 224)), name=model, input_shape=(3, 224, 224)
    )
    assert [architecture.shape(stage) for stage in architecture.stages] == maps


@pytest.mark.parametrize(("model", "width"), [("mobilenet_v2", 1280), ("convnext_tiny", 768), ("vgg11_bn", 4096)])
def test_the_embedding_is_the_vector_before_the_logits(model: str, width: int) -> None:
    architecture = describe(
        sketch_model(f"torchvision:{model}", num_classes=10, input_shape=(3, 64, 64)), name=model, input_shape=(3, 64, 64)
    )
    assert architecture.pooled is not None
    assert architecture.shape(architecture.pooled) == (width,)
