"""Pruning: which channels and weights go, that outputs follow, and what cannot be pruned."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stillhouse.compress.operator import Calibration, Context, Level, Moment, OperatorError
from stillhouse.compress.parts import channels
from stillhouse.compress.prune import Prune
from stillhouse.models.layers import Shape
from stillhouse.models.registry import build_model, sketch_model
from stillhouse.models.size import ModelSize, measure_size
from stillhouse.testing import OperatorTrial, check_operator
from stillhouse.testing.operators import check_conversions_are_equal, check_shapes_without_values_are_the_real_ones

SHAPE = (3, 16, 16)
CONTEXT = Context(num_classes=5, input_shape=SHAPE)
NOW = Moment(progress=0.0, epoch=0, step=0)


def network(name: str = "resnet8", seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    return build_model(name, num_classes=5, input_shape=SHAPE, **options).eval()


def images(count: int = 4) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1))


def calibrated(**changes: Any) -> Context:
    batches = [(images(8), torch.arange(8) % 5)]
    calibration = Calibration(batches=lambda _count: iter(batches), loss=nn.functional.cross_entropy)
    return dataclasses.replace(CONTEXT, calibration=calibration, trained=True, **changes)


@pytest.mark.parametrize(
    "options", [{"ratio": 0.5}, {"ratio": 0.7, "pattern": "unstructured"}, {"ratio": 0.5, "pattern": "2:4"}], ids=str
)
def test_it_passes_every_check_of_operators(options: Mapping[str, Any]) -> None:
    check_operator(Prune(**options))


@pytest.mark.parametrize("options", Prune.examples, ids=str)
def test_every_kind_is_repeatable_and_has_the_planned_shapes(options: Mapping[str, Any]) -> None:
    trial = OperatorTrial(Prune(**options), "lenet")
    if options.get("importance") == "bn_scale":
        trial = OperatorTrial(Prune(**options), "resnet8")
    check_conversions_are_equal(trial)
    check_shapes_without_values_are_the_real_ones(trial)


class TwoLayers(nn.Module):
    """Four channels of different norms, then a classifier; easy to prune by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1, bias=False)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(4, 5)
        with torch.no_grad():
            for channel, size in enumerate((3.0, 0.1, 2.0, 0.2)):
                self.conv.weight[channel] = size
            self.fc.weight.fill_(1.0)

    def forward(self, maps: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.relu(self.conv(maps)).mean((2, 3)))
        return logits


@pytest.mark.parametrize("importance", ["l1", "l2"])
def test_the_channels_of_small_weights_go_and_the_others_compute_what_they_did(importance: str) -> None:
    before = TwoLayers()
    by_hand = nn.functional.linear(before.relu(before.conv(images()))[:, [0, 2]].mean((2, 3)), before.fc.weight[:, [0, 2]])
    converted = Prune(ratio=0.5, importance=importance).convert(TwoLayers(), CONTEXT)  # type: ignore[arg-type]
    assert json.loads(json.dumps(converted.history)) == {"removed": [["conv", True, [1, 3]]]}
    torch.testing.assert_close(converted.model(images()), by_hand + converted.model.get_parameter("fc.bias"))


def test_taylor_removes_a_large_channel_that_nothing_reads() -> None:
    model = TwoLayers()
    with torch.no_grad():
        model.fc.weight[:, 0] = 0.0  # the largest channel has no influence on the loss
        model.conv.weight.abs_().add_(0.5)
    removed = Prune(ratio=0.25, importance="taylor").convert(model, calibrated()).history["removed"]
    assert removed == [["conv", True, [0]]]


def test_random_depends_on_the_seed_of_the_trial() -> None:
    operator = Prune(ratio=0.5, importance="random")
    removed = [
        OperatorTrial(operator).chain.convert(network(), dataclasses.replace(CONTEXT, seed=seed)).history for seed in (1, 1, 2)
    ]
    assert removed[0] == removed[1]
    assert removed[0] != removed[2]


def test_a_replayed_pruning_gives_bit_equal_outputs() -> None:
    converted = Prune(ratio=0.4).convert(network("mobilenet_v2"), CONTEXT)
    history = json.loads(json.dumps(converted.history))
    again = Prune(ratio=0.4).replay(network("mobilenet_v2", seed=9), history, CONTEXT).eval()
    again.load_state_dict(converted.model.state_dict())
    assert torch.equal(again(images()), converted.model.eval()(images()))


def test_the_network_is_measured_a_few_times_only_until_the_share_of_macs_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    macs: list[int] = []

    def measured(model: nn.Module, shape: Shape) -> ModelSize:
        size = measure_size(model, shape)
        macs.append(size.macs)
        return size

    monkeypatch.setattr(channels, "measure_size", measured)
    Prune(ratio=0.7, of="macs").convert(network(), CONTEXT)
    assert macs[-1] <= 0.3 * macs[0] < macs[-2]
    assert len(macs) <= 16


@pytest.mark.parametrize("of", ["macs", "parameters"])
def test_the_share_of_macs_or_parameters_is_reached_and_hardly_exceeded(of: str) -> None:
    sizes = [
        measure_size(model, SHAPE)
        for model in (network(), Prune(ratio=0.5, of=of).convert(network(), CONTEXT).model)  # type: ignore[arg-type]
    ]
    before, after = (getattr(size, of) for size in sizes)
    assert 0.4 * before < after <= 0.5 * before


