"""Weights by their names in a spec: folders of timm, the caches of timm and torchvision, and starts with a new head."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from stillhouse.errors import UnknownNameError, UsageError
from stillhouse.models.given_weights import (
    content_of,
    foreseen,
    is_here,
    load_start,
    open_given,
    read_start,
    stated_by_weights,
    timm_file,
    torchvision_file,
)
from stillhouse.models.registry import build_model
from stillhouse.models.weights import state_hash

timm = pytest.importorskip("timm")

SHAPE = (3, 32, 32)
RESNET18 = "torchvision:ResNet18_Weights.IMAGENET1K_V1"


def make(model: str, num_classes: int = 10, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_model(model, num_classes=num_classes, input_shape=SHAPE)


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches of torch and Hugging Face."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def test_a_folder_as_timm_writes_it_is_read(tmp_path: Path) -> None:
    net = make("timm:resnet10t")
    timm.models.save_for_hf(net, tmp_path / "net", safe_serialization=True)
    assert state_hash(open_given(str(tmp_path / "net")).weights) == state_hash(net.state_dict())
    assert content_of(str(tmp_path / "net")) == content_of(str(tmp_path / "net" / "model.safetensors"))


def test_timms_weights_come_from_the_cache_and_are_never_downloaded(caches: Path) -> None:
    with pytest.raises(UsageError, match=r"'resnet10t.c3_in1k' are not in the local cache, and nothing is downloaded; fetch"):
        timm_file("timm:resnet10t.c3_in1k")
    repository = caches / "hub" / "models--timm--resnet10t.c3_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (folder := repository / "snapshots" / "abc").mkdir(parents=True)
    net = make("timm:resnet10t")
    safetensors.torch.save_file(net.state_dict(), folder / "model.safetensors")
    assert state_hash(open_given("timm:resnet10t.c3_in1k").weights) == state_hash(net.state_dict())
    assert open_given("timm:resnet10t").taken == ""  # the default weights of this architecture
    assert content_of("timm:resnet10t.c3_in1k") == content_of(str(folder / "model.safetensors"))


def test_timms_weights_come_from_the_cache_of_torch_too(caches: Path) -> None:
    file = caches / "torch" / "hub" / "checkpoints" / "resnet18_a1_0-d63eafa0.pth"
    file.parent.mkdir(parents=True)
    torch.save(make("timm:resnet18").state_dict(), file)
    assert timm_file("timm:resnet18.a1_in1k") == file


def test_torchvisions_weights_come_from_the_cache(caches: Path) -> None:
    assert not is_here(RESNET18)
    file = torchvision_file(RESNET18)
    assert file == caches / "torch" / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    file.parent.mkdir(parents=True)
    torch.save((net := make("torchvision:resnet18", 1000)).state_dict(), file)
    assert is_here(RESNET18)
    assert state_hash(open_given(RESNET18).weights) == state_hash(net.state_dict())
    assert content_of(RESNET18) == {"weights": RESNET18}


def test_names_and_shapes_of_torchvisions_weights_are_known_without_a_download(caches: Path) -> None:
    found = foreseen("torchvision:MobileNet_V3_Small_Weights.IMAGENET1K_V1")
    whole = make("torchvision:mobilenet_v3_small", 1000).state_dict()
    assert {name: value.shape for name, value in found.items()} == {name: value.shape for name, value in whole.items()}
    with pytest.raises(UsageError, match="are weights of no classification model"):
        foreseen("torchvision:FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1")
    assert not (caches / "torch").exists()


def test_classifiers_that_only_training_uses_are_left_out(caches: Path) -> None:
    reference = "torchvision:GoogLeNet_Weights.IMAGENET1K_V1"
    file = torchvision_file(reference)
    file.parent.mkdir(parents=True)
    net = make("torchvision:googlenet", 1000)
    torch.save({**net.state_dict(), "aux1.fc1.weight": torch.zeros(2), "aux2.fc1.weight": torch.zeros(2)}, file)
    assert open_given(reference).weights.keys() == net.state_dict().keys()


def test_published_weights_state_pixels_and_size() -> None:
    stated = stated_by_weights("torchvision:EfficientNet_B1_Weights.IMAGENET1K_V2")
    assert (stated["mean"][0], stated["input_size"]) == (0.485, (3, 240, 240))
    assert stated_by_weights("timm:vit_tiny_patch16_224")["mean"] == (0.5, 0.5, 0.5)
    assert stated_by_weights("net.pth") == {}


@pytest.mark.parametrize("name", ["No_Weights.X", "ResNet18_Weights.IMAGENET1K_V9", "x"])
def test_unknown_weights_of_torchvision_are_one_sentence(name: str) -> None:
    with pytest.raises(UnknownNameError, match=f"torchvision has no weights '{name}'; write them as ResNet18_Weights"):
        open_given(f"torchvision:{name}")


@pytest.mark.parametrize("model", ["resnet8", "torchvision:mobilenet_v3_small", "timm:resnet10t"])
def test_a_start_with_a_new_head_takes_everything_else(model: str, tmp_path: Path) -> None:
    source, net, before = make(model, 7), make(model, 10, seed=1), make(model, 10, seed=1)
    torch.save(source.state_dict(), tmp_path / "seven.pth")
    start: dict[str, Any] = {"weights": str(tmp_path / "seven.pth"), "head": "new"}
    load_start(net, start, named=(model, {}, 10, SHAPE))
    for name, value in net.state_dict().items():
        head = value.shape != source.state_dict()[name].shape
        assert torch.equal(value, (before if head else source).state_dict()[name]), name
    kept = {**start, "head": None}
    with pytest.raises(UsageError, match="do classes, input channels and width agree"):
        load_start(net, kept, named=(model, {}, 10, SHAPE))


def test_a_start_may_lack_the_head(tmp_path: Path) -> None:
    body = {name: value for name, value in make("resnet8").state_dict().items() if not name.startswith("fc.")}
    torch.save({"state_dict": {f"backbone.{name}": value for name, value in body.items()}}, tmp_path / "body.pth")
    net = make("resnet8", seed=1)
    load_start(net, {"weights": str(tmp_path / "body.pth"), "head": "new"}, named=("resnet8", {}, 10, SHAPE))
    assert torch.equal(net.get_parameter("conv1.weight"), body["conv1.weight"])


def test_names_are_mapped_before_they_are_compared(tmp_path: Path) -> None:
    state = {name.replace("fc.", "linear."): value for name, value in make("resnet8").state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    found = read_start({"weights": str(tmp_path / "w.pth"), "rename": {"^linear": "fc"}})
    assert state_hash(found) == state_hash(make("resnet8").state_dict())
