"""A given teacher sees the pixels of its students under its own normalisation, in every delivery mode."""

import dataclasses
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from stillhouse.data.datasets import ImageData, load_dataset
from stillhouse.data.normalisation import Normalisation, beside, chosen, named, stated_in
from stillhouse.data.views import Views
from stillhouse.distill.sources import CachedKnowledge
from stillhouse.errors import UsageError
from stillhouse.knowledge import logits
from stillhouse.knowledge.store import KnowledgeStore
from stillhouse.models.given_weights import stated_by_weights
from stillhouse.models.registry import build_model
from stillhouse.models.weights import save_weights
from stillhouse.spec.schema import TeacherSpec
from stillhouse.teachers.definition import TeacherDefinition, base_identity, view_identity
from stillhouse.teachers.library import TeacherLibrary
from stillhouse.teachers.own_normalisation import OwnNormalisation, own_normalisation, stated_side, with_own_size
from stillhouse.teachers.service import TeacherService

RANGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    # What a user's own loader did, written out.
    "0..1": lambda pixels: pixels.float() / 255,
    "-1..1": lambda pixels: pixels.float() / 127.5 - 1,
    "0..255": lambda pixels: pixels.float(),
}


def spec_of(weights: Path | str, setting: Any = None, model: str = "lenet") -> TeacherSpec:
    return TeacherSpec.model_validate({"model": model, "weights": str(weights), "normalization": setting})


