"""A public checkpoint under other names loads, or the message says which names differ and how to map them."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.models.given_weights import load_start
from stillhouse.models.registry import build_model
from stillhouse.sweep.planning.spec_check import survey

FACTS = (10, (1, 8, 8))
BASE: dict[str, Any] = {"name": "s", "dataset": {"name": "digits"}, "students": ["mlp"], "methods": {"kd": {}}}


class PublicBlock(nn.Module):
    """A basic block with a shortcut of option A, as public CIFAR ResNets write it."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.pad = outputs // 4 if stride != 1 or inputs != outputs else None

    def forward(self, maps: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(maps)))))
        if self.pad is not None:
            maps = F.pad(maps[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad), "constant", 0)
        return F.relu(branch + maps)


class PublicResNet8(nn.Module):
    """One block in each of three stages; its classifier is called `linear`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(PublicBlock(16, 16, 1))
        self.layer2 = nn.Sequential(PublicBlock(16, 32, 2))
        self.layer3 = nn.Sequential(PublicBlock(32, 64, 2))
        self.linear = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(images))))))
        logits: Tensor = self.linear(maps.mean(dim=(2, 3)))
        return logits


@pytest.fixture
def public(tmp_path: Path) -> tuple[PublicResNet8, str]:
    """A trained-looking network and its checkpoint, parallel and wrapped as training scripts write it."""
    torch.manual_seed(0)
    net = PublicResNet8()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.5, 1.5)
    state = {f"module.{name}": value for name, value in net.state_dict().items()}
    torch.save({"state_dict": state, "best_prec1": 91.7}, tmp_path / "resnet8.th")
    return net.eval(), str(tmp_path / "resnet8.th")


def problems(**teacher: Any) -> dict[str, str]:
    found = survey({**BASE, "teachers": {"big": {"model": "resnet8", **teacher}}})
    return {problem.key: problem.message for problem in found.problems}


def test_a_network_with_padded_shortcuts_gives_the_public_ones_logits(public: tuple[PublicResNet8, str]) -> None:
    net, path = public
    options = {"shortcut": "padding"}
    ours = build_model("resnet8", num_classes=10, input_shape=FACTS[1], **options)
    load_start(ours, {"weights": path, "rename": {"^linear": "fc"}}, named=("resnet8", options, *FACTS))
    images = torch.randn(4, *FACTS[1])
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images), net(images))
    assert problems(weights=path, rename={"^linear": "fc"}, shortcut="padding") == {}


def test_the_message_says_how_to_map_names(public: tuple[PublicResNet8, str]) -> None:
    message = problems(weights=public[1], shortcut="padding")["teachers.big.weights"]
    assert "lacks 'fc.weight', 'fc.bias' of the model and has 'linear.bias', 'linear.weight', which the model lacks" in message
    assert r"more of them agree with rename: {'^linear\.': 'fc.'}" in message


def test_the_message_names_the_option_with_which_the_weights_fit(public: tuple[PublicResNet8, str]) -> None:
    message = problems(weights=public[1], rename={"^linear": "fc"})["teachers.big.weights"]
    assert "lacks 'layer2.0.downsample.0.weight'" in message
    assert message.endswith("; they fit with shortcut: padding")


@pytest.mark.parametrize(
    ("rename", "key", "part"),
    [
        ({"(": "fc"}, "rename", "must be a regular expression, got '('"),
        ({"^linear": r"\2"}, "rename", r"must be a replacement as Python's re.sub takes it, got '\2'"),
        ({"^lineer": "fc"}, "rename", "'^lineer' matches no weight in"),
        ({"linear.weight|linear.bias": "fc"}, "rename", "gives the weights 'linear.weight' and 'linear.bias' of"),
        ({"^linear": None}, "weights", "lacks 'fc.weight', 'fc.bias' of the model; is it another architecture?"),
        ({"^linear": "fc", "^bn1": "old"}, "weights", "lacks 'bn1.weight'"),
        ("linear", "rename", "must be a mapping such as"),
        ({"a": 1}, "rename", "must be a mapping such as"),
    ],
    ids=str,
)
def test_a_wrong_mapping_is_one_sentence(rename: Any, key: str, part: str, public: tuple[PublicResNet8, str]) -> None:
    found = problems(weights=public[1], rename=rename, shortcut="padding")
    assert list(found) == [f"teachers.big.{key}"]
    message = found[f"teachers.big.{key}"]
    assert part in message
    assert "\n" not in message


def test_leftovers_can_be_left_out(public: tuple[PublicResNet8, str], tmp_path: Path) -> None:
    state = {**torch.load(public[1])["state_dict"], "module.criterion.weight": torch.ones(3)}
    torch.save(state, tmp_path / "more.th")
    told = {"weights": str(tmp_path / "more.th"), "shortcut": "padding"}
    message = problems(**told, rename={"^linear": "fc"})["teachers.big.weights"]
    assert "has 'criterion.weight', which the model lacks; is it another architecture?" in message
    assert r"rename: {'^criterion\b': null} beside weights leaves them out" in message
    assert problems(**told, rename={"^linear": "fc", "^criterion": None}) == {}


@pytest.mark.parametrize("key", ["rename", "head"])
def test_how_weights_are_read_needs_weights(key: str) -> None:
    value: Any = {"a": "b"} if key == "rename" else "new"
    assert problems(**{key: value})[f"teachers.big.{key}"].startswith("needs teachers.big.weights")
    found = survey({**BASE, "teachers": {"big": "lenet"}, "students": [{"model": "mlp", key: value}]}).problems
    assert [problem.key for problem in found] == [f"students[0].{key}"]


def test_a_head_is_new_or_kept(public: tuple[PublicResNet8, str]) -> None:
    assert list(problems(weights=public[1], head="fresh")) == ["teachers.big.head"]


@pytest.mark.parametrize(
    ("model", "part"),
    [
        ("torchvision:resnet18", "'conv1.weight' is [64, 3, 7, 7] in torchvision:ResNet18_Weights.DEFAULT and [64, 1, 7, 7]"),
        ("torchvision:resnet34", "torchvision:ResNet18_Weights.DEFAULT lacks 'layer1.2.conv1.weight'"),
    ],
)
def test_published_weights_that_do_not_fit_are_refused_before_they_are_downloaded(
    model: str, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    teacher = {"model": model, "weights": "torchvision:ResNet18_Weights.DEFAULT", "head": "new"}
    found = {each.key: each.message for each in survey({**BASE, "teachers": {"big": teacher}}).problems}
    assert part in found["teachers.big.weights"]
