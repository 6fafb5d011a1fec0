"""Every shipped model on every shipped data set's images, options, errors, and a user's own models."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from stillhouse.errors import UsageError
from stillhouse.models.architecture import describe
from stillhouse.models.features import FeatureReader
from stillhouse.models.registry import build_model, model_names, model_options, model_problems, sketch_model

Shape = tuple[int, int, int]
IMAGES: list[Shape] = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 96, 96)]


@pytest.mark.parametrize("input_shape", IMAGES, ids=str)
@pytest.mark.parametrize("model", model_names())
def test_every_model_accepts_the_images_of_every_data_set(model: str, input_shape: Shape) -> None:
    sketch = sketch_model(model, num_classes=7, input_shape=input_shape)
    architecture = describe(sketch, name=model, input_shape=input_shape)
    assert architecture.num_classes == 7
    assert architecture.pooled is not None
    assert len(architecture.shape(architecture.pooled)) == 1
    sides = [architecture.shape(stage)[1] for stage in architecture.stages]
    isotropic = sides[:1] * len(sides)
    assert sides in (sorted(set(sides), reverse=True), isotropic), "one map per resolution, shallow to deep"
    if "mlp" not in model:
        assert architecture.stages
    layers = dict(sketch.named_modules())
    assert [layer for layer in sketch.preactivation_layers if layer not in layers] == []  # type: ignore[union-attr]


@pytest.mark.parametrize("model", ["resnet8", "resnet8x4", "vgg8", "nin", "lenet", "cnn", "shufflenet_v1", "ghost_resnet8"])
def test_preactivation_maps_are_the_stages_before_their_relu(model: str) -> None:
    torch.manual_seed(0)
    net = build_model(model, num_classes=3, input_shape=(3, 16, 16)).eval()
    preactivations: tuple[str, ...] = net.preactivation_layers  # type: ignore[assignment]
    stages: tuple[str, ...] = net.stage_layers  # type: ignore[assignment]
    with FeatureReader(net, [*preactivations, *stages]) as read:
        _, maps = read(torch.randn(2, 3, 16, 16))
    for before, after in zip(preactivations, stages, strict=True):
        assert bool((maps[before] < 0).any())
        torch.testing.assert_close(F.relu(maps[before]), maps[after], rtol=0, atol=0)


@pytest.mark.parametrize(
    "model",
    [
        "mlp",
        "lenet",
        "cnn",
        "nin",
        "resnet8",
        "wrn_16_1",
        "vgg8",
        "mobilenet_v2",
        "shufflenet_v1",
        "shufflenet_v2",
        "ghostnet",
        "ghost_resnet8",
        "ghost_vgg8",
    ],
)
def test_every_parameter_receives_a_gradient(model: str) -> None:
    torch.manual_seed(0)
    net = build_model(model, num_classes=3, input_shape=(1, 16, 16))
    torch.autograd.backward(F.cross_entropy(net(torch.randn(8, 1, 16, 16)), torch.arange(8) % 3))
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name


@pytest.mark.parametrize(
    "model",
    ["mlp", "resnet8", "wrn_16_1", "vgg8", "mobilenet_v2", "shufflenet_v1", "shufflenet_v2", "ghost_resnet8", "ghost_vgg8"],
)
def test_the_pooled_layer_is_the_input_of_the_classifier(model: str) -> None:
    torch.manual_seed(0)
    net = build_model(model, num_classes=3, input_shape=(3, 16, 16)).eval()
    classifier = [module for module in net.modules() if isinstance(module, torch.nn.Linear)][-1]
    with FeatureReader(net, [str(net.pooled_layer)]) as read:
        logits, features = read(torch.randn(2, 3, 16, 16))
    torch.testing.assert_close(classifier(features[str(net.pooled_layer)]), logits)


@pytest.mark.parametrize("model", ["mlp", "lenet", "resnet8", "wrn_16_1", "vgg8", "shufflenet_v2", "ghostnet", "ghost_vgg8"])
def test_models_compile_into_one_graph(model: str) -> None:
    net = build_model(model, num_classes=3, input_shape=(3, 16, 16)).eval()
    images = torch.randn(2, 3, 16, 16)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), net(images))


@pytest.mark.parametrize("model", ["mlp", "lenet", "nin", "resnet8", "mobilenet_v2"])
def test_the_same_seed_gives_the_same_weights(model: str) -> None:
    states = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        states.append(torch.cat([p.flatten() for p in build_model(model, num_classes=3, input_shape=(1, 8, 8)).parameters()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_nin_keeps_the_scale_of_its_activations_at_the_start() -> None:
    torch.manual_seed(0)
    net = build_model("nin", num_classes=10, input_shape=(3, 32, 32), dropout=0.0)
    with FeatureReader(net, ["stage1", "stage3"]) as read:
        _, maps = read(torch.randn(4, 3, 32, 32))
    assert 0.05 < maps["stage3"].std() / maps["stage1"].std() < 5


def test_sketching_does_not_change_the_random_generator() -> None:
    before = torch.get_rng_state()
    sketch_model("resnet8", num_classes=3, input_shape=(3, 8, 8))
    assert torch.equal(before, torch.get_rng_state())


def test_options_come_with_their_defaults() -> None:
    assert model_options("mlp") == {"hidden": (256, 128), "width": 1.0, "dropout": 0.0}
    assert model_options("resnet20") == {"width": 1.0, "shortcut": "projection"}
    assert model_options("nin") == {"width": 1.0, "dropout": 0.5}
    assert model_options("torchvision:resnet18") == {"resize": None}


def test_hidden_sizes_are_the_layers_and_width_scales_them() -> None:
    sketch = sketch_model("mlp", num_classes=10, input_shape=(1, 8, 8), hidden=[30, 20, 10], width=0.5)
    linear = [(m.in_features, m.out_features) for m in sketch.modules() if isinstance(m, torch.nn.Linear)]
    assert linear == [(64, 15), (15, 10), (10, 5), (5, 10)]


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    net = build_model("mlp", num_classes=3, input_shape=(1, 8, 8), dropout=0.5)
    images = torch.randn(4, 1, 8, 8)
    assert not torch.equal(net(images), net(images))
    net.eval()
    assert torch.equal(net(images), net(images))


@pytest.mark.parametrize(
    ("model", "options", "sentence"),
    [
        ("resnet_20", {}, "no model 'resnet_20'; did you mean 'resnet20'?"),
        ("torchvision:resnet19", {}, "torchvision has no model 'resnet19'; did you mean 'resnet18'?"),
        ("resnet20", {"widht": 2}, "widht is not an option of resnet20; did you mean 'width'?"),
        ("resnet20", {"width": 0}, "width must be a number > 0, got 0"),
        ("resnet20", {"width": True}, "width must be a number > 0, got True"),
        ("resnet20", {"width": float("nan")}, "width must be a number > 0, got nan"),
        ("lenet", {"dropout": 1}, "dropout must be a number >= 0 and < 1, got 1"),
        ("mlp", {"hidden": []}, "hidden must be a list of layer sizes >= 1"),
        ("mlp", {"hidden": [10, 2.5]}, "hidden must be a list of layer sizes >= 1"),
        ("torchvision:resnet18", {"resize": 0}, "resize must be an image side >= 1 or null, got 0"),
        ("no_such_module:build", {}, "model 'no_such_module:build' cannot be imported"),
        ("os:system", {}, "model 'os:system' names module 'os' of Python's standard library"),
    ],
)
def test_wrong_models_are_one_problem(model: str, options: dict[str, Any], sentence: str) -> None:
    problems = model_problems(model, options, 10, (3, 32, 32))
    assert len(problems) == 1
    assert str(problems[0]).startswith(sentence)
    assert "\n" not in str(problems[0])
    with pytest.raises(UsageError) as error:
        build_model(model, num_classes=10, input_shape=(3, 32, 32), **options)
    assert str(error.value) == str(problems[0])


def test_all_problems_of_the_options_are_reported_at_once() -> None:
    problems = model_problems("mlp", {"width": -1, "dropout": "much", "depth": 3}, 10, (1, 8, 8))
    assert {(problem.key, problem.value) for problem in problems} == {("width", "-1"), ("dropout", "'much'"), ("depth", None)}


def test_valid_models_have_no_problems() -> None:
    assert model_problems("resnet20", {"width": 0.5}, 10, (1, 8, 8)) == []


def test_images_that_a_model_cannot_process_are_a_problem() -> None:
    (problem,) = model_problems("lenet", {}, 10, (1, 2, 2))
    assert str(problem).startswith("lenet cannot be built for 1x2x2 images")
    (problem,) = model_problems("alexnet", {}, 10, (1, 8, 8))
    assert str(problem).startswith("alexnet does not accept 1x8x8 images")


USER_MODULE = """
import torch
from torch import nn

