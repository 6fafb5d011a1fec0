"""Quantized networks: rounded numbers, stored bytes, training at few bits, rounding at the end, and what is refused."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import nn

from stillhouse.compress.chain import Chain
from stillhouse.compress.operator import Calibration, Context, Moment, OperatorError
from stillhouse.compress.parts.quantized_layers import InputQuantizer, Phase, quantized_layers
from stillhouse.compress.prune import Prune
from stillhouse.compress.quantize import WARM_UP_STEPS, Quantize
from stillhouse.data.datasets import load_dataset
from stillhouse.data.views import Views
from stillhouse.distill.method import Method
from stillhouse.distill.trainer import Trainer
from stillhouse.models.registry import build_model
from stillhouse.models.size import measure_size
from stillhouse.spec.training import Training
from stillhouse.testing import OperatorTrial, check_operator

SHAPE = (3, 16, 16)
CONTEXT = Context(num_classes=5, input_shape=SHAPE)


def network(name: str = "resnet8") -> nn.Module:
    torch.manual_seed(0)
    model = build_model(name, num_classes=5, input_shape=SHAPE)
    for _ in range(3):
        model(images())
    return model


@functools.cache
def images(count: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def calibrated(batches: Callable[[int], Any]) -> Context:
    calibration = Calibration(batches=lambda count: iter(batches(count)), loss=lambda outputs, _: outputs.sum())
    return dataclasses.replace(CONTEXT, calibration=calibration)


@pytest.mark.parametrize("options", Quantize.examples, ids=str)
def test_it_passes_every_check_of_operators(options: Mapping[str, Any]) -> None:
    check_operator(Quantize(**options))


def test_it_passes_every_check_on_linear_layers() -> None:
    check_operator(Quantize(weight_bits=4), model="mlp")


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_file_has_the_true_number_of_bits(bits: int) -> None:
    chain = Chain(("quantize",), (Quantize(weight_bits=bits, activation_bits=32),))
    conversion = chain.convert(network(), CONTEXT)
    chain.finalise(conversion.model)
    state = conversion.model.state_dict()
    packed = chain.pack(conversion.model, state, conversion.history)
    for name, layer in quantized_layers(conversion.model):
        assert packed[f"{name}.weight.packed"].dtype == torch.uint8
        assert packed[f"{name}.weight.packed"].numel() == -(-layer.weight.numel() * bits // 8)
        assert f"{name}.weight" not in packed
    content = save({name: value.contiguous() for name, value in packed.items()})
    assert len(content) == chain.stored_bytes(conversion.model, conversion.history)
    unpacked = chain.unpack(conversion.model, packed, conversion.history)
    assert unpacked.keys() == state.keys()
    assert all(torch.equal(unpacked[name], value) for name, value in state.items())


def test_a_finalised_network_computes_what_it_did_without_normalisation_after_rounded_layers() -> None:
    operator = Quantize()
    model = operator.convert(network(), CONTEXT).model
    model(images())
    model.eval()
    before = model(images(seed=1)).detach()
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    operator.finalise(model)
    assert [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)] == ["bn1"]
    torch.testing.assert_close(model(images(seed=1)).detach(), before, rtol=1e-3, atol=1e-3)


def test_the_first_and_the_last_layer_stay_in_full_precision_unless_none_is_exempt() -> None:
    conversion = Quantize().convert(network(), CONTEXT)
    names = [name for name, _ in quantized_layers(conversion.model)]
    assert "conv1" not in names
    assert "fc" not in names
    assert conversion.notes == ["in full precision: conv1 and fc"]
    everything = Quantize(exempt="none").convert(network(), CONTEXT)
    assert {name for name, _ in quantized_layers(everything.model)} == {*names, "conv1", "fc"}
    assert everything.notes == []


def test_eight_bits_change_the_outputs_little_and_two_bits_much() -> None:
    original = network().eval()
    errors = []
    for bits in (2, 4, 8):
        operator = Quantize(weight_bits=bits, activation_bits=bits, exempt="none", train=False)
        model = operator.convert(network(), calibrated(lambda _: [(images(), torch.zeros(16))])).model
        operator.finalise(model.eval())
        with torch.no_grad():
            errors.append(float((model(images()) - original(images())).norm() / original(images()).norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.05
    assert errors[0] > 0.5


def test_ranges_of_a_network_that_is_rounded_at_its_end_come_from_the_calibration_samples() -> None:
    asked: list[int] = []

    def batches(count: int) -> Any:
        asked.append(count)
        yield images(), torch.zeros(16)
        yield 2 * images(seed=1), torch.zeros(16)

    operator = Quantize(train=False, calibration_samples=32, exempt="none")
    model = operator.convert(network(), calibrated(batches)).model
    original = network().eval()
    assert torch.equal(model.eval()(images()), original(images())), "full precision until the end"
    assert asked == []
    operator.finalise(model)
    assert asked == [32]
    # The first layer reads the images: its range is theirs, widened to 0.
    everything = torch.cat([images(), 2 * images(seed=1)])
    scale = (everything.max() - everything.min()) / 255
    torch.testing.assert_close(model.get_buffer("conv1.input_quantizer.scale"), scale)
    torch.testing.assert_close(model.get_buffer("conv1.input_quantizer.zero_point"), (-everything.min() / scale).round())
    error = (model(images()) - original(images())).detach().norm() / original(images()).detach().norm()
    assert float(error) < 0.1


def test_the_phases_begin_at_their_stated_points() -> None:
    operator = Quantize(ranges="learnt", freeze_at=0.75)
    model = operator.convert(network(), CONTEXT).model
    phases = []
    for step in range(60):
        operator.before_step(model, Moment(progress=step / 60, epoch=0, step=step))
        model(images(2))
        ((_, layer), *_) = quantized_layers(model)
        assert isinstance(layer.input_quantizer, InputQuantizer)
        phases.append(int(layer.input_quantizer.phase))
    assert phases == [Phase.OBSERVING] * WARM_UP_STEPS + [Phase.LEARNING] * (45 - WARM_UP_STEPS) + [Phase.FROZEN] * 15


def test_a_low_bit_network_learns() -> None:
    trial, data = OperatorTrial(Quantize(weight_bits=2, activation_bits=4)), load_dataset("digits", validation=300)
    trainer = Trainer(
        new_student=lambda: trial.convert().model,
        method=Method(),
        data=data,
        views=Views((), 1, data.input_shape, len(data.train)),
        training=Training(batch_size=64, learning_rate=0.05),
        epochs=4,
        operators=trial.chain,
    )
    accuracy = trainer.fit()[-1]["validation_accuracy"]
    # Ten classes: 0.1 is a guess. In full precision, the network is at 0.96 by then.
    assert accuracy > 0.8
    trainer.finalise()
    assert trainer.evaluate(data.validation) == pytest.approx(accuracy, abs=0.01)


def test_a_pruned_network_keeps_its_zeros_when_it_is_quantized() -> None:
    chain = Chain(("prune", "quantize"), (Prune(ratio=0.5, pattern="unstructured"), Quantize(weight_bits=4)))
    conversion = chain.convert(network(), CONTEXT)
    zeros = {name: layer.weight == 0 for name, layer in quantized_layers(conversion.model)}
    optimiser = torch.optim.SGD(conversion.model.parameters(), lr=0.1)
    conversion.model(images()).square().sum().backward()
    optimiser.step()
    chain.after_step(conversion.model, Moment(progress=0, epoch=0, step=0))
    chain.finalise(conversion.model)
    for name, layer in quantized_layers(conversion.model):
        assert bool((layer.weight[zeros[name]] == 0).all())
        assert 0.45 < float(zeros[name].float().mean()) < 0.55


def test_parameters_are_those_of_the_folded_network() -> None:
    operator = Quantize(ranges="learnt")
    model = operator.convert(network(), CONTEXT).model
    operator.finalise(model)
    plain = network()
    norms = [module for name, module in plain.named_modules() if isinstance(module, nn.BatchNorm2d) and name != "bn1"]
    size = measure_size(model, SHAPE)
    # Each normalisation has a gain and a bias; the folded layer has a bias.
    expected = sum(weight.numel() for weight in plain.parameters()) - sum(norm.num_features for norm in norms)
    assert size.parameters == expected
    assert size.macs == measure_size(plain, SHAPE).macs


def test_tables_name_the_bits() -> None:
    assert Quantize(weight_bits=4).readable == "quantize(4/8)"
    assert Quantize(train=False).readable == "quantize(8/8, after training)"
    assert (Quantize(weight_bits=3).weight_bits, Quantize(activation_bits=5).activation_bits) == (3, 5)


@pytest.mark.parametrize(
    "options",
    [{"weight_bits": 1}, {"weight_bits": 9}, {"activation_bits": 16}, {"ranges": "percentile"}, {"freeze_at": 0}],
)
def test_values_out_of_their_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Quantize(**options)


def test_a_network_of_two_layers_is_refused_unless_none_is_exempt() -> None:
    def small() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(768, 4), nn.ReLU(), nn.Linear(4, 5))

    with pytest.raises(OperatorError, match="besides the first and the last") as error:
        Quantize().convert(small(), CONTEXT)
    assert error.value.option == "exempt"
    Quantize(exempt="none").convert(small(), CONTEXT)
    with pytest.raises(OperatorError, match="needs a convolution or a linear layer"):
        Quantize(exempt="none").convert(nn.Flatten(), CONTEXT)


def test_settings_without_effect_warn() -> None:
    with pytest.warns(UserWarning, match="freeze_at has no effect with train=False"):
        Quantize(train=False, freeze_at=0.5)
    with pytest.warns(UserWarning, match="calibration_samples has no effect with train=True"):
        Quantize(calibration_samples=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Quantize(train=False, calibration_samples=5)
