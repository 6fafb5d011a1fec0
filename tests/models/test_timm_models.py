"""Models of timm by name: sizes as published, stages that are maps, embeddings, scaling, and the names that are no models."""

import sys

import pytest
import torch
from torch import nn

from stillhouse.errors import UsageError
from stillhouse.models.architecture import Architecture, describe
from stillhouse.models.features import FeatureReader
from stillhouse.models.registry import build_model, is_user_defined, model_problems, sketch_model
from stillhouse.models.size import measure_size
from stillhouse.models.timm_models import stated_configuration

timm = pytest.importorskip("timm")

SMALL = (3, 64, 64)

# Millions of parameters at 1,000 classes, from the tables of timm's releases (results/results-imagenet.csv).
PUBLISHED_MILLIONS = {
    "resnet18": 11.69,
    "resnet10t": 5.44,
    "seresnet18": 11.78,
    "regnetx_002": 2.68,
    "regnety_002": 3.16,
    "efficientnet_b0": 5.29,
    "mobilenetv4_conv_small": 3.77,
    "mobilenetv3_small_050": 1.59,
    "convnext_atto": 3.70,
    "vit_tiny_patch16_224": 5.72,
    "deit_tiny_distilled_patch16_224": 5.91,
    "swin_tiny_patch4_window7_224": 28.29,
    "densenet121": 7.98,
    "ghostnet_050": 2.59,
    "poolformer_s12": 11.92,
    "mobilevit_xxs": 1.27,
    "pvt_v2_b0": 3.67,
    "edgenext_xx_small": 1.33,
    "xcit_nano_12_p16_224": 3.05,
    "levit_128s": 7.78,
    "mixer_s32_224": 19.10,
    "efficientformer_l1": 12.29,
}


def described(name: str, input_shape: tuple[int, int, int] = SMALL, **options: object) -> Architecture:
    sketch = sketch_model(f"timm:{name}", num_classes=1000, input_shape=input_shape, **options)
    return describe(sketch, name=name, input_shape=input_shape)


@pytest.mark.parametrize("name", PUBLISHED_MILLIONS)
def test_every_family_has_its_published_size_and_stages_that_are_maps(name: str) -> None:
    sketch = sketch_model(f"timm:{name}", num_classes=1000, input_shape=SMALL)
    assert round(sum(parameter.numel() for parameter in sketch.parameters()) / 1e6, 2) == PUBLISHED_MILLIONS[name]
    architecture = describe(sketch, name=name, input_shape=SMALL)
    assert architecture.num_classes == 1000
    sizes = [architecture.shape(stage)[1:] for stage in architecture.stages]
    assert len(sizes) >= 3
    assert all(height == width for height, width in sizes)  # [K, H, W] of a square image, also where layers return tokens
    assert sizes == sorted(sizes, reverse=True)
    assert architecture.pooled is not None
    assert architecture.shape(architecture.pooled) != (1000,)


def test_the_embedding_is_what_the_classifier_receives() -> None:
    torch.manual_seed(0)
    net = build_model("timm:regnetx_002", num_classes=7, input_shape=(1, 32, 32)).eval()
    pooled = describe(net, name="regnet", input_shape=(1, 32, 32)).pooled
    assert pooled is not None
    with FeatureReader(net, [pooled]) as read:
        logits, features = read(torch.randn(2, 1, 32, 32))
    classifier = net.get_submodule("head.fc")
    assert isinstance(classifier, nn.Linear)
    torch.testing.assert_close(classifier(features[pooled]), logits)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "mambaout_femto"])  # tokens; channels last
def test_maps_of_other_layouts_are_those_that_timm_returns(name: str) -> None:
    torch.manual_seed(0)
    net = build_model(f"timm:{name}", num_classes=5, input_shape=SMALL, resize=64).eval()
    stages = describe(net, name=name, input_shape=SMALL).stages
    assert all(stage.startswith("stage_maps.") for stage in stages)
    images = torch.randn(1, *SMALL)
    numbers = [int(stage.rpartition("_")[2]) for stage in stages]
    with torch.no_grad(), FeatureReader(net, stages) as read:
        _, ours = read(images)
        theirs = net.forward_intermediates(images, indices=numbers, norm=False, intermediates_only=True)  # type: ignore[operator]
    for stage, expected in zip(stages, theirs, strict=True):
        torch.testing.assert_close(ours[stage], expected)