def net(num_classes, input_shape, depth=2, *, bias):
    channels, height, width = input_shape
    layers = [nn.Flatten(), nn.Linear(channels * height * width, 5, bias=bias)]
    return nn.Sequential(*layers, *(nn.Linear(5, 5) for _ in range(depth)), nn.ReLU(), nn.Linear(5, num_classes))

def on_cpu_only(num_classes, input_shape):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
    model.scale = float(torch.randn(3).sum())
    return model

def open_ended(num_classes, input_shape, **anything):
    return net(num_classes, input_shape, bias=False, depth=anything["depth"])

def wrong_classes(num_classes, input_shape):
    return net(num_classes + 1, input_shape, bias=False)

def a_string(num_classes, input_shape):
    return "not a model"

def raises(num_classes, input_shape):
    raise KeyError("two\\nlines")

def not_logits(num_classes, input_shape):
    return nn.Conv2d(1, num_classes, 3)
"""


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "user_models_for_test.py").write_text(USER_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("user_models_for_test", None)
    return "user_models_for_test"


def test_a_user_defined_function_is_called_with_its_options(user_module: str) -> None:
    net = build_model(f"{user_module}:net", num_classes=4, input_shape=(1, 8, 8), depth=3, bias=False)
    assert net(torch.zeros(2, 1, 8, 8)).shape == (2, 4)
    assert len([module for module in net.modules() if isinstance(module, torch.nn.Linear)]) == 5
    assert model_problems(f"{user_module}:open_ended", {"depth": 1}, 4, (1, 8, 8)) == []


def test_useful_layers_of_a_user_defined_model_are_found_by_their_shapes(user_module: str) -> None:
    sketch = sketch_model(f"{user_module}:net", num_classes=4, input_shape=(1, 8, 8), bias=True)
    architecture = describe(sketch, name="net", input_shape=(1, 8, 8))
    assert architecture.shape(str(architecture.pooled)) == (5,)
    assert architecture.stages == ()


def test_a_user_defined_model_that_cannot_run_on_the_meta_device_is_sketched_on_the_cpu(user_module: str) -> None:
    before = torch.get_rng_state()
    sketch = sketch_model(f"{user_module}:on_cpu_only", num_classes=4, input_shape=(1, 8, 8))
    assert next(sketch.parameters()).device.type == "cpu"
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("function", "options", "sentence"),
    [
        ("net", {}, "bias is an option that"),
        ("net", {"bias": True, "dept": 1}, "dept is not an option of"),
        ("nett", {}, "has no function 'nett'; did you mean 'net'?"),
        ("wrong_classes", {}, "must return 4 numbers for each image, one for each class or target, got 5"),
        ("a_string", {}, "must return a torch.nn.Module, got str"),
        ("raises", {}, "cannot be built for 1x8x8 images: KeyError"),
        ("not_logits", {}, "must return logits [batch, classes], got [2, 4, 6, 6]"),
    ],
)
def test_mistakes_in_user_defined_models_are_one_problem(
    user_module: str, function: str, options: dict[str, Any], sentence: str
) -> None:
    (problem,) = model_problems(f"{user_module}:{function}", options, 4, (1, 8, 8))
    assert sentence in str(problem)
    assert "\n" not in str(problem)