def test_channels_become_multiples() -> None:
    model = Prune(ratio=0.5, round_to=4).convert(network(width=1.25), CONTEXT).model
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert {layer.out_channels % 4 for layer in layers} == {0}


@pytest.mark.parametrize(("scope", "left"), [("global", [4, 8]), ("layer", [6, 6])])
def test_a_global_ranking_takes_the_small_channels_wherever_they_are(scope: str, left: list[int]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(8 * 256, 5))
    with torch.no_grad():
        model.get_parameter("0.weight").fill_(1.0)[:4] = 1e-6
        model.get_parameter("2.weight").fill_(1.0)[:, :4] = 1e-6
    operator = Prune(ratio=0.25, scope=scope)  # type: ignore[arg-type]
    operator.convert(model, CONTEXT)
    assert [model[0].out_channels, model[2].out_channels] == left
    assert operator.weights_decide_sizes is (scope == "global")


def test_statistics_of_batch_normalisation_are_those_of_the_pruned_network() -> None:
    model = Prune(ratio=0.5).convert(network(), calibrated()).model
    seen: list[Tensor] = []
    model.get_submodule("bn1").register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    model.eval()(images(8))
    mean = seen[0].mean((0, 2, 3))
    torch.testing.assert_close(model.get_buffer("bn1.running_mean"), mean, rtol=1e-5, atol=1e-6)
    assert model.get_submodule("bn1").momentum == 0.1


def test_the_largest_weights_stay_and_zeros_stay_zero() -> None:
    operator, model = Prune(ratio=0.75, pattern="unstructured"), network()
    before = model.get_parameter("layer1.0.conv1.weight").detach().clone()
    operator.convert(model, CONTEXT)
    weight = model.get_parameter("layer1.0.conv1.weight").detach()
    assert int(weight.count_nonzero()) == before.numel() // 4
    assert float(weight[weight != 0].abs().min()) >= float(before[weight == 0].abs().max())
    zero = weight == 0
    weight += 1.0
    operator.after_step(model, NOW)
    assert torch.equal(weight == 0, zero)
    operator.finalise(model)
    assert "pruning_mask" not in " ".join(model.state_dict())


def test_two_of_four_consecutive_weights_are_zero() -> None:
    model = network()
    converted = Prune(ratio=0.5, pattern="2:4").convert(model, CONTEXT)
    groups = model.get_parameter("layer2.0.conv1.weight").reshape(-1, 4)
    assert (groups != 0).sum(1).unique().tolist() == [2]
    # The stem's outputs have 27 weights.
    assert "conv1 stays dense" in converted.notes[1]
    assert int(model.get_parameter("conv1.weight").count_nonzero()) == 16 * 27


def test_the_note_says_that_macs_stay() -> None:
    model = network()
    macs = measure_size(model, SHAPE).macs
    (note,) = Prune(ratio=0.5, pattern="unstructured").convert(model, CONTEXT).notes
    assert "MACs and latency stay those of the dense network" in note
    assert measure_size(model, SHAPE).macs == macs


def test_the_last_layer_keeps_its_outputs_and_its_weights() -> None:
    pruned = Prune(ratio=0.6).convert(network(), CONTEXT).model
    assert pruned.get_parameter("fc.weight").shape[0] == 5
    masked = Prune(ratio=0.6, pattern="unstructured").convert(network(), CONTEXT).model
    assert int(masked.get_parameter("fc.weight").count_nonzero()) == 64 * 5


def test_levels() -> None:
    assert Prune().level == Level.ARCHITECTURE
    assert Prune(pattern="unstructured").level == Level.ZEROS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pattern": "unstructured", "of": "macs"}, "of has no meaning with pattern unstructured"),
        ({"pattern": "2:4", "ratio": 0.3}, r"ratio must be 0\.5 with pattern 2:4"),
        ({"pattern": "2:4", "ratio": 0.5, "importance": "bn_scale"}, "importance must not be bn_scale"),
        ({"ratio": 1.0}, r"ratio must be < 1, got 1\.0"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Prune(**options)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("resnet8", {"ratio": 0.99}, "leaves no channel of .*; lower ratio"),
        ("lenet", {"ratio": 0.9999, "of": "macs"}, r"cannot remove 0\.9999 of the macs; lower ratio"),
        ("vit", {"ratio": 0.5}, "cannot follow the channels of this network: .*; prune another model"),
        ("shufflenet_v1", {"ratio": 0.5}, "cannot follow the channels of this network: .*; prune another model"),
    ],
)
def test_a_network_that_cannot_be_pruned_so_is_refused(model: str, options: dict[str, Any], message: str, device: str) -> None:
    made = network(model) if device == "cpu" else sketch_model(model, num_classes=5, input_shape=SHAPE)
    with pytest.raises(OperatorError, match=message):
        Prune(**options).convert(made, CONTEXT)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("channels", "finds no layer before the last one whose channels"), ("unstructured", "finds no convolution and no linear")],
)
def test_a_network_of_one_layer_is_refused(pattern: str, message: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 5))
    with pytest.raises(OperatorError, match=message):
        Prune(pattern=pattern).convert(model, CONTEXT)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "readable"),
    [
        ({"ratio": 0.5}, "prune(ratio=0.5)"),
        ({"ratio": 0.3, "of": "macs"}, "prune(ratio=0.3, of=macs)"),
        ({"pattern": "2:4"}, "prune(pattern=2:4)"),
    ],
)
def test_it_is_shown_with_its_ratio(options: dict[str, Any], readable: str) -> None:
    assert Prune(**options).readable == readable