def colours(seed: int = 0) -> ImageData:
    """Two classes of 3x8x8 images with three channels of different statistics."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, (100, 180, 250), (60, 8, 8, 3)).transpose(0, 3, 1, 2).astype(np.uint8)
    base = load_dataset("digits", validation=10, options={"limit": 60})
    from stillhouse.data.images import channel_statistics, split_of

    labels = np.arange(60) % 2
    mean, std = channel_statistics(images[:40])
    return dataclasses.replace(
        base,
        input_shape=(3, 8, 8),
        fingerprint="colours",
        mean=mean,
        std=std,
        train=split_of((images[:40], labels[:40])),
        validation=split_of((images[40:], labels[40:])),
    )


@pytest.mark.parametrize("name", RANGES)
def test_the_network_gets_the_pixels_that_its_name_says(name: str) -> None:
    data = colours()
    seen: list[torch.Tensor] = []
    model = nn.Sequential(nn.Identity())
    model[0].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    OwnNormalisation(named(name, data), Normalisation.of(data)).attach(model)
    model(data.normalise(data.train.images))
    torch.testing.assert_close(seen[0], RANGES[name](data.train.images), rtol=1e-5, atol=1e-4 if name == "0..255" else 1e-5)


def test_imagenet_is_what_torchvisions_transform_gives() -> None:
    from torchvision.transforms import v2

    data = colours()
    reference = v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])(data.train.images.float() / 255)
    seen: list[torch.Tensor] = []
    model = nn.Sequential(nn.Identity())
    model[0].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    found = own_normalisation(spec_of("torchvision:ResNet18_Weights.IMAGENET1K_V1"), data)
    assert found is not None
    found.attach(model)
    model(data.normalise(data.train.images))
    torch.testing.assert_close(seen[0], reference, rtol=1e-4, atol=1e-5)


def test_gradients_reach_the_students_pixels_by_the_chain_rule() -> None:
    data = colours()
    linear = nn.Linear(192, 1, bias=False)
    model = nn.Sequential(nn.Flatten(), linear)
    own = named("0..255", data)
    OwnNormalisation(own, Normalisation.of(data)).attach(model)
    pixels = data.normalise(data.train.images[:2]).requires_grad_()
    model(pixels).sum().backward()
    scale = torch.tensor([std / own_std for std, own_std in zip(data.std, own.std, strict=True)]).view(1, 3, 1, 1)
    weight = linear.weight.view(1, 3, 8, 8).expand(2, -1, -1, -1)
    assert pixels.grad is not None
    torch.testing.assert_close(pixels.grad, weight * scale)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    folder = tmp_path / "given"
    folder.mkdir()
    torch.manual_seed(0)
    save_weights(build_model("lenet", num_classes=10, input_shape=(3, 8, 8)), folder / "student.safetensors")
    return folder / "student.safetensors"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("preprocessing.json", {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}),
        ("config.json", {"architecture": "x", "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}}),
    ],
)
def test_our_exports_and_timms_configuration_state_it(weights: Path, file: str, content: dict[str, Any]) -> None:
    data = colours()
    assert own_normalisation(spec_of(weights), data) is None
    (weights.parent / file).write_text(json.dumps(content))
    assert beside(weights, data) == (Normalisation((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)), file)
    found = own_normalisation(spec_of(weights), data)
    assert found is not None
    assert found.own.mean == (0.1, 0.2, 0.3)
    assert own_normalisation(spec_of(weights, "dataset"), data) is None, "the spec comes first"


def test_files_that_state_nothing_are_passed_over(weights: Path) -> None:
    for text in ("{", "[]", '{"mean": [1, 2], "std": [1, 2]}', '{"pretrained_cfg": 3}', '{"mean": "a", "std": null}'):
        (weights.parent / "config.json").write_text(text)
        assert beside(weights, colours()) is None
    assert stated_in(stated_by_weights("torchvision:no such weights"), colours()) is None


def test_channels_must_agree() -> None:
    grey = load_dataset("digits", validation=10, options={"limit": 60})
    with pytest.raises(UsageError, match="imagenet has 3 channels and the images have 1"):
        chosen("imagenet", grey)
    with pytest.raises(UsageError, match="needs 1 or 3 values"):
        chosen({"mean": [0.5, 0.5], "std": [0.5, 0.5]}, colours())
    assert chosen({"mean": [0.5], "std": [0.25]}, colours()) == Normalisation((0.5,) * 3, (0.25,) * 3)


def definition_of(weights: Path, data: ImageData, setting: Any = None) -> TeacherDefinition:
    return TeacherDefinition(
        name="big",
        model="lenet",
        weights=str(weights),
        num_classes=10,
        input_shape=(3, 8, 8),
        normalisation=own_normalisation(spec_of(weights, setting), data),
        normalisation_is_stated=setting is not None,
    )


def test_sealed_views_hold_the_outputs_for_the_teachers_own_pixels(weights: Path, tmp_path: Path) -> None:
    data = colours()
    views = Views((), 1, data.input_shape, 40)
    (tmp_path / "knowledge").mkdir()
    teacher = TeacherLibrary(tmp_path / "teachers").obtain(definition_of(weights, data, "0..1"), data, views)
    service = TeacherService(teacher, data, views, KnowledgeStore(tmp_path / "knowledge"))
    service.fill(0, [logits()])
    view = KnowledgeStore(tmp_path / "knowledge").open(view_identity(service.base, logits(), 0))
    source = CachedKnowledge(lambda *_: {"logits": view})
    source.begin_epoch(0)
    stored = source.gather(torch.arange(40), data.normalise(data.train.images))["logits"]
    plain = build_model("lenet", num_classes=10, input_shape=(3, 8, 8))
    from stillhouse.models.weights import load_weights

    load_weights(plain, weights)
    plain.eval()
    with torch.no_grad():
        expected = plain(data.train.images.float() / 255)
    torch.testing.assert_close(stored, expected, rtol=1e-4, atol=1e-5)


def test_identities_change_only_where_the_normalisation_is_the_teachers_own(weights: Path) -> None:
    data = colours()
    views = Views((), 1, data.input_shape, 40)

    def base(setting: Any) -> dict[str, Any]:
        return base_identity(
            weights_hash="w", definition=definition_of(weights, data, setting), data=data, views=views, dtype="float32"
        )

    same = {"mean": list(data.mean), "std": list(data.std)}
    assert base(None) == base("dataset") == base(same)
    assert base(None)["normalisation"] == same, "as the first release wrote it"
    assert base("0..1") != base(None)
    keys = {str(setting): definition_of(weights, data, setting).key(data, views) for setting in (None, "dataset", "0..1")}
    assert keys["None"] == keys["dataset"] != keys["0..1"]


HALVES = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


@pytest.fixture
def of_timm(monkeypatch: pytest.MonkeyPatch) -> str:
    """A function whose network has the attribute of timm's networks."""
    module = types.ModuleType("timm_like")

    def net(num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
        network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, num_classes))
        network.pretrained_cfg = {"architecture": "net", "input_size": (3, 224, 224), **HALVES}  # type: ignore[assignment]
        return network

    module.net = net  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm_like", module)
    return "timm_like:net"