def test_gradients_flow_through_a_map_of_tokens() -> None:
    torch.manual_seed(0)
    net = build_model("timm:vit_tiny_patch16_224", num_classes=5, input_shape=(3, 32, 32), resize=32)
    stage = describe(net, name="vit", input_shape=(3, 32, 32)).stages[0]
    with FeatureReader(net, [stage]) as read:
        _, features = read(torch.randn(2, 3, 32, 32))
    features[stage].square().mean().backward()
    gradient = net.get_submodule("blocks.0.attn.qkv").weight.grad
    assert isinstance(gradient, torch.Tensor)
    assert gradient.abs().sum() > 0


def test_a_network_of_one_image_size_scales_small_images_to_it() -> None:
    # 14 x 14 patches and a class token in 12 blocks of width 192: queries, keys and values, projection, perceptron, attention.
    block = 197 * (192 * 576 + 192 * 192 + 2 * 192 * 768) + 2 * 197 * 197 * 192
    sketch = sketch_model("timm:vit_tiny_patch16_224", num_classes=1000, input_shape=(3, 28, 28))
    assert measure_size(sketch, (3, 28, 28)).macs == 196 * 16 * 16 * 3 * 192 + 12 * block + 192 * 1000
    assert describe(sketch, name="vit", input_shape=(3, 28, 28)).shape("blocks.0") == (197, 192)


def test_a_network_of_any_image_size_sees_images_as_they_are() -> None:
    assert described("resnet18", (3, 32, 32)).shape("layer1") == (64, 8, 8)
    assert described("resnet18", (3, 32, 32), resize=64).shape("layer1") == (64, 16, 16)


def test_options_reach_the_network() -> None:
    net = sketch_model("timm:resnet10t", num_classes=5, input_shape=SMALL, dropout=0.25, drop_path=0.5)
    assert net.drop_rate == 0.25
    assert max(getattr(module, "drop_prob", 0.0) or 0.0 for module in net.modules()) == 0.5
    rules = {option: model_problems("timm:resnet10t", {option: 2}, 5, SMALL)[0].rule for option in ("dropout", "drop_path")}
    assert rules == {"dropout": "must be a number >= 0 and < 1", "drop_path": "must be a number >= 0 and < 1"}


def test_nothing_works_in_place_and_the_seed_decides_the_weights() -> None:
    def net() -> nn.Module:
        torch.manual_seed(3)
        return build_model("timm:mobilenetv3_small_050", num_classes=5, input_shape=(3, 32, 32))

    one, other = net(), net()
    assert [name for name, module in one.named_modules() if getattr(module, "inplace", False)] == []
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_a_name_with_the_tag_of_its_weights_states_how_they_were_trained() -> None:
    stated = stated_configuration("timm:resnet18.a1_in1k")
    assert stated["mean"] == (0.485, 0.456, 0.406)
    assert stated["input_size"] == (3, 224, 224)
    assert not is_user_defined("timm:resnet18.a1_in1k")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet17", "timm has no model 'resnet17'; did you mean 'resnet1"),
        ("resnet18.a9_in1k", "timm has no weights 'resnet18.a9_in1k'; did you mean 'resnet18.a"),
        ("hf-hub:someone/net", "timm has no model 'hf-hub:someone/net'"),
        ("", "timm has no model ''"),
    ],
)
def test_an_unknown_name_is_one_sentence(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sketch_model(f"timm:{name}", num_classes=5, input_shape=SMALL)


def test_images_that_are_too_small_are_named() -> None:
    (problem,) = model_problems("timm:inception_v3", {}, 5, (3, 32, 32))
    assert problem.rule.startswith("timm:inception_v3 cannot be built for 3x32x32 images")


def test_a_missing_library_is_named_with_the_way_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match=r"timm: needs the library timm; run: pip install 'stillhouse\[timm\]'"):
        build_model("timm:resnet10t_uncached", num_classes=5, input_shape=SMALL)