def test_the_configuration_of_a_timm_network_states_its_normalisation(of_timm: str, tmp_path: Path) -> None:
    found = own_normalisation(spec_of(tmp_path / "given.pt", model=of_timm), colours())
    assert found is not None
    assert (found.own, found.source) == (Normalisation(HALVES["mean"], HALVES["std"]), "pretrained_cfg of timm_like:net")


def test_the_spec_and_a_file_beside_the_weights_come_before_the_networks_attribute(of_timm: str, tmp_path: Path) -> None:
    weights = tmp_path / "given.pt"
    chosen_one = own_normalisation(spec_of(weights, "0..255", of_timm), colours())
    assert chosen_one is not None
    assert chosen_one.source == "the spec"
    (tmp_path / "config.json").write_text(json.dumps({"mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0]}))
    beside_it = own_normalisation(spec_of(weights, model=of_timm), colours())
    assert beside_it is not None
    assert (beside_it.own.mean, beside_it.source) == ((0.1, 0.2, 0.3), "config.json")


@pytest.mark.parametrize(
    ("model", "weights", "mean"),
    [
        ("timm:vit_tiny_patch16_224", "timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k", 0.5),
        ("torchvision:resnet18", "torchvision:ResNet18_Weights.IMAGENET1K_V1", 0.485),
        ("timm:resnet18.a1_in1k", "some/file.pth", 0.485),
        ("timm:resnet18", "some/file.pth", None),
    ],
)
def test_published_weights_and_the_tag_of_a_model_state_it(model: str, weights: str, mean: float | None) -> None:
    pytest.importorskip("timm")
    found = own_normalisation(spec_of(weights, model=model), colours())
    assert (None if found is None else found.own.mean[0]) == mean


@pytest.mark.parametrize(
    ("model", "weights", "options", "resize"),
    [
        ("timm:resnet18", "timm:resnet18.a1_in1k", {}, 224),
        ("timm:resnet18.a1_in1k", "net.pth", {}, 224),
        ("timm:resnet18", "folder/model.safetensors", {}, 96),
        ("timm:resnet18", "timm:resnet18.a1_in1k", {"resize": 64}, 64),
        ("timm:resnet18", "timm:resnet18.a1_in1k", {"resize": None}, None),
        ("timm:resnet18", "net.pth", {}, None),
        ("torchvision:resnet18", "torchvision:ResNet18_Weights.IMAGENET1K_V1", {}, None),
    ],
)
def test_images_are_scaled_to_the_size_that_weights_of_timm_state(
    model: str, weights: str, options: dict[str, Any], resize: int | None, tmp_path: Path
) -> None:
    pytest.importorskip("timm")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text(json.dumps({"pretrained_cfg": {"input_size": [3, 96, 96]}}))
    named = weights if ":" in weights else str(tmp_path / weights)
    teacher = TeacherSpec.model_validate({"model": model, "weights": named, "options": options})
    assert with_own_size(teacher, (3, 32, 32)).options.get("resize") == resize
    assert with_own_size(teacher, (3, 224, 224)).options.get("resize") == (resize if resize != 224 else None)


def test_the_side_that_weights_state_is_known_for_every_model() -> None:
    teacher = spec_of("torchvision:EfficientNet_B1_Weights.IMAGENET1K_V2", model="torchvision:efficientnet_b1")
    assert stated_side(teacher) == 240
